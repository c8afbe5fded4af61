#include "common/spec/rope.h"

#include <gtest/gtest.h>

#include <cmath>

namespace mt {
namespace {

// What transformers 4.57.1 computes (in float32), printed by
//   c = LlamaConfig(hidden_size=d, num_attention_heads=1, head_dim=d, rope_theta=t, rope_scaling=s)
//   f, a = ROPE_INIT_FUNCTIONS[s["rope_type"]](c, "cpu"); print(a, [(j, "%.7g" % f[j]) for j in picks])
struct Expected {
  const char* name;
  int64_t dim;
  double theta;
  v1::RopeSpec rope;
  double amplitude;
  std::vector<std::pair<size_t, double>> frequencies;
};

v1::RopeSpec Rope(v1::RopeSpec::Scaling scaling, double factor, int64_t original) {
  v1::RopeSpec rope;
  rope.set_scaling(scaling);
  rope.set_factor(factor);
  rope.set_original_max_positions(original);
  rope.set_low_freq_factor(1);
  rope.set_high_freq_factor(4);
  rope.set_beta_fast(32);
  rope.set_beta_slow(1);
  return rope;
}

std::vector<Expected> All() {
  v1::RopeSpec gpt_oss = Rope(v1::RopeSpec::SCALING_YARN, 32, 4096),
               deepseek = Rope(v1::RopeSpec::SCALING_YARN, 40, 4096), told = deepseek;
  gpt_oss.set_truncate(false);
  deepseek.set_mscale(1);
  deepseek.set_mscale_all_dim(0.707);
  told.set_attention_factor(1.25);
  return {
      {"linear",
       64,
       1e4,
       Rope(v1::RopeSpec::SCALING_LINEAR, 4, 0),
       1,
       {{0, 0.25}, {1, 0.1874736}, {15, 0.003333804}, {31, 3.333804e-05}}},
      {"llama 3.1",
       128,
       5e5,
       Rope(v1::RopeSpec::SCALING_LLAMA3, 8, 8192),
       1,
       {{0, 1.0},
        {20, 0.01656044},
        {28, 0.003211446},
        {30, 0.001371894},
        {33, 0.0003126936},
        {35, 9.556212e-05},
        {40, 3.428102e-05},
        {63, 3.068926e-07}}},
      {"yarn, Qwen's",
       128,
       1e6,
       Rope(v1::RopeSpec::SCALING_YARN, 4, 32768),
       1.138629436111989,
       {{0, 1.0},
        {20, 0.01333521},
        {23, 0.006978306},
        {25, 0.004131738},
        {30, 0.001064361},
        {39, 6.490394e-05},
        {40, 4.445699e-05},
        {63, 3.102344e-07}}},
      {"yarn without truncation, gpt-oss's",
       64,
       1.5e5,
       gpt_oss,
       1.3465735902799727,
       {{0, 1.0},
        {7, 0.07374457},
        {8, 0.05081327},
        {9, 0.0317057},
        {12, 0.006794959},
        {17, 0.0001293187},
        {18, 3.830881e-05},
        {31, 3.023511e-07}}},
      {"yarn with mscale, DeepSeek's",
       64,
       1e4,
       deepseek,
       1.0857263992561355,
       {{0, 1.0},
        {9, 0.07498942},
        {10, 0.05623413},
        {11, 0.03900693},
        {16, 0.0055},
        {22, 0.0001778279},
        {23, 3.333803e-05},
        {31, 3.333804e-06}}},
      {"yarn with a factor of its own", 64, 1e4, told, 1.25, {{0, 1.0}, {31, 3.333804e-06}}},
  };
}

v1::ModelSpec ModelOf(const Expected& expected) {
  v1::ModelSpec model;
  model.set_head_dim(expected.dim);
  model.set_rope_theta(expected.theta);
  *model.mutable_rope() = expected.rope;
  return model;
}

TEST(RopeTest, FrequenciesAreThoseOfTransformers) {
  for (const Expected& expected : All()) {
    const RopeFrequencies rope = RopeFrequenciesOf(ModelOf(expected));
    EXPECT_NEAR(rope.amplitude, expected.amplitude, 1e-15) << expected.name;
    ASSERT_EQ(rope.frequencies.size(), static_cast<size_t>(expected.dim / 2));
    for (const auto& [pair, frequency] : expected.frequencies)
      EXPECT_NEAR(rope.frequencies[pair] / frequency, 1, 2e-6)
          << expected.name << ", pair " << pair;
  }
}

TEST(RopeTest, TheTableHasCosinesThenSines) {
  v1::ModelSpec model;
  model.set_head_dim(8);
  model.set_rope_theta(100);
  model.mutable_rope()->set_scaling(v1::RopeSpec::SCALING_YARN);
  *model.mutable_rope() = Rope(v1::RopeSpec::SCALING_YARN, 4, 64);
  const RopeFrequencies rope = RopeFrequenciesOf(model);
  const std::vector<double> table = RopeTable(model, 6);
  ASSERT_EQ(table.size(), 48u);
  for (size_t p = 0; p < 6; ++p) {
    for (size_t j = 0; j < 4; ++j) {
      const double angle = static_cast<double>(p) * rope.frequencies[j];
      EXPECT_DOUBLE_EQ(table[8 * p + j], rope.amplitude * std::cos(angle));
      EXPECT_DOUBLE_EQ(table[8 * p + 4 + j], rope.amplitude * std::sin(angle));
    }
  }
}

// DeepSeek-V3: 192 numbers per key head, factor 40, mscale_all_dim 1: 192^-0.5 (0.1 ln 40 + 1)^2.
TEST(RopeTest, AttentionScaleHasDeepSeeksMscale) {
  v1::ModelSpec model;
  model.set_head_dim(64);
  EXPECT_DOUBLE_EQ(AttentionScale(model), 0.125);
  *model.mutable_rope() = Rope(v1::RopeSpec::SCALING_YARN, 40, 4096);
  EXPECT_DOUBLE_EQ(AttentionScale(model), 0.125);
  model.mutable_mla()->set_kv_rank(512);
  model.mutable_mla()->set_nope_dim(128);
  model.mutable_mla()->set_rope_dim(64);
  model.mutable_rope()->set_mscale(1);
  model.mutable_rope()->set_mscale_all_dim(1);
  EXPECT_NEAR(AttentionScale(model), 0.1352337788608801, 1e-15);
}

}  // namespace
}  // namespace mt
