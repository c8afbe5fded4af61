#include "common/spec/parameter_layout.h"

#include <algorithm>

#include "common/spec/model_traits.h"
#include "common/spec/round_up.h"

namespace mt {
namespace {

// Which region of parameter_layout.h a parameter is in.
int RegionOf(const LogicalParameter& p, bool vocabulary, bool copy) {
  if (copy) return 1;
  if (vocabulary || p.split_dimension >= 0) return p.weight_decay ? 0 : 2;
  return p.weight_decay ? 3 : 4;
}

// The block of a stage whose backward pass completes a matrix's gradient. Multi-token prediction comes before everything else in
// the backward pass, with the head.
int64_t CompletingBlock(const LogicalParameter& p, const LayerRange& layers) {
  if (p.name == kEmbeddingName) return FlatBucket::kAtTheEnd;
  return p.layer < 0 ? layers.last : std::min(p.layer, layers.last);
}

}  // namespace

const LocalParameter* ParameterLayout::Find(absl::string_view name) const {
  for (const LocalParameter& p : parameters) {
    if (p.logical.name == name) return &p;
  }
  return nullptr;
}

ParameterLayout LayoutOf(const v1::ModelSpec& model, const Mesh& mesh, int rank) {
  const MeshCoordinates at = mesh.CoordinatesOf(rank);
  const bool first_stage = mesh.IsFirstStage(rank), last_stage = mesh.IsLastStage(rank);
  const LayerRange layers = LayersOfStage(model.layers(), mesh.pipeline(), at.pipeline);
  ParameterLayout layout;
  layout.vocab_rows = (model.vocab() + mesh.tensor() - 1) / mesh.tensor();
  layout.vocab_start = std::min(model.vocab(), layout.vocab_rows * at.tensor);
  layout.vocab_valid = std::min(layout.vocab_rows, model.vocab() - layout.vocab_start);

  std::vector<LocalParameter> regions[5];
  for (const LogicalParameter& logical : ParametersOf(model)) {
    if (!logical.trained) continue;
    LocalParameter p{.logical = logical, .shape = logical.shape};
    p.global_offset.assign(logical.shape.size(), 0);
    bool here = logical.layer >= layers.first && logical.layer < layers.last, copy = false;
    const bool vocabulary = logical.name == kEmbeddingName || logical.name == kHeadName;
    if (logical.name == kEmbeddingName) {
      copy = (model.tie_embeddings() || MtpLayers(model) > 0) && last_stage && !first_stage;
      here = first_stage || copy;
    } else if (logical.name == kPositionName) {
      here = first_stage;
    } else if (logical.layer < 0 || logical.layer >= model.layers()) {
      here = last_stage;
    }
    if (!here) continue;
    if (vocabulary) {
      p.shape[0] = layout.vocab_rows;
      p.global_offset[0] = layout.vocab_start;
    } else if (logical.split_dimension >= 0) {
      p.shape[logical.split_dimension] /= mesh.tensor();
      p.global_offset[logical.split_dimension] = p.shape[logical.split_dimension] * at.tensor;
    }
    p.valid_rows = vocabulary ? layout.vocab_valid : p.shape[0];
    p.saved = !copy && (logical.split_dimension >= 0 || at.tensor == 0);
    regions[RegionOf(logical, vocabulary, copy)].push_back(std::move(p));
  }

  int64_t next = 0, bucket_first = 0;
  std::string group;
  auto place = [&](LocalParameter& p) {
    if (p.logical.group.empty() || p.logical.group != group) next = RoundUp(next, kFlatAlignment);
    group = p.logical.group;
    p.flat_offset = next;
    next += p.Elements();
    layout.parameters.push_back(std::move(p));
  };
  auto close_bucket = [&](int64_t block) {
    next = RoundUp(next, kFlatAlignment * mesh.data());
    if (next > bucket_first)
      layout.buckets.push_back({.range = {bucket_first, next - bucket_first}, .block = block});
    bucket_first = next;
  };
  for (int region = 0; region < 5; ++region) {
    const int64_t first = next;
    std::vector<LocalParameter>& parameters = regions[region];
    for (size_t i = 0; i < parameters.size(); ++i) {
      const LogicalParameter logical = parameters[i].logical;
      place(parameters[i]);
      if (region == 0 && (i + 1 == parameters.size() || logical.layer < 0 ||
                          parameters[i + 1].logical.layer != logical.layer))
        close_bucket(CompletingBlock(logical, layers));
    }
    next = RoundUp(next, kFlatAlignment);
    layout.regions.push_back({.range = {first, next - first},
                              .weight_decay = region == 0 || region == 1 || region == 3,
                              .copy = region == 1,
                              .replicated = region >= 3});
  }
  layout.added = {layout.regions[2].range.first, next - layout.regions[2].range.first};
  layout.replicated = {layout.regions[3].range.first, next - layout.regions[3].range.first};
  close_bucket(FlatBucket::kAtTheEnd);
  layout.size = next;
  return layout;
}

std::vector<FlatRange> PartsOf(const ParameterLayout& layout, int data_ranks, int data) {
  std::vector<FlatRange> parts;
  for (const FlatBucket& bucket : layout.buckets) {
    const int64_t count = bucket.range.count / data_ranks;
    parts.push_back({.first = bucket.range.first + count * data, .count = count});
  }
  return parts;
}

}  // namespace mt
