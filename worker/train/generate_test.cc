// For every kind of model: one token at a time against cached keys and values gives what the whole text at once gives.
#include "worker/train/generate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/abi/philox.h"
#include "tests/equivalence/harness.h"
#include "tests/equivalence/models.h"

namespace mt {
namespace {

using equivalence::LogicalState;
using equivalence::SmallModel;

constexpr int64_t kContext = 8;

struct Case {
  const char* backend;
  v1::TrainingSpec::Precision precision;
  double tolerance;
};
constexpr Case kFloat64 = {"reference", v1::TrainingSpec::PRECISION_FP64, 1e-10};
constexpr Case kFloat32 = {"cpu", v1::TrainingSpec::PRECISION_FP32, 1e-5};

class GeneratorTest : public testing::TestWithParam<SmallModel> {
 protected:
  // A generator of fresh weights, moved away from ones and zeros.
  void Make(const Case& c) {
    equivalence::RunOptions options{
        .spec = equivalence::SmallJobOf(GetParam()), .backend = c.backend, .steps = 0};
    options.spec.mutable_training()->set_precision(c.precision);
    absl::StatusOr<equivalence::Outcome> fresh = equivalence::RunJob(options);
    ASSERT_TRUE(fresh.ok()) << fresh.status();
    uint64_t index = 0;
    for (auto& [name, tensor] : fresh->state) {
      for (int64_t i = 0; i < tensor.Elements(); ++i) {
        const double noise = 0.2 * mt_normal(1, 2, index++);
        if (tensor.dtype == MT_F64) {
          reinterpret_cast<double*>(tensor.bytes.data())[i] += noise;
        } else {
          reinterpret_cast<float*>(tensor.bytes.data())[i] += static_cast<float>(noise);
        }
      }
    }
    auto operations = Operations::Create({.backend = c.backend, .threads = 1});
    ASSERT_TRUE(operations.ok()) << operations.status();
    operations_ = *std::move(operations);
    auto generator =
        Generator::Create(options.spec.model(), c.precision, kContext, operations_.get());
    ASSERT_TRUE(generator.ok()) << generator.status();
    generator_ = *std::move(generator);
    ASSERT_TRUE(
        equivalence::FillBoxes(fresh->state, generator_->LoadTargets(), operations_->backend())
            .ok());
    vocab_ = options.spec.model().vocab();
  }
  std::vector<double> Logits(const std::vector<int32_t>& tokens) {
    std::vector<double> logits(static_cast<size_t>(vocab_));
    const absl::Status status = generator_->Logits(tokens, logits);
    EXPECT_TRUE(status.ok()) << status;
    return logits;
  }
  // After another text, of which nothing can be used.
  std::vector<double> LogitsFromScratch(const std::vector<int32_t>& tokens) {
    Logits({tokens.front() == 0 ? 1 : 0, 7, 8, 9});
    return Logits(tokens);
  }
  void ExpectCacheChangesNothing(const Case& c) {
    Make(c);
    if (HasFatalFailure()) return;
    std::vector<int32_t> text;
    std::vector<std::vector<double>> cached;
    // Over the end of the window, more than once.
    for (int64_t i = 0; i < 2 * kContext + 3; ++i) {
      text.push_back(static_cast<int32_t>((i * i + 3 * i + 2) % vocab_));
      cached.push_back(Logits(text));
    }
    for (size_t length = 1; length <= text.size(); ++length) {
      const std::vector<int32_t> tokens(text.begin(), text.begin() + static_cast<long>(length));
      const std::vector<double> expected = LogitsFromScratch(tokens);
      double largest = 1;
      for (const double logit : expected) largest = std::max(largest, std::abs(logit));
      for (size_t id = 0; id < expected.size(); ++id)
        ASSERT_NEAR(cached[length - 1][id], expected[id], c.tolerance * largest)
            << length << " tokens, logit " << id;
    }
  }

  std::unique_ptr<Operations> operations_;
  std::unique_ptr<Generator> generator_;
  int64_t vocab_ = 0;
};

TEST_P(GeneratorTest, CachedKeysAndValuesChangeNoLogitInFloat64) {
  ExpectCacheChangesNothing(kFloat64);
}
TEST_P(GeneratorTest, CachedKeysAndValuesChangeNoLogitInFloat32) {
  ExpectCacheChangesNothing(kFloat32);
}

// In memory that the host cannot touch, as late as the host can tell.
TEST_P(GeneratorTest, DevicesGiveTheLogitsOfHostMemory) {
  std::vector<std::vector<double>> logits[2];
  for (const char* backend : {"reference", "fakedevice"}) {
    Make({backend, v1::TrainingSpec::PRECISION_BF16, 0});
    if (HasFatalFailure()) return;
    std::vector<int32_t> text;
    for (int64_t i = 0; i < 2 * kContext + 3; ++i) {
      text.push_back(static_cast<int32_t>((i * i + 3 * i + 2) % vocab_));
      logits[operations_->backend().host_memory() ? 0 : 1].push_back(Logits(text));
    }
    generator_.reset();
  }
  EXPECT_EQ(logits[1], logits[0]);
}

TEST_P(GeneratorTest, GreedyTokensAreThoseWithoutCache) {
  Make(kFloat32);
  if (HasFatalFailure()) return;
  const std::vector<int32_t> prompt = {5, 3, 11};
  std::vector<int32_t> text = prompt;
  for (int i = 0; i < 12; ++i)
    text.push_back(SampleToken(LogitsFromScratch(text), {.temperature = 0}, 0.5));
  const absl::StatusOr<std::vector<int32_t>> added =
      generator_->Generate(prompt, {.max_tokens = 12});
  ASSERT_TRUE(added.ok()) << added.status();
  EXPECT_EQ(*added, std::vector<int32_t>(text.begin() + 3, text.end()));
}

INSTANTIATE_TEST_SUITE_P(Models, GeneratorTest, testing::ValuesIn(equivalence::AllModels()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace mt
