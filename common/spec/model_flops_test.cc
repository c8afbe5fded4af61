#include "common/spec/model_flops.h"

#include <gtest/gtest.h>

#include "common/spec/model_traits.h"
#include "common/spec/parameters.h"

namespace mt {
namespace {

v1::ModelSpec DeepSeekV3() {
  v1::ModelSpec m;
  m.set_architecture(v1::ARCHITECTURE_DEEPSEEK_V3);
  m.set_layers(61);
  m.set_hidden(7168);
  m.set_heads(128);
  m.set_kv_heads(128);
  m.set_ffn(18432);
  m.set_vocab(129280);
  v1::MlaSpec& a = *m.mutable_mla();
  a.set_kv_rank(512);
  a.set_q_rank(1536);
  a.set_nope_dim(128);
  a.set_rope_dim(64);
  a.set_v_dim(128);
  v1::MoeSpec& moe = *m.mutable_moe();
  moe.set_experts(256);
  moe.set_top_k(8);
  moe.set_ffn(2048);
  moe.set_shared_ffn(2048);
  moe.set_first_dense(3);
  return m;
}

v1::ModelSpec Dense() {
  v1::ModelSpec m;
  m.set_layers(4);
  m.set_hidden(64);
  m.set_heads(8);
  m.set_kv_heads(2);
  m.set_head_dim(16);
  m.set_ffn(96);
  m.set_vocab(100);
  return m;
}

// 6 per matrix parameter and token, so the matrices that a token meets are a sixth of what a model without attention costs.
double MatricesMet(const v1::ModelSpec& m) { return ModelFlops(m, 0, 1) / 6; }

TEST(ModelFlopsTest, DenseModelsMeetEveryMatrixButTheEmbedding) {
  const v1::ModelSpec m = Dense();
  double matrices = 0;
  for (const LogicalParameter& p : ParametersOf(m)) {
    if (p.shape.size() == 2 && p.name != kEmbeddingName)
      matrices += static_cast<double>(p.Elements());
  }
  EXPECT_EQ(MatricesMet(m), matrices);
}

TEST(ModelFlopsTest, AttentionIsHalfTheSquare) {
  const v1::ModelSpec m = Dense();
  EXPECT_EQ(ModelFlops(m, 10, 3) - ModelFlops(m, 0, 3), 3.0 * 6 * 4 * 8 * 16 * 10);
}

// DeepSeek's README_WEIGHTS.md: 36.7B activated parameters (the head's counted); of multi-token prediction 2.4B, of which the
// embedding and the head are 0.9B each.
TEST(ModelFlopsTest, DeepSeekV3MeetsItsPublishedActivatedParameters) {
  v1::ModelSpec m = DeepSeekV3();
  const double main = MatricesMet(m);
  EXPECT_NEAR(main, 36.7e9, 0.005 * 36.7e9);
  m.mutable_mtp()->set_layers(1);
  const double embedding = 129280.0 * 7168;
  EXPECT_NEAR(MatricesMet(m) - main + embedding, 2.4e9, 0.07 * 2.4e9);
}

TEST(ModelFlopsTest, LatentMatricesAreThoseOfTheParameters) {
  for (const int64_t q_rank : {0, 24}) {
    v1::ModelSpec m = Dense();
    v1::MlaSpec& a = *m.mutable_mla();
    a.set_kv_rank(16);
    a.set_q_rank(q_rank);
    a.set_nope_dim(12);
    a.set_rope_dim(4);
    a.set_v_dim(20);
    double matrices = 0;
    for (const LogicalParameter& p : ParametersOf(m)) {
      if (p.shape.size() == 2 && p.name != kEmbeddingName)
        matrices += static_cast<double>(p.Elements());
    }
    EXPECT_EQ(MatricesMet(m), matrices) << q_rank;
    // Keys of 16 and values of 20 numbers.
    EXPECT_EQ(ModelFlops(m, 10, 1) - ModelFlops(m, 0, 1), 3.0 * 4 * 8 * (16 + 20) * 10) << q_rank;
  }
}

// Counted key by key, each diagonal by half, as half of the square is.
TEST(ModelFlopsTest, WindowsLeaveTheirPartOfTheSquare) {
  v1::ModelSpec m = Dense();
  m.mutable_window()->set_size(3);
  m.mutable_window()->set_period(2);
  const int64_t T = 10;
  double keys = 0;
  for (int64_t t = 0; t < T; ++t) keys += static_cast<double>(std::min<int64_t>(t, 3));
  keys += 3 * 0.5;  // halves at the front, where the window is not full yet
  const double windowed = keys / static_cast<double>(T), whole = static_cast<double>(T) / 2;
  EXPECT_NEAR(ModelFlops(m, T, 1) - ModelFlops(m, 0, 1),
              6 * 8 * 2 * 16 * (2 * windowed + 2 * whole), 1e-6);
}

}  // namespace
}  // namespace mt
