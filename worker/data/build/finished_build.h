// Whether a dataset that is there is the one that a build would make: its manifest tells the tokenizer, the encoder, the options, the
// version, and the digests of the inputs. So a command that makes several datasets goes on behind those that it had finished.
#pragma once

#include "common/env.h"
#include "common/status.h"
#include "worker/data/build/dataset_builder.h"
#include "worker/data/build/record_encoder.h"
#include "worker/data/dataset_manifest.h"

namespace mt {

// The inputs are read, unless something else differs already. Of an input that --max-documents ended the build in, the size counts.
// Errors of reading them.
absl::StatusOr<bool> IsWhatBuildMakes(Env* env, const DatasetManifest& manifest,
                                      const RecordEncoderFactory& encoders,
                                      const BuildOptions& options);

}  // namespace mt
