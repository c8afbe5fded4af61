// Samples of several datasets by number, in Megatron's order. Immutable after Open; thread-safe.
//
//   one prefix          its own order. Megatron treats one with a weight as a blend where train, validation and test are shares of
//                       one list (--data-path), so its order holds 0.5 % more samples there; so it does here.
//   prefixes, weights   as many samples as asked for and a few more, in proportion to the weights; data may repeat
//   prefixes alone      one epoch of each, in proportion to their lengths
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/env.h"
#include "common/status.h"
#include "worker/data/sample/blend.h"
#include "worker/data/sample/gpt_dataset.h"

namespace mt {

struct BlendSource {
  std::string prefix;
  double weight = 0;  // 0: none
};

struct BlendOptions {
  std::vector<BlendSource> sources;
  // What all have in common: `prefix` is theirs, `num_samples` is that of the blend.
  GptDatasetOptions dataset;
  bool share_of_one_list = true;  // Megatron's --data-path, else --train-data-path and its like
};

class BlendedDataset {
 public:
  // INVALID_ARGUMENT: no source; weights for some only; more samples asked for than one epoch of each holds; else as
  // GptDataset::Open. Orders are looked for in `cache` if that is not null.
  static absl::StatusOr<std::unique_ptr<BlendedDataset>> Open(Env* env, const BlendOptions& options,
                                                              const IndexCache* cache = nullptr);
  // What Open would say, without making an order (packed documents: with theirs), and GptDataset::Check of each.
  static absl::Status Check(Env* env, const BlendOptions& options);

  int64_t num_samples() const;
  bool masks_loss() const;
  bool is_blend() const { return blend_ != nullptr; }

  struct Origin {
    size_t dataset = 0;  // of the sources
    int64_t sample = 0;  // of that dataset
  };
  // `sample` in [0, num_samples()).
  Origin OriginOf(int64_t sample) const;
  const GptDataset& dataset(size_t i) const { return *datasets_[i]; }
  // Errors as GptDataset::Read.
  absl::Status Read(int64_t sample, const Sample& into) const;

 private:
  BlendedDataset() = default;
  std::vector<std::unique_ptr<GptDataset>> datasets_;
  std::unique_ptr<BlendIndex> blend_;  // null: one dataset, as it is
};

}  // namespace mt
