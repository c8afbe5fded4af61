#include "common/spec/parameter_layout.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "common/spec/round_up.h"

namespace mt {
namespace {

// k, v and up follow their predecessor without a gap.
bool ContinuesGroup(const std::string& name) {
  return absl::EndsWith(name, ".k_proj.weight") || absl::EndsWith(name, ".v_proj.weight") ||
         absl::EndsWith(name, ".up_proj.weight");
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

  std::vector<LocalParameter> matrices, tied, norms;
  for (const LogicalParameter& logical : ParametersOf(model)) {
    LocalParameter p{.logical = logical, .shape = logical.shape};
    p.global_offset.assign(logical.shape.size(), 0);
    bool here = logical.layer >= layers.first && logical.layer < layers.last, tied_copy = false;
    const bool vocabulary = logical.name == kEmbeddingName || logical.name == kHeadName;
    if (logical.name == kEmbeddingName) {
      tied_copy = model.tie_embeddings() && last_stage && !first_stage;
      here = first_stage || tied_copy;
    } else if (logical.layer < 0) {
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
    p.saved = !tied_copy && (logical.split_dimension >= 0 || at.tensor == 0);
    (logical.shape.size() == 1 ? norms : tied_copy ? tied : matrices).push_back(std::move(p));
  }

  int64_t next = 0, bucket_first = 0;
  auto place = [&](LocalParameter& p) {
    if (!ContinuesGroup(p.logical.name)) next = RoundUp(next, kFlatAlignment);
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
  for (size_t i = 0; i < matrices.size(); ++i) {
    const LogicalParameter& logical = matrices[i].logical;
    const int64_t layer = logical.layer;
    const int64_t block = logical.name == kHeadName        ? layers.last
                          : logical.name == kEmbeddingName ? FlatBucket::kAtTheEnd
                                                           : layer;
    place(matrices[i]);
    if (i + 1 == matrices.size() || layer < 0 || matrices[i + 1].logical.layer != layer)
      close_bucket(block);
  }
  layout.counted = next;
  for (LocalParameter& p : tied) place(p);
  layout.matrices = next = RoundUp(next, kFlatAlignment);
  for (LocalParameter& p : norms) place(p);
  layout.end = next = RoundUp(next, kFlatAlignment);
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
