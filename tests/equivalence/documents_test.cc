// Documents and masked labels within samples: every layout equals one rank, and what is packed trains as its documents would alone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/equivalence/harness.h"
#include "tests/equivalence/models.h"

namespace mt::equivalence {
namespace {

constexpr int64_t kSteps = 3;
constexpr int64_t kLength = 8;  // of SmallJob's samples
constexpr Layout kAll = {.tensor = 2, .data = 2, .pipeline = 2, .sequence = true, .zero = true};

v1::JobSpec JobOf(const SmallModel& model) {
  v1::JobSpec spec = SmallJobOf(model);
  spec.mutable_training()->set_precision(v1::TrainingSpec::PRECISION_FP64);
  spec.mutable_data()->set_document_mask(true);
  spec.mutable_data()->set_reset_positions(true);
  return spec;
}

absl::StatusOr<Outcome> Trained(const v1::JobSpec& spec, const Layout& layout, BatchSource* samples,
                                int64_t steps = kSteps) {
  return RunJob({.spec = spec,
                 .layout = layout,
                 .backend = spec.training().precision() == v1::TrainingSpec::PRECISION_FP64
                                ? "reference"
                                : "cpu",
                 .steps = steps,
                 .samples = samples});
}

// One rank's run, made once.
const Outcome& OneRank(const SmallModel& model) {
  static std::map<std::string, Outcome> runs;
  if (!runs.contains(model.name)) {
    const v1::JobSpec spec = JobOf(model);
    MaskedSamples samples(spec.model().vocab(), kLength);
    absl::StatusOr<Outcome> run = Trained(spec, {}, &samples);
    EXPECT_TRUE(run.ok()) << run.status();
    if (run.ok()) DropRounding(model, &run->gradients);
    runs[model.name] = run.ok() ? *std::move(run) : Outcome{};
  }
  return runs[model.name];
}

std::vector<SmallModel> Models() {
  std::vector<SmallModel> models = AllModels();
  models.insert(models.begin(), {.name = "llama", .model = SmallJob().model()});
  return models;
}

// Each part that sees documents or positions once; the others are in the slow tier.
std::vector<SmallModel> FewModels() {
  std::vector<SmallModel> models = Models();
  std::erase_if(models, [](const SmallModel& model) {
    const std::vector<std::string> few = {"llama", "qk_norm",      "gpt2",
                                          "sinks", "moe_deepseek", "deepseek_v3"};
    return std::find(few.begin(), few.end(), model.name) == few.end();
  });
  return models;
}

class DocumentLayoutTest : public testing::TestWithParam<std::tuple<SmallModel, Layout>> {};

TEST_P(DocumentLayoutTest, EqualsOneRank) {
  const auto& [model, layout] = GetParam();
  const v1::JobSpec spec = JobOf(model);
  MaskedSamples samples(spec.model().vocab(), kLength);
  absl::StatusOr<Outcome> run = Trained(spec, layout, &samples);
  ASSERT_TRUE(run.ok()) << run.status();
  DropRounding(model, &run->gradients);
  EXPECT_EQ(CheckEquivalent(*run, OneRank(model), 1e-9), absl::OkStatus());
}

std::string NameOf(const testing::TestParamInfo<std::tuple<SmallModel, Layout>>& info) {
  return std::get<0>(info.param).name + "_" + std::get<1>(info.param).Name();
}
INSTANTIATE_TEST_SUITE_P(Few, DocumentLayoutTest,
                         testing::Combine(testing::ValuesIn(FewModels()),
                                          testing::Values(Layout{.pipeline = 4},
                                                          Layout{.data = 4, .zero = true}, kAll)),
                         NameOf);
INSTANTIATE_TEST_SUITE_P(All, DocumentLayoutTest,
                         testing::Combine(testing::ValuesIn(Models()),
                                          testing::ValuesIn(AllLayouts())),
                         NameOf);

class DocumentBitsTest : public testing::TestWithParam<SmallModel> {};

TEST_P(DocumentBitsTest, RecomputingAndResumingChangeNoBitAndAnEvaluationSeesTheSame) {
  RunOptions options{
      .spec = JobOf(GetParam()), .layout = kAll, .backend = "cpu", .steps = 4, .evaluate = true};
  options.spec.mutable_training()->set_precision(v1::TrainingSpec::PRECISION_FP32);
  options.spec.mutable_training()->set_z_loss(0);
  MaskedSamples samples(options.spec.model().vocab(), kLength);
  options.samples = &samples;
  const absl::StatusOr<Outcome> undisturbed = RunJob(options);
  ASSERT_TRUE(undisturbed.ok()) << undisturbed.status();
  EXPECT_EQ(undisturbed->held_out_losses, undisturbed->losses);
  options.evaluate = false;
  options.spec.mutable_training()->set_recompute(v1::TrainingSpec::RECOMPUTE_BLOCK);
  options.steps = 2;
  const absl::StatusOr<Outcome> half = RunJob(options);
  ASSERT_TRUE(half.ok()) << half.status();
  options.resume = &half->state;
  options.position = half->position;
  const absl::StatusOr<Outcome> rest = RunJob(options);
  ASSERT_TRUE(rest.ok()) << rest.status();
  EXPECT_EQ(rest->losses[1], undisturbed->losses[3]);
  EXPECT_EQ(CheckSameBits(rest->state, undisturbed->state), absl::OkStatus());
}
INSTANTIATE_TEST_SUITE_P(Few, DocumentBitsTest, testing::ValuesIn(FewModels()),
                         [](const auto& info) { return info.param.name; });

// ---- a packed sample and its documents

constexpr int32_t kEod = 0, kPadding = 3;

// Samples of whole documents; what is behind the last one is padding, a document of its own. Neither it nor what follows an end of
// document has a loss.
class DocumentSamples : public BatchSource {
 public:
  explicit DocumentSamples(std::vector<std::vector<int>> lengths) : lengths_(std::move(lengths)) {}

  absl::Status Fetch(std::span<const int64_t> sample_ids, const Batch& batch) override {
    for (size_t i = 0; i < sample_ids.size(); ++i) {
      std::vector<int32_t> tokens, starts;
      const auto& documents = lengths_[static_cast<size_t>(sample_ids[i])];
      for (const int length : documents) {
        const auto start = static_cast<int32_t>(tokens.size());
        // A document's text follows from its length alone.
        for (int t = 0; t < length; ++t) {
          tokens.push_back(
              t + 1 == length
                  ? kEod
                  : 4 + static_cast<int32_t>(Hash(static_cast<uint64_t>(31 * length + t)) % 40));
          starts.push_back(start);
        }
      }
      const auto text = static_cast<int64_t>(tokens.size());
      starts.resize(kLength, static_cast<int32_t>(text));
      tokens.resize(kLength + 1, kPadding);
      for (int64_t t = 0; t <= kLength; ++t) {
        const size_t at = i * (kLength + 1) + static_cast<size_t>(t);
        if (!batch.tokens.empty()) batch.tokens[at] = tokens[static_cast<size_t>(t)];
      }
      for (int64_t t = 0; t < kLength; ++t) {
        const size_t at = i * kLength + static_cast<size_t>(t);
        if (!batch.document_start.empty())
          batch.document_start[at] = starts[static_cast<size_t>(t)];
        if (!batch.loss_mask.empty())
          batch.loss_mask[at] = t < text && tokens[static_cast<size_t>(t)] != kEod;
      }
    }
    return absl::OkStatus();
  }
  bool masks_loss() const override { return true; }

 private:
  const std::vector<std::vector<int>> lengths_;  // of the documents of each sample
};

class PackedTest : public testing::TestWithParam<SmallModel> {
 protected:
  // Loss and gradient of the documents of lengths 3, 5, 1, 2, 4, 8, as many samples as they are put into.
  static absl::StatusOr<Outcome> Of(v1::JobSpec spec, const std::vector<std::vector<int>>& samples,
                                    const Layout& layout = {}) {
    spec.mutable_training()->set_global_batch(static_cast<int64_t>(samples.size()));
    spec.mutable_training()->set_micro_batch(1);
    DocumentSamples source(samples);
    return Trained(spec, layout, &source, /*steps=*/1);
  }
  static v1::JobSpec Job() {
    v1::JobSpec spec = JobOf(GetParam());
    // What a router balances are all tokens, and padding is some.
    if (spec.model().has_moe()) spec.mutable_model()->mutable_moe()->set_balance_coefficient(0);
    if (spec.model().has_moe()) spec.mutable_model()->mutable_moe()->set_z_loss(0);
    if (spec.model().has_moe()) spec.mutable_model()->mutable_moe()->set_capacity_factor(0);
    return spec;
  }
  const std::vector<std::vector<int>> alone_ = {{3}, {5}, {1}, {2}, {4}, {8}},
                                      packed_ = {{3, 5}, {1, 2, 4}, {8}, {}};
};

TEST_P(PackedTest, SampleTrainsAsItsDocumentsAlone) {
  const v1::JobSpec spec = Job();
  absl::StatusOr<Outcome> alone = Of(spec, alone_);
  ASSERT_TRUE(alone.ok()) << alone.status();
  DropRounding(GetParam(), &alone->gradients);
  for (const Layout& layout : {Layout{}, kAll}) {
    absl::StatusOr<Outcome> packed = Of(spec, packed_, layout);
    ASSERT_TRUE(packed.ok()) << packed.status();
    DropRounding(GetParam(), &packed->gradients);
    EXPECT_EQ(CheckEquivalent(*packed, *alone, 1e-9), absl::OkStatus()) << layout.Name();
  }
}

// Each switch is what makes them equal.
TEST_P(PackedTest, WithoutTheMaskOrTheResetItDoesNot) {
  v1::JobSpec spec = Job();
  const absl::StatusOr<Outcome> alone = Of(spec, alone_);
  spec.mutable_data()->set_document_mask(false);
  const absl::StatusOr<Outcome> unmasked = Of(spec, packed_);
  spec.mutable_data()->set_document_mask(true);
  spec.mutable_data()->set_reset_positions(false);
  const absl::StatusOr<Outcome> in_place = Of(spec, packed_);
  spec.mutable_data()->set_document_mask(false);
  const absl::StatusOr<Outcome> neither = Of(spec, packed_);
  ASSERT_TRUE(alone.ok() && unmasked.ok() && in_place.ok() && neither.ok())
      << alone.status() << unmasked.status() << in_place.status() << neither.status();
  EXPECT_GT(std::abs(unmasked->losses[0] - alone->losses[0]), 1e-6);
  EXPECT_GT(std::abs(unmasked->losses[0] - neither->losses[0]), 1e-9)
      << "where documents see each other, distances change";
  // Rotations know distances only.
  const double moved = std::abs(in_place->losses[0] - alone->losses[0]);
  if (spec.model().position() == v1::ModelSpec::POSITION_LEARNED) {
    EXPECT_GT(moved, 1e-6);
  } else {
    EXPECT_LT(moved, 1e-9);
  }
}
INSTANTIATE_TEST_SUITE_P(Models, PackedTest, testing::ValuesIn(Models()),
                         [](const auto& info) { return info.param.name; });

// ---- what labels without a loss are worth

class UniformMask : public HashedSamples {
 public:
  UniformMask(const v1::JobSpec& spec, uint8_t mask)
      : HashedSamples(spec.model().vocab(), spec.data().sequence_length()), mask_(mask) {}
  absl::Status Fetch(std::span<const int64_t> sample_ids, const Batch& batch) override {
    std::fill(batch.loss_mask.begin(), batch.loss_mask.end(), mask_);
    return batch.tokens.empty() ? absl::OkStatus() : HashedSamples::Fetch(sample_ids, batch);
  }
  bool masks_loss() const override { return true; }

 private:
  const uint8_t mask_;
};

TEST(LossMask, ThatMasksNothingChangesNothing) {
  for (const SmallModel& model : AllModels()) {
    if (model.name != "mtp" && model.name != "moe_mixtral") continue;
    v1::JobSpec spec = SmallJobOf(model);
    UniformMask ones(spec, 1);
    const absl::StatusOr<Outcome> plain = Trained(spec, kAll, nullptr),
                                  masked = Trained(spec, kAll, &ones);
    ASSERT_TRUE(plain.ok() && masked.ok()) << plain.status() << masked.status();
    EXPECT_EQ(CheckEquivalent(*masked, *plain, 1e-12), absl::OkStatus()) << model.name;
    for (size_t step = 0; step < plain->total_losses.size(); ++step)
      EXPECT_NEAR(masked->total_losses[step], plain->total_losses[step], 1e-12) << model.name;
  }
}

// A global batch without labels: a step like any other, of which nothing is learned.
TEST(LossMask, OfNoLabelAtAllLeavesDecayAlone) {
  for (const Layout& layout : {Layout{}, kAll}) {
    v1::JobSpec spec = SmallJob();
    UniformMask zeros(spec, 0);
    RunOptions options{.spec = spec, .layout = layout, .steps = 2, .samples = &zeros};
    const absl::StatusOr<Outcome> run = RunJob(options);
    ASSERT_TRUE(run.ok()) << run.status();
    EXPECT_THAT(run->losses, testing::Each(0.0));
    EXPECT_THAT(run->gradient_norms, testing::Each(0.0));
    EXPECT_EQ(run->position.step, 2);
    EXPECT_EQ(run->position.consumed_samples, 2 * spec.training().global_batch());
    for (const auto& [name, tensor] : run->state) {
      for (int64_t i = 0; i < tensor.Elements(); ++i)
        ASSERT_TRUE(std::isfinite(tensor.At(i))) << name;
    }
    // Decay is not applied to norms, so they are as they were made.
    const LogicalTensor& norm = run->state.at("model.norm.weight");
    EXPECT_EQ(norm.At(0), 1.0);
  }
}

// What stands where no label has a loss, and nothing behind it has one either, does not matter.
TEST(LossMask, LabelsWithoutALossAreNotLearned) {
  class Tail : public HashedSamples {
   public:
    Tail(const v1::JobSpec& spec, int32_t tail)
        : HashedSamples(spec.model().vocab(), kLength), tail_(tail) {}
    absl::Status Fetch(std::span<const int64_t> sample_ids, const Batch& batch) override {
      if (!batch.tokens.empty()) MT_RETURN_IF_ERROR(HashedSamples::Fetch(sample_ids, batch));
      for (size_t i = 0; i < sample_ids.size(); ++i) {
        for (size_t t = 5; t <= kLength && !batch.tokens.empty(); ++t)
          batch.tokens[i * (kLength + 1) + t] = tail_;
        for (size_t t = 0; t < kLength && !batch.loss_mask.empty(); ++t)
          batch.loss_mask[i * kLength + t] = t < 4;
      }
      return absl::OkStatus();
    }
    bool masks_loss() const override { return true; }

   private:
    const int32_t tail_;
  };
  v1::JobSpec spec = SmallJob();
  Tail one(spec, 1), other(spec, 2);
  const absl::StatusOr<Outcome> a = Trained(spec, {.data = 2}, &one),
                                b = Trained(spec, {.data = 2}, &other);
  ASSERT_TRUE(a.ok() && b.ok()) << a.status() << b.status();
  EXPECT_EQ(a->losses, b->losses);
}

TEST(Documents, ThatDoNotFollowEachOtherAreRefused) {
  class Broken : public MaskedSamples {
   public:
    using MaskedSamples::MaskedSamples;
    absl::Status Fetch(std::span<const int64_t> sample_ids, const Batch& batch) override {
      MT_RETURN_IF_ERROR(MaskedSamples::Fetch(sample_ids, batch));
      if (!batch.document_start.empty()) batch.document_start[3] = 5;
      return absl::OkStatus();
    }
  };
  const v1::JobSpec spec = JobOf(Models()[0]);
  Broken samples(spec.model().vocab(), kLength);
  const absl::StatusOr<Outcome> run = Trained(spec, {}, &samples);
  EXPECT_EQ(run.status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(run.status().message(),
              testing::HasSubstr("sample 0: the document of token 3 begins at token 5"));
}

}  // namespace
}  // namespace mt::equivalence
