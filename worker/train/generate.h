// Text from a checkpoint: one rank holds all weights and recomputes the whole context for every new
// token. Tokens in, tokens out; turning text into tokens is the caller's business.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/status.h"
#include "mt/v1/spec.pb.h"
#include "worker/backend/operations.h"
#include "worker/checkpoint/state.h"

namespace mt {

struct GenerateOptions {
  int64_t max_tokens = 100;  // new ones
  double temperature = 0;    // 0 = greedy: the most likely token, the lowest id among equals
  uint64_t seed =
      1;  // of the counter-based generator; the same seed and prompt give the same tokens
  int32_t stop_token = -1;  // ends the text and is not returned; -1 = none
};

class Generator {
 public:
  // `model` is resolved; at most `context` tokens (prompt and new ones) are looked at: older ones
  // fall out of the window. Computes in FP64 if the job did (reference backend), else in FP32 from
  // the master weights. `operations` outlives the generator.
  static absl::StatusOr<std::unique_ptr<Generator>> Create(const v1::ModelSpec& model,
                                                           v1::TrainingSpec::Precision precision,
                                                           int64_t context, Operations* operations);
  ~Generator();
  Generator(const Generator&) = delete;
  Generator& operator=(const Generator&) = delete;

  // All weights, to be filled by the caller before the first call below.
  std::vector<TensorBox> LoadTargets();

  // Logits (vocab values) of the token after `tokens`. INVALID_ARGUMENT: no token; OUT_OF_RANGE: a
  // token id outside the vocabulary.
  absl::Status Logits(std::span<const int32_t> tokens, std::span<double> logits);

  // The new tokens only.
  absl::StatusOr<std::vector<int32_t>> Generate(std::span<const int32_t> prompt,
                                                const GenerateOptions& options);

 private:
  struct State;
  explicit Generator(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace mt
