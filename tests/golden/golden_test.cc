// Every architecture equals Hugging Face transformers in float32: logits, every gradient, ten AdamW losses. The folders are made
// by make_golden.py, which tells what is in them; they are read by the importer itself, and gradients are compared under the names
// and in the layout that an export would write. In bf16 they are met as far as eight bits of mantissa go: every gradient's
// direction and length, and the losses; where a rounding may send a token to another expert, all gradients taken as one vector.
// Some are trained on packed samples too: documents that see only themselves, and labels without a loss.
// "emulated" is the CUDA kernels on the processor; where there is a CUDA device, the same
// runs on it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <map>

#include "absl/strings/match.h"
#include "common/spec/model_traits.h"
#include "tests/golden/cases.h"
#include "worker/checkpoint/hugging_face/import.h"
#include "worker/train/generate.h"
#include "worker/train/trainer.h"

namespace mt {
namespace {

constexpr int64_t kBatches = 2;  // make_golden.py's BATCHES: they take turns

// tokens, losses and gradients of one case, and logits or what packed samples have.
class Expected {
 public:
  static std::unique_ptr<Expected> Open(const std::string& folder, const std::string& name) {
    auto file = SafetensorsReader::Open(Env::Real(), JoinPath(folder, name));
    EXPECT_TRUE(file.ok()) << file.status();
    return file.ok() ? std::unique_ptr<Expected>(new Expected(*std::move(file))) : nullptr;
  }
  bool Has(const std::string& name) const { return file_->Find(name) != nullptr; }
  const std::vector<int64_t>& Shape(const std::string& name) const {
    return file_->Find(name)->shape;
  }
  template <typename T>
  std::vector<T> Values(const std::string& name) const {
    const SafetensorsEntry* entry = file_->Find(name);
    std::vector<T> values(entry->bytes() / sizeof(T));
    EXPECT_TRUE(file_->Read(*entry, 0, entry->bytes(), values.data()).ok()) << name;
    return values;
  }
  size_t CountOf(absl::string_view prefix) const {
    return std::count_if(file_->entries().begin(), file_->entries().end(),
                         [&](const auto& entry) { return absl::StartsWith(entry.name, prefix); });
  }

 private:
  explicit Expected(std::unique_ptr<SafetensorsReader> file) : file_(std::move(file)) {}
  const std::unique_ptr<SafetensorsReader> file_;
};

class GoldenSamples : public BatchSource {
 public:
  explicit GoldenSamples(const Expected& expected)
      : tokens_(expected.Values<int32_t>("tokens")),
        samples_(expected.Shape("tokens")[0]),
        width_(expected.Shape("tokens")[1]) {
    if (!expected.Has("document_start")) return;
    document_start_ = expected.Values<int32_t>("document_start");
    loss_mask_ = expected.Values<int32_t>("loss_mask");
  }
  absl::Status Fetch(std::span<const int64_t> sample_ids, const Batch& batch) override {
    for (size_t i = 0; i < sample_ids.size(); ++i) {
      const int64_t sample = sample_ids[i] % samples_;
      Copy(tokens_, sample, width_, i, batch.tokens);
      Copy(document_start_, sample, width_ - 1, i, batch.document_start);
      Copy(loss_mask_, sample, width_ - 1, i, batch.loss_mask);
    }
    return absl::OkStatus();
  }
  bool masks_loss() const override { return !loss_mask_.empty(); }

 private:
  template <typename T>
  static void Copy(const std::vector<int32_t>& from, int64_t sample, int64_t width, size_t place,
                   std::span<T> out) {
    if (!out.empty())
      std::copy_n(from.begin() + sample * width, width, out.begin() + place * width);
  }

  const std::vector<int32_t> tokens_;
  const int64_t samples_, width_;
  std::vector<int32_t> document_start_, loss_mask_;  // empty: whole samples
};

// As make_golden.py trains.
v1::JobSpec SpecOf(const v1::ModelSpec& model, const Expected& expected) {
  v1::JobSpec spec;
  *spec.mutable_model() = model;
  spec.mutable_data()->set_sequence_length(expected.Shape("tokens")[1] - 1);
  spec.mutable_data()->set_document_mask(expected.Has("document_start"));
  spec.mutable_data()->set_reset_positions(expected.Has("document_start"));
  v1::TrainingSpec& training = *spec.mutable_training();
  const int64_t batch = expected.Shape("tokens")[0] / kBatches;
  training.set_global_batch(batch);
  // Two micro-batches a step.
  training.set_micro_batch(batch / 2);
  training.set_steps(expected.Shape("losses")[0]);
  training.set_clip_grad_norm(-1);
  training.set_loss_chunk(10);
  training.set_precision(v1::TrainingSpec::PRECISION_FP32);
  v1::OptimizerSpec& optimizer = *training.mutable_optimizer();
  optimizer.set_lr(1e-2);
  optimizer.set_beta1(0.9);
  optimizer.set_beta2(0.95);
  optimizer.set_eps(1e-8);
  optimizer.set_weight_decay(0.1);
  training.mutable_schedule()->set_kind(v1::ScheduleSpec::KIND_CONSTANT);
  spec.mutable_parallel()->set_tensor(1);
  spec.mutable_parallel()->set_pipeline(1);
  spec.mutable_parallel()->set_data(1);
  return spec;
}

struct Target {
  const char* backend;
  v1::TrainingSpec::Precision precision;
};
constexpr auto kFp32 = v1::TrainingSpec::PRECISION_FP32, kBf16 = v1::TrainingSpec::PRECISION_BF16;

class GoldenTest : public testing::TestWithParam<std::tuple<const char*, Target>> {
 protected:
  virtual const char* file() const { return "expected.safetensors"; }
  void SetUp() override {
    const auto& [name, target] = GetParam();
    if (target.backend == std::string("cuda") && !LoadBackend("cuda").ok())
      GTEST_SKIP() << "skipped: no CUDA device";
    const char* root = std::getenv("MT_GOLDEN_FOLDER");  // where there is no source tree
    const std::string folder =
        JoinPath(root != nullptr ? root : MT_SOURCE_DIR "/tests/golden", name);
    expected_ = Expected::Open(folder, file());
    ASSERT_NE(expected_, nullptr);
    auto hub = HubFolder::Open(Env::Real(), folder);
    ASSERT_TRUE(hub.ok()) << hub.status();
    hub_ = *std::move(hub);
    auto operations = Operations::Create({.backend = target.backend, .threads = 1});
    ASSERT_TRUE(operations.ok()) << operations.status();
    operations_ = *std::move(operations);
    spec_ = SpecOf(hub_->model(), *expected_);
    spec_.mutable_training()->set_precision(target.precision);
    // The bias that chooses experts stands still in transformers.
    if (spec_.model().moe().selection_bias())
      spec_.mutable_model()->mutable_moe()->set_selection_bias_rate(0);
  }

  void Fill(const std::vector<TensorBox>& boxes) {
    const Backend& backend = operations_->backend();
    const absl::Status status =
        hub_->Load(spec_.model(), boxes, backend.host_memory() ? nullptr : &backend.abi());
    ASSERT_TRUE(status.ok()) << status;
  }
  std::vector<float> Values(const TensorBox& box) {
    const Backend& backend = operations_->backend();
    std::vector<float> values(static_cast<size_t>(box.Elements()));
    EXPECT_EQ(backend.abi().copy_to_host(values.data(), box.data, 4 * values.size(), nullptr),
              MT_OK);
    EXPECT_EQ(backend.abi().stream_synchronize(nullptr), MT_OK);
    return values;
  }
  // What is tested is this backend, and not another one that caught what it lacks.
  void ExpectNothingElsewhere() {
    const std::string backend = std::get<1>(GetParam()).backend;
    if (backend == "cpu") return;
    for (const v1::ResolvedOperation& operation : operations_->Resolved())
      EXPECT_EQ(operation.backend(), backend) << operation.operation();
  }
  void ExpectGradients(const std::vector<TensorBox>& boxes);
  void ExpectTraining();
  bool narrow() const { return spec_.training().precision() == kBf16; }

  std::unique_ptr<Expected> expected_;
  std::unique_ptr<HubFolder> hub_;
  v1::JobSpec spec_;
  std::unique_ptr<Operations> operations_;
};

TEST_P(GoldenTest, LogitsOfEveryPosition) {
  if (narrow()) GTEST_SKIP() << "text is generated in float32";
  const auto generator =
      Generator::Create(spec_.model(), spec_.training().precision(), 32, operations_.get());
  ASSERT_TRUE(generator.ok()) << generator.status();
  Fill((*generator)->LoadTargets());
  const std::vector<int64_t>& shape = expected_->Shape("logits");  // (batch, sequence, vocab)
  const std::vector<float> expected = expected_->Values<float>("logits");
  const std::vector<int32_t> samples = expected_->Values<int32_t>("tokens");
  std::vector<double> logits(static_cast<size_t>(shape[2]));
  for (int64_t b = 0; b < shape[0]; ++b) {
    std::vector<int32_t> tokens;
    for (int64_t t = 0; t < shape[1]; ++t) {
      tokens.push_back(samples[b * (shape[1] + 1) + t]);
      const absl::Status status = (*generator)->Logits(tokens, logits);
      ASSERT_TRUE(status.ok()) << status;
      for (int64_t v = 0; v < shape[2]; ++v) {
        ASSERT_NEAR(logits[v], expected[(b * shape[1] + t) * shape[2] + v], 1e-4)
            << "sample " << b << " position " << t << " token " << v;
      }
    }
  }
  ExpectNothingElsewhere();
}

// float32: every element within 1e-5 of the tensor's largest.
void ExpectEqual(const std::vector<float>& actual, const std::vector<float>& expected,
                 const std::string& name) {
  double difference = 0, largest = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference = std::max<double>(difference, std::abs(actual[i] - expected[i]));
    largest = std::max<double>(largest, std::abs(expected[i]));
  }
  EXPECT_LE(difference, 1e-5 * largest) << name;
}

// bf16: direction and length.
void ExpectAligned(const std::vector<float>& actual, const std::vector<float>& expected,
                   const std::string& name, double cosine, double length) {
  double product = 0, actual_square = 0, expected_square = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    product += static_cast<double>(actual[i]) * expected[i];
    actual_square += static_cast<double>(actual[i]) * actual[i];
    expected_square += static_cast<double>(expected[i]) * expected[i];
  }
  EXPECT_GE(product / std::sqrt(actual_square * expected_square), cosine) << name;
  EXPECT_NEAR(std::sqrt(actual_square / expected_square), 1, length) << name;
}

void GoldenTest::ExpectGradients(const std::vector<TensorBox>& boxes) {
  std::map<std::string, std::vector<float>> gradients;
  for (const TensorBox& box : boxes) {
    ASSERT_EQ(box.shape, box.global_shape) << box.tensor;
    gradients[box.tensor] = Values(box);
  }
  size_t compared = 0;
  std::vector<float> all_actual, all_expected;
  for (const HubTensor& tensor : HubTensorsOf(spec_.model())) {
    const std::string name = "gradient." + tensor.name;
    if (!expected_->Has(name)) continue;
    ASSERT_EQ(tensor.shape, expected_->Shape(name)) << name;
    const std::vector<float> expected = expected_->Values<float>(name);
    std::vector<float> actual(expected.size());
    for (const HubTensor::Part& part : tensor.parts) {
      const auto found = gradients.find(part.parameter.name);
      ASSERT_NE(found, gradients.end()) << part.parameter.name;
      const int64_t columns = part.parameter.shape.size() == 1 ? 1 : part.parameter.shape[1];
      for (int64_t i = 0; i < part.parameter.Elements(); ++i) {
        actual[part.view.first + i / columns * part.view.row_stride +
               i % columns * part.view.column_stride] = found->second[i];
      }
    }
    if (!narrow()) {
      ExpectEqual(actual, expected, tensor.name);
    } else if (!HasExperts(spec_.model())) {
      ExpectAligned(actual, expected, tensor.name, 0.998, 0.03);
    }
    all_actual.insert(all_actual.end(), actual.begin(), actual.end());
    all_expected.insert(all_expected.end(), expected.begin(), expected.end());
    ++compared;
  }
  // One token of the batch's sixty-four with another expert turns the whole by as much as 0.02 (seen by taking the attention's
  // forward pass alone from another backend).
  const bool experts = HasExperts(spec_.model());
  if (narrow())
    ExpectAligned(all_actual, all_expected, "all", experts ? 0.97 : 0.998, experts ? 0.05 : 0.02);
  EXPECT_EQ(compared, expected_->CountOf("gradient."));
}

void GoldenTest::ExpectTraining() {
  GoldenSamples samples(*expected_);
  auto trainer = Trainer::Create({.spec = spec_,
                                  .mesh = *Mesh::Create(1, 1, 1),
                                  .operations = operations_.get(),
                                  .samples = &samples});
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  Fill((*trainer)->LoadTargets());
  ASSERT_TRUE((*trainer)->FinishLoad({}).ok());
  const std::vector<float> losses = expected_->Values<float>("losses");
  double difference = 0;  // mean over the steps
  const double flips = HasExperts(spec_.model()) ? 4 : 1;
  for (size_t step = 0; step < losses.size(); ++step) {
    const auto result = (*trainer)->Step();
    ASSERT_TRUE(result.ok()) << result.status();
    double loss = result->loss;  // transformers' files have the plain one, MTP's the sum
    if (const auto mtp = result->auxiliary_losses.find("mtp");
        mtp != result->auxiliary_losses.end())
      loss += mtp->second;
    difference += std::abs(loss - losses[step]) / static_cast<double>(losses.size());
    // In bf16 the last of ten steps with a learning rate of 1e-2 show how a rounding grows: two
    // right backends are 0.02 from each other there, and a token with other experts counts for more.
    EXPECT_NEAR(loss, losses[step], narrow() ? 0.05 * flips : 1e-5 * losses[step])
        << "step " << step;
    if (step == 0) ExpectGradients((*trainer)->Gradients());
  }
  if (narrow()) {
    EXPECT_LE(difference, 0.02 * flips);
  }
  EXPECT_LT(losses.back(), 0.9 * losses.front());  // the optimizer had to be right for these
  ExpectNothingElsewhere();
}

TEST_P(GoldenTest, GradientsAndTenLosses) { ExpectTraining(); }

class PackedGoldenTest : public GoldenTest {
 protected:
  const char* file() const override { return "packed.safetensors"; }
};
TEST_P(PackedGoldenTest, GradientsAndTenLosses) { ExpectTraining(); }

std::string NameOf(const testing::TestParamInfo<std::tuple<const char*, Target>>& info) {
  const Target& target = std::get<1>(info.param);
  return absl::StrCat(std::get<0>(info.param), "_", target.backend,
                      target.precision == kBf16 ? "_bf16" : "");
}

INSTANTIATE_TEST_SUITE_P(
    Models, GoldenTest,
    testing::Combine(testing::ValuesIn(kGoldenCases),
                     testing::Values(Target{"reference", kFp32}, Target{"cpu", kFp32},
                                     Target{"emulated", kFp32}, Target{"cuda", kFp32})),
    NameOf);

INSTANTIATE_TEST_SUITE_P(
    Packed, PackedGoldenTest,
    testing::Combine(testing::ValuesIn(kPackedGoldenCases),
                     testing::Values(Target{"reference", kFp32}, Target{"cpu", kFp32},
                                     Target{"emulated", kFp32}, Target{"cuda", kFp32})),
    NameOf);

// Without experts: a quarter of the labels have no loss, and a token with another expert is too much of what is left.
INSTANTIATE_TEST_SUITE_P(PackedBf16, PackedGoldenTest,
                         testing::Combine(testing::Values("llama", "qwen3", "gpt2"),
                                          testing::Values(Target{"cpu", kBf16},
                                                          Target{"emulated", kBf16},
                                                          Target{"cuda", kBf16})),
                         NameOf);

INSTANTIATE_TEST_SUITE_P(
    Bf16, GoldenTest,
    testing::Combine(testing::ValuesIn(kGoldenCases),
                     testing::Values(Target{"reference", kBf16}, Target{"cpu", kBf16},
                                     Target{"emulated", kBf16}, Target{"cuda", kBf16})),
    NameOf);

}  // namespace
}  // namespace mt
