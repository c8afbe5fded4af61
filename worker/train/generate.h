// Text from a checkpoint: one rank holds all weights. A prompt is run once; then every new token is one row, whose queries meet
// the keys and values that every block has kept (the cache). Tokens in, tokens out; turning text into tokens is the caller's
// business.
//
// A text is looked at through a window of `context` tokens. When the text outgrows it, the older half of the window is dropped
// and what remains is run once more: which tokens are looked at follows from the text's length alone, and their positions count
// from the first of them.
//
// Nothing that trains is touched: routers count nothing, an expert takes all rows that choose it whatever the capacity of the job,
// and there is no multi-token prediction.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/status.h"
#include "mt/v1/spec.pb.h"
#include "worker/backend/operations.h"
#include "worker/checkpoint/state.h"
#include "worker/train/sampling.h"

namespace mt {

struct GenerateOptions {
  int64_t max_tokens = 100;  // new ones
  SamplingOptions sampling;
  uint64_t seed =
      1;  // of the counter-based generator; the same seed and prompt give the same tokens
  std::vector<int32_t> stop_tokens;  // any of them ends the text and is not returned
};

class Generator {
 public:
  // `model` is resolved. Computes in FP64 if the job did (reference backend), else in FP32 from
  // the master weights. `operations` outlives the generator.
  static absl::StatusOr<std::unique_ptr<Generator>> Create(const v1::ModelSpec& model,
                                                           v1::TrainingSpec::Precision precision,
                                                           int64_t context, Operations* operations);
  ~Generator();
  Generator(const Generator&) = delete;
  Generator& operator=(const Generator&) = delete;

  // All weights, to be filled by the caller before the first call below.
  std::vector<TensorBox> LoadTargets();

  // Logits (vocab values) of the token after `tokens`. One row is computed if they are those of the call before and one more, else
  // all of them. INVALID_ARGUMENT: no token; OUT_OF_RANGE: a token id outside the vocabulary.
  absl::Status Logits(std::span<const int32_t> tokens, std::span<double> logits);

  // The new tokens only. INVALID_ARGUMENT: an option, named.
  absl::StatusOr<std::vector<int32_t>> Generate(std::span<const int32_t> prompt,
                                                const GenerateOptions& options);

 private:
  struct State;
  explicit Generator(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace mt
