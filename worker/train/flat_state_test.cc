#include "worker/train/flat_state.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

namespace mt {
namespace {

v1::ModelSpec Model(int64_t vocab, bool tied) {
  v1::ModelSpec model;
  model.set_layers(3);
  model.set_hidden(10);
  model.set_heads(4);
  model.set_kv_heads(2);
  model.set_head_dim(6);
  model.set_ffn(14);
  model.set_vocab(vocab);
  model.set_init_std(0.02);
  model.set_tie_embeddings(tied);
  return model;
}

// Every logical element is in exactly one saved box of the job, and at the address where the rank keeps it.
TEST(BoxesTest, SavedBoxesCoverEveryLogicalElementOnce) {
  for (const auto& [tensor, data, pipeline, vocab, tied] :
       {std::tuple(1, 1, 1, 31, false), std::tuple(2, 3, 1, 31, false),
        std::tuple(2, 2, 3, 7, true), std::tuple(2, 4, 2, 1, true),
        std::tuple(1, 5, 2, 31, true)}) {
    const v1::ModelSpec model = Model(vocab, tied);
    const Mesh mesh = *Mesh::Create(tensor, data, pipeline);
    std::map<std::string, std::map<int64_t, int>> seen;
    for (int rank = 0; rank < mesh.world(); ++rank) {
      const ParameterLayout layout = LayoutOf(model, mesh, rank);
      EXPECT_EQ(layout.size % (data * kFlatAlignment), 0);
      std::vector<double> buffer(static_cast<size_t>(layout.size));
      std::vector<std::pair<FlatRange, TensorBox>> boxes;
      for (const FlatRange& part : PartsOf(layout, data, mesh.CoordinatesOf(rank).data)) {
        for (const TensorBox& box :
             BoxesOf(layout, part, "", MT_F64, buffer.data(), 0, /*only_saved=*/true))
          boxes.emplace_back(part, box);
      }
      std::map<std::string, int> boxes_of;
      for (const auto& [shard, box] : boxes) {
        EXPECT_LE(++boxes_of[box.tensor], 3) << box.tensor;
        const auto* data_begin = static_cast<double*>(box.data);
        EXPECT_GE(data_begin, buffer.data() + shard.first);
        EXPECT_LE(data_begin + box.Elements(), buffer.data() + shard.first + shard.count);
        const int64_t columns = box.shape.size() == 2 ? box.shape[1] : 1;
        const int64_t stride = box.shape.size() == 2 ? box.global_shape[1] : 1;
        for (size_t d = 0; d < box.shape.size(); ++d) {
          ASSERT_LE(box.offset[d] + box.shape[d], box.global_shape[d]) << box.tensor;
        }
        for (int64_t i = 0; i < box.Elements(); ++i) {
          const int64_t column_offset = box.shape.size() == 2 ? box.offset[1] : 0;
          ++seen[box.tensor][(box.offset[0] + i / columns) * stride + column_offset + i % columns];
        }
      }
    }
    const std::vector<LogicalParameter> all = ParametersOf(model);
    EXPECT_EQ(seen.size(), all.size());
    for (const LogicalParameter& p : all) {
      EXPECT_EQ(static_cast<int64_t>(seen[p.name].size()), p.Elements())
          << p.name << " on " << mesh.ToString();
      for (const auto& [element, times] : seen[p.name])
        ASSERT_EQ(times, 1) << p.name << " element " << element;
    }
  }
}

// Each bucket can be summed and shared out by itself, and holds what completes together.
TEST(LayoutTest, BucketsCutTheBufferWhereGradientsComplete) {
  for (const auto& [tensor, data, pipeline, tied] :
       {std::tuple(1, 1, 1, false), std::tuple(2, 3, 1, false), std::tuple(1, 4, 2, true),
        std::tuple(1, 2, 1, true), std::tuple(1, 2, 3, false)}) {
    const Mesh mesh = *Mesh::Create(tensor, data, pipeline);
    for (int rank = 0; rank < mesh.world(); ++rank) {
      SCOPED_TRACE(absl::StrCat(mesh.ToString(), " rank ", rank));
      const ParameterLayout layout = LayoutOf(Model(31, tied), mesh, rank);
      int64_t at = 0;
      for (const FlatBucket& bucket : layout.buckets) {
        EXPECT_EQ(bucket.range.first, at);
        EXPECT_GT(bucket.range.count, 0);
        EXPECT_EQ(bucket.range.count % (data * kFlatAlignment), 0);
        at += bucket.range.count;
        for (const LocalParameter& p : layout.parameters) {
          const bool inside = p.flat_offset >= bucket.range.first && p.flat_offset < at;
          if (!inside) continue;
          EXPECT_LE(p.flat_offset + p.Elements(), at) << p.logical.name;
          const bool block = p.shape.size() == 2 && p.logical.layer >= 0;
          const int64_t completed_by = block                         ? p.logical.layer
                                       : p.logical.name == kHeadName ? 3
                                                                     : FlatBucket::kAtTheEnd;
          EXPECT_EQ(bucket.block, completed_by) << p.logical.name;
        }
      }
      EXPECT_EQ(at, layout.size);
    }
  }
}

TEST(LayoutTest, GroupsAreAdjacentAndNormsComeLast) {
  const Mesh mesh = *Mesh::Create(2, 1, 1);
  const ParameterLayout layout = LayoutOf(Model(31, false), mesh, 1);
  const auto* q = layout.Find("model.layers.1.self_attn.q_proj.weight");
  const auto* k = layout.Find("model.layers.1.self_attn.k_proj.weight");
  const auto* v = layout.Find("model.layers.1.self_attn.v_proj.weight");
  EXPECT_EQ(k->flat_offset, q->flat_offset + q->Elements());
  EXPECT_EQ(v->flat_offset, k->flat_offset + k->Elements());
  EXPECT_EQ(q->flat_offset % kFlatAlignment, 0);
  for (const LocalParameter& p : layout.parameters) {
    EXPECT_EQ(p.flat_offset >= layout.added.first, p.shape.size() == 1) << p.logical.name;
  }
  EXPECT_EQ(layout.vocab_rows, 16);
  EXPECT_EQ(layout.vocab_valid, 15);
  EXPECT_EQ(layout.Find(kEmbeddingName)->valid_rows, 15);
}

}  // namespace
}  // namespace mt
