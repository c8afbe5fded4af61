#include "worker/data/sample/blended_dataset.h"

#include <algorithm>
#include <numeric>

#include "common/hash.h"
#include "worker/data/sample/index_cache.h"

namespace mt {
namespace {

struct Plan {
  std::vector<GptDatasetOptions> datasets;
  std::vector<double> weights;  // normalized; empty: none
  int64_t size = 0;             // with weights
  bool blended = true;
};

absl::StatusOr<Plan> PlanOf(const BlendOptions& options) {
  const std::vector<BlendSource>& sources = options.sources;
  if (sources.empty()) return absl::InvalidArgumentError("no dataset is named");
  if (sources.size() >= kMaxBlendedDatasets) {
    return absl::InvalidArgumentError(absl::StrCat(sources.size(), " datasets; at most ",
                                                   kMaxBlendedDatasets - 1, " can be blended"));
  }
  Plan plan;
  for (const BlendSource& source : sources) {
    plan.datasets.push_back(options.dataset);
    plan.datasets.back().prefix = source.prefix;
    if (source.weight != 0) plan.weights.push_back(source.weight);
    if (!(source.weight >= 0 && source.weight <= 1e100)) {
      return absl::InvalidArgumentError(
          absl::StrCat(source.prefix, ": weight ", source.weight, " is no share of a blend"));
    }
  }
  if (!plan.weights.empty() && plan.weights.size() != sources.size()) {
    return absl::InvalidArgumentError(
        "some datasets have a weight and some have none; give one to all of them, or to none for "
        "one "
        "epoch of each");
  }
  plan.blended = sources.size() > 1 || (!plan.weights.empty() && options.share_of_one_list);
  if (!plan.blended) return plan;
  if (plan.weights.empty()) {
    for (GptDatasetOptions& dataset : plan.datasets) dataset.num_samples = 0;
    return plan;
  }
  if (options.dataset.num_samples <= 0)
    return absl::InvalidArgumentError("a blend with weights wants a number of samples");
  plan.weights = NormalizedWeights(plan.weights);
  const BlendSizes sizes = SizesOfBlend(plan.weights, options.dataset.num_samples);
  for (size_t i = 0; i < sources.size(); ++i) plan.datasets[i].num_samples = sizes.build[i];
  plan.size = sizes.size;
  return plan;
}

// Of a blend without weights, by the samples that one epoch of each dataset has.
absl::Status CheckOneEpoch(std::span<const int64_t> sizes, int64_t wanted) {
  const int64_t total = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
  if (wanted <= total) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "one epoch of each of the ", sizes.size(), " datasets is ", total, " samples, but ", wanted,
      " are wanted; give the datasets weights, with which they repeat, or ask for fewer (steps, or "
      "evaluation.batches)"));
}

absl::StatusOr<BlendIndex> IndexOf(const std::vector<int64_t>& lengths,
                                   const std::vector<double>& weights, int64_t size,
                                   const IndexCache* cache) {
  std::vector<double> shares = weights;
  if (shares.empty()) shares.assign(lengths.begin(), lengths.end());
  const bool exhaustive = size == 0;
  const auto build = [&] {
    return exhaustive ? BuildExhaustiveBlendIndex(lengths) : BuildBlendIndex(shares, size);
  };
  if (cache == nullptr) return build();
  // Weights by all of their digits.
  const std::string key = absl::StrCat(
      "blend 1 size ", size, " shares ",
      Xxh3Hex({reinterpret_cast<const char*>(shares.data()), shares.size() * sizeof(double)}), " ",
      shares.size());
  MT_ASSIGN_OR_RETURN(IndexArrays arrays, cache->Get(key, [&]() -> absl::StatusOr<IndexArrays> {
    MT_ASSIGN_OR_RETURN(const BlendIndex index, build());
    return index.arrays;
  }));
  return BlendIndex(std::move(arrays));
}

// Megatron's check: the surplus has always been enough, or there is nothing to read.
absl::Status CheckEnough(const BlendIndex& index, const std::vector<int64_t>& lengths,
                         const BlendOptions& options) {
  std::vector<int64_t> used(lengths.size());
  for (const uint16_t dataset : index.dataset) ++used[dataset];
  for (size_t i = 0; i < used.size(); ++i) {
    if (used[i] <= lengths[i]) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        options.sources[i].prefix, ": the blend takes ", used[i], " samples of it, but ",
        lengths[i], " are ordered; change its weight or the number of steps a little"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<BlendedDataset>> BlendedDataset::Open(Env* env,
                                                                     const BlendOptions& options,
                                                                     const IndexCache* cache) {
  MT_ASSIGN_OR_RETURN(const Plan plan, PlanOf(options));
  auto blended = std::unique_ptr<BlendedDataset>(new BlendedDataset());
  std::vector<int64_t> lengths;
  for (const GptDatasetOptions& dataset : plan.datasets) {
    MT_ASSIGN_OR_RETURN(blended->datasets_.emplace_back(), GptDataset::Open(env, dataset, cache));
    lengths.push_back(blended->datasets_.back()->num_samples());
  }
  if (!plan.blended) return blended;
  const int64_t wanted = options.dataset.num_samples;
  if (plan.weights.empty()) MT_RETURN_IF_ERROR(CheckOneEpoch(lengths, wanted));
  MT_ASSIGN_OR_RETURN(BlendIndex index, IndexOf(lengths, plan.weights,
                                                plan.weights.empty() ? wanted : plan.size, cache));
  MT_RETURN_IF_ERROR(CheckEnough(index, lengths, options));
  blended->blend_ = std::make_unique<BlendIndex>(std::move(index));
  return blended;
}

absl::Status BlendedDataset::Check(Env* env, const BlendOptions& options) {
  MT_ASSIGN_OR_RETURN(const Plan plan, PlanOf(options));
  for (const GptDatasetOptions& dataset : plan.datasets)
    MT_RETURN_IF_ERROR(GptDataset::Check(env, dataset));
  if (!plan.blended || !plan.weights.empty()) return absl::OkStatus();
  std::vector<int64_t> lengths;
  for (const GptDatasetOptions& dataset : plan.datasets) {
    MT_ASSIGN_OR_RETURN(lengths.emplace_back(), GptDataset::CountSamples(env, dataset));
  }
  return CheckOneEpoch(lengths, options.dataset.num_samples);
}

int64_t BlendedDataset::num_samples() const {
  return blend_ == nullptr ? datasets_[0]->num_samples() : blend_->size();
}

bool BlendedDataset::masks_loss() const {
  return std::any_of(datasets_.begin(), datasets_.end(),
                     [](const auto& dataset) { return dataset->masks_loss(); });
}

BlendedDataset::Origin BlendedDataset::OriginOf(int64_t sample) const {
  if (blend_ == nullptr) return {.dataset = 0, .sample = sample};
  const auto at = static_cast<size_t>(sample);
  return {.dataset = blend_->dataset[at], .sample = blend_->sample[at]};
}

absl::Status BlendedDataset::Read(int64_t sample, const Sample& into) const {
  if (sample < 0 || sample >= num_samples()) {
    return absl::OutOfRangeError(
        absl::StrCat("sample ", sample, " of ", num_samples(),
                     " in the job's data (were steps or global_batch raised after the start?)"));
  }
  const Origin origin = OriginOf(sample);
  return datasets_[origin.dataset]->Read(origin.sample, into);
}

}  // namespace mt
