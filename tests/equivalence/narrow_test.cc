// bf16 and fp8: layouts agree as far as the types go, what is promised bit by bit is kept bit by
// bit, checkpoints are those of float32, and fp8 learns as bf16 does.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "tests/equivalence/harness.h"

namespace mt::equivalence {
namespace {

constexpr auto kFp32 = v1::TrainingSpec::PRECISION_FP32, kBf16 = v1::TrainingSpec::PRECISION_BF16,
               kFp8 = v1::TrainingSpec::PRECISION_FP8;
constexpr Layout kAll = {.tensor = 2, .data = 2, .pipeline = 2, .sequence = true, .zero = true};

// SmallJob with sizes that FP8 products have.
v1::JobSpec NarrowJob(v1::TrainingSpec::Precision precision) {
  v1::JobSpec spec = SmallJob();
  v1::ModelSpec& model = *spec.mutable_model();
  model.set_layers(3);
  model.set_hidden(32);
  model.set_heads(4);
  model.set_kv_heads(2);
  model.set_head_dim(16);
  model.set_ffn(64);
  spec.mutable_training()->set_precision(precision);
  return spec;
}

Outcome Go(const RunOptions& options) {
  absl::StatusOr<Outcome> outcome = RunJob(options);
  EXPECT_TRUE(outcome.ok()) << outcome.status();
  return outcome.ok() ? *std::move(outcome) : Outcome{};
}

void ExpectSameBits(const Outcome& a, const Outcome& b) {
  EXPECT_EQ(a.losses, b.losses);
  EXPECT_EQ(CheckSameBits(a.state, b.state), absl::OkStatus());
}

// Angle and length of the whole tensor: single elements of a narrow type say little.
void ExpectAligned(const LogicalTensor& a, const LogicalTensor& b, double cosine, double length,
                   const std::string& name) {
  double product = 0, a_square = 0, b_square = 0;
  for (int64_t i = 0; i < b.Elements(); ++i) {
    product += a.At(i) * b.At(i);
    a_square += a.At(i) * a.At(i);
    b_square += b.At(i) * b.At(i);
  }
  EXPECT_GE(product / std::sqrt(a_square * b_square), cosine) << name;
  EXPECT_NEAR(std::sqrt(a_square / b_square), 1, length) << name;
}

struct Case {
  v1::TrainingSpec::Precision precision;
  double cosine, length, loss;
};
constexpr Case kCases[] = {{kBf16, 0.999, 0.01, 0.005}, {kFp8, 0.98, 0.05, 0.02}};

class NarrowTest : public testing::TestWithParam<Case> {
 protected:
  RunOptions Options(const Layout& layout, int64_t steps) {
    return {.spec = NarrowJob(GetParam().precision), .layout = layout, .steps = steps};
  }
};

TEST_P(NarrowTest, LayoutsAgreeAsFarAsTheTypeGoes) {
  const Outcome one = Go(Options({}, 4));
  for (const Layout& layout :
       {Layout{.tensor = 2}, Layout{.tensor = 2, .sequence = true}, Layout{.pipeline = 3},
        Layout{.data = 2}, Layout{.data = 4, .zero = true}, kAll}) {
    const Outcome run = Go(Options(layout, 4));
    ASSERT_EQ(run.losses.size(), one.losses.size());
    for (size_t step = 0; step < one.losses.size(); ++step)
      EXPECT_NEAR(run.losses[step], one.losses[step], GetParam().loss * one.losses[step])
          << layout.Name() << " step " << step + 1;
    ASSERT_EQ(run.gradients.size(), one.gradients.size());
    for (const auto& [name, gradient] : one.gradients) {
      ExpectAligned(run.gradients.at(name), gradient, GetParam().cosine, GetParam().length,
                    absl::StrCat(layout.Name(), " ", name));
    }
    for (const auto& [name, tensor] : run.state) {
      EXPECT_EQ(tensor.dtype, MT_F32) << name;
      EXPECT_THAT(tensor.times_written, testing::Each(1)) << name;
    }
  }
}

TEST_P(NarrowTest, AgainAndAfterAResumeTheSameBits) {
  for (const Layout& layout : {Layout{}, kAll}) {
    const Outcome undisturbed = Go(Options(layout, 6));
    ExpectSameBits(Go(Options(layout, 6)), undisturbed);
    const Outcome half = Go(Options(layout, 2));
    RunOptions rest = Options(layout, 4);
    rest.resume = &half.state;
    rest.position = half.position;
    Outcome resumed = Go(rest);
    resumed.losses.insert(resumed.losses.begin(), half.losses.begin(), half.losses.end());
    ExpectSameBits(resumed, undisturbed);
  }
}

// In fp8 a tensor that is made again must meet the scale it had.
TEST_P(NarrowTest, RecomputationChangesNoBit) {
  for (const Layout& layout : {Layout{}, kAll}) {
    RunOptions options = Options(layout, 3);
    const Outcome kept = Go(options);
    options.spec.mutable_training()->set_recompute(v1::TrainingSpec::RECOMPUTE_BLOCK);
    ExpectSameBits(Go(options), kept);
  }
}

// A checkpoint holds float32 master weights: a run may change its precision.
TEST_P(NarrowTest, Float32GoesOnFromItsCheckpointAndBack) {
  const Outcome narrow = Go(Options(kAll, 3));
  RunOptions wide{.spec = NarrowJob(kFp32), .steps = 3, .resume = &narrow.state};
  wide.position = narrow.position;
  const Outcome undisturbed = Go(Options({}, 6)), middle = Go(wide);
  for (size_t step = 0; step < 3; ++step)
    EXPECT_NEAR(middle.losses[step], undisturbed.losses[step + 3],
                2 * GetParam().loss * undisturbed.losses[step + 3]);
  RunOptions back = Options(kAll, 1);
  back.resume = &middle.state;
  back.position = middle.position;
  EXPECT_LT(Go(back).losses.at(0), narrow.losses.at(0));
}

INSTANTIATE_TEST_SUITE_P(Precisions, NarrowTest, testing::ValuesIn(kCases), [](const auto& info) {
  return info.param.precision == kBf16 ? "bf16" : "fp8";
});

// Where every expert is chosen no rounding can choose another: what is left is the types. The router's own products are float32.
TEST(ExpertsTest, Bfloat16IsFloat32AsFarAsTheTypeGoes) {
  const auto job = [](v1::TrainingSpec::Precision precision) {
    v1::JobSpec spec = NarrowJob(precision);
    v1::ModelSpec& model = *spec.mutable_model();
    model.set_mlp_bias(true);
    v1::MoeSpec& moe = *model.mutable_moe();
    moe.set_experts(4);
    moe.set_top_k(4);
    moe.set_ffn(16);
    moe.set_shared_ffn(32);
    moe.set_score(v1::MoeSpec::SCORE_SIGMOID);
    moe.set_normalize(true);
    moe.set_scale(2);
    moe.set_groups(1);
    moe.set_top_groups(1);
    moe.set_router_bias(true);
    moe.set_balance(v1::MoeSpec::BALANCE_SEQUENCE);
    moe.set_balance_coefficient(0.1);
    moe.set_z_loss(0.01);
    return spec;
  };
  const Outcome wide = Go({.spec = job(kFp32), .steps = 2});
  for (const Layout& layout : {Layout{}, Layout{.tensor = 2, .sequence = true}, kAll}) {
    const Outcome run = Go({.spec = job(kBf16), .layout = layout, .steps = 2});
    EXPECT_NEAR(run.losses.at(1), wide.losses.at(1), 0.005 * wide.losses.at(1));
    for (const auto& [name, loss] : wide.auxiliary_losses.at(0))
      EXPECT_NEAR(run.auxiliary_losses.at(0).at(name), loss, 0.005 * loss) << name;
    for (const auto& [name, gradient] : wide.gradients)
      ExpectAligned(run.gradients.at(name), gradient, 0.999, 0.02,
                    absl::StrCat(layout.Name(), " ", name));
    RunOptions again{.spec = job(kBf16), .layout = layout, .steps = 2};
    again.spec.mutable_training()->set_recompute(v1::TrainingSpec::RECOMPUTE_BLOCK);
    ExpectSameBits(Go(again), run);
  }
}

TEST(InitialWeightsTest, AreThoseOfFloat32UnderAnyLayout) {
  const Outcome wide = Go({.spec = NarrowJob(kFp32), .steps = 0});
  for (const Layout& layout : {Layout{}, kAll}) {
    const Outcome narrow = Go({.spec = NarrowJob(kBf16), .layout = layout, .steps = 0});
    for (const auto& [name, tensor] : wide.state)
      EXPECT_TRUE(narrow.state.at(name).bytes == tensor.bytes) << name;
  }
}

// GPT-2's block and a window under narrow types; in fp8 every tensor of a product finds its scale on the way too.
TEST_P(NarrowTest, BiasesLayerNormsAndGeluAgreeToo) {
  RunOptions options = Options({}, 3);
  v1::ModelSpec& model = *options.spec.mutable_model();
  model.set_norm(v1::ModelSpec::NORM_LAYER);
  model.set_activation(v1::ModelSpec::ACTIVATION_GELU_TANH);
  model.set_qkv_bias(true);
  model.set_output_bias(true);
  model.set_mlp_bias(true);
  model.mutable_window()->set_size(5);
  RunOptions wide = options;
  wide.spec.mutable_training()->set_precision(kFp32);
  const Outcome exact = Go(wide), one = Go(options);
  for (size_t step = 0; step < exact.losses.size(); ++step)
    EXPECT_NEAR(one.losses[step], exact.losses[step], GetParam().loss * exact.losses[step]);
  options.layout = kAll;
  const Outcome all = Go(options);
  // What all keys share softmax hardly sees: the gradient of their bias is what cancelling leaves.
  for (const auto& [name, gradient] : one.gradients) {
    if (name.ends_with(".k_proj.bias")) continue;
    ExpectAligned(all.gradients.at(name), gradient, GetParam().cosine, GetParam().length, name);
  }
  options.spec.mutable_training()->set_recompute(v1::TrainingSpec::RECOMPUTE_BLOCK);
  ExpectSameBits(Go(options), all);
}

// Text with something to learn: each token is followed by one of four, so that the loss falls from
// ln(51) to ln(4).
class FollowingTokens : public BatchSource {
 public:
  absl::Status Fetch(std::span<const int64_t> ids, const Batch& batch) override {
    const std::span<int32_t> tokens = batch.tokens;
    const size_t width = tokens.size() / ids.size();
    for (size_t i = 0; i < ids.size(); ++i) {
      uint64_t random = static_cast<uint64_t>(ids[i]) * 0x9e3779b97f4a7c15u + 1;
      uint64_t token = random >> 40;
      for (size_t t = 0; t < width; ++t) {
        tokens[i * width + t] = static_cast<int32_t>(token % 51);
        random = random * 6364136223846793005u + 1442695040888963407u;
        token = 5 * token + 7 + (random >> 62);
      }
    }
    return absl::OkStatus();
  }
};

TEST(Fp8Test, LearnsAsBf16DoesOverAHundredSteps) {
  FollowingTokens text;
  RunOptions options{.spec = NarrowJob(kBf16), .backend = "cpu", .steps = 100, .samples = &text};
  options.spec.mutable_model()->set_layers(2);
  v1::TrainingSpec& training = *options.spec.mutable_training();
  training.set_steps(100);
  training.mutable_optimizer()->set_lr(5e-3);
  const Outcome bf16 = Go(options);
  training.set_precision(kFp8);
  const Outcome fp8 = Go(options);
  ASSERT_EQ(fp8.losses.size(), 100u);
  EXPECT_NE(fp8.losses, bf16.losses);
  EXPECT_LT(bf16.losses.back(), 0.65 * bf16.losses.front());
  // A batch is 64 tokens: what is compared is ten steps at a time.
  for (size_t first = 0; first < 100; first += 10) {
    const auto ten = [first](const Outcome& run) {
      return std::accumulate(run.losses.begin() + first, run.losses.begin() + first + 10, 0.0);
    };
    EXPECT_NEAR(ten(fp8) / ten(bf16), 1, 0.01) << "from step " << first;
  }
}

}  // namespace
}  // namespace mt::equivalence
