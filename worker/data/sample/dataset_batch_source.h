// The trainer's samples out of a job's datasets: a blend in Megatron's order, with the documents and the losses of each sample.
#pragma once

#include <memory>
#include <string>

#include "common/env.h"
#include "common/status.h"
#include "mt/v1/spec.pb.h"
#include "worker/data/sample/blended_dataset.h"
#include "worker/train/batch_source.h"

namespace mt {

// Which of a job's data: `train` by the first share of data.split; `validation` and `test` whole, or else the second and third
// share of `train`.
enum class DataShare { kTrain, kValidation, kTest };

struct OpenDataOptions {
  // Folder of sample orders that the ranks of a node share (index_cache.h); "" = each builds its own in memory.
  std::string index_cache;
  // How far apart the first ids of two Fetch calls in a row are (micro_batch * data ranks): the reader thread fetches that far
  // ahead. 0 = none.
  int64_t prefetch_stride = 0;
};

// Samples of `spec`, which is resolved. The order is that of the whole run, so that it never depends on where a run was
// interrupted. Training holds as many samples as all steps take; held-out data as many as one evaluation takes, so that each sees the
// same ones, and no fill-in-the-middle.
//   loss_mask       0 where the label is padding or has no loss in PREFIX.loss, or where data.mask_eod and the input is data.eod
//   document_start  a document begins behind each data.eod, as Megatron resets positions; with packing: documents, where it begins
// INVALID_ARGUMENT: what the spec asks for cannot be (too little data, too many samples); NOT_FOUND, FAILED_PRECONDITION: the files.
// Never DATA_LOSS, which in a rank means its checkpoint.
absl::StatusOr<std::unique_ptr<BatchSource>> OpenData(Env* env, const v1::JobSpec& spec,
                                                      DataShare share,
                                                      const OpenDataOptions& options = {});

// What a spec says of one share of its data.
BlendOptions BlendOptionsOf(const v1::JobSpec& spec, DataShare share);

// What can be said of a spec's data before any rank is started, without building an order: errors as OpenData's, and of ids that
// are not in the vocabulary among the first 64 Mi tokens. Held-out data is looked at if it is evaluated.
absl::Status CheckTrainingData(Env* env, const v1::JobSpec& spec);

}  // namespace mt
