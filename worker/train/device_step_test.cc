// A step on a device, proven on one that does nothing until the host waits: the results are those of
// the reference backend, bit for bit, with one wait per step; recorded passes change nothing; the
// state is changed after the event that guards it.
#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/abi/mt_backend.h"
#include "tests/equivalence/harness.h"
#include "worker/train/testing/deferred_backend.h"
#include "worker/train/trainer.h"

namespace mt {
namespace {

using equivalence::HashedSamples;
using equivalence::MaskedSamples;
using equivalence::SmallJob;
using ::testing::Contains;
using testing::DeferredLog;
using ::testing::HasSubstr;
using ::testing::Not;

struct Training {
  std::vector<double> losses, norms;
  std::vector<std::vector<char>> state;  // by box of CheckpointState
  std::vector<int64_t> waits;            // by step: the host waited for work
  std::vector<std::vector<int32_t>> enqueued;
  PhaseSeconds seconds;  // of the last step
};

class DeviceStepTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const absl::StatusOr<const Backend*> backend = LoadBackend("deferred");
    ASSERT_TRUE(backend.ok()) << backend.status();
    void* const library = dlopen((*backend)->path().c_str(), RTLD_NOW | RTLD_NOLOAD);
    log_ = reinterpret_cast<testing::DeferredLogFunction>(
        dlsym(library, testing::kDeferredLogSymbol))();
    *log_ = {};
  }

  static v1::JobSpec Job(v1::TrainingSpec::Precision precision, int64_t micro_batches) {
    v1::JobSpec spec = SmallJob();
    v1::ModelSpec& model = *spec.mutable_model();
    model.set_layers(2);
    model.set_hidden(32);
    model.set_heads(4);
    model.set_kv_heads(2);
    model.set_head_dim(16);
    model.set_ffn(32);
    spec.mutable_training()->set_precision(precision);
    spec.mutable_training()->set_global_batch(2 * micro_batches);
    return spec;
  }

  // What each step changes of its passes is on the device: masks, documents, the number of labels.
  v1::JobSpec MaskedJob() {
    v1::JobSpec spec = Job(v1::TrainingSpec::PRECISION_FP32, 3);
    spec.mutable_model()->mutable_mtp()->set_layers(1);
    spec.mutable_model()->mutable_mtp()->set_loss_coefficient(0.3);
    spec.mutable_data()->set_document_mask(true);
    spec.mutable_data()->set_reset_positions(true);
    samples_ = std::make_unique<MaskedSamples>(51, 8);
    return spec;
  }

  std::unique_ptr<Trainer> Make(const v1::JobSpec& spec, const char* backend) {
    auto operations = Operations::Create({.backend = backend, .threads = 1});
    EXPECT_TRUE(operations.ok()) << operations.status();
    operations_ = *std::move(operations);
    auto trainer = Trainer::Create({.spec = spec,
                                    .mesh = *Mesh::Create(1, 1, 1),
                                    .operations = operations_.get(),
                                    .samples = samples_.get()});
    EXPECT_TRUE(trainer.ok()) << trainer.status();
    EXPECT_TRUE((*trainer)->InitialiseWeights().ok());
    return *std::move(trainer);
  }

  Training Train(const v1::JobSpec& spec, const char* backend, int steps) {
    const std::unique_ptr<Trainer> trainer = Make(spec, backend);
    Training run;
    for (int step = 0; step < steps; ++step) {
      log_->enqueued.clear();
      log_->waits_for_work = 0;
      const absl::StatusOr<StepResult> result = trainer->Step();
      EXPECT_TRUE(result.ok()) << result.status();
      if (!result.ok()) return run;
      run.losses.push_back(result->loss);
      run.norms.push_back(result->grad_norm);
      run.waits.push_back(log_->waits_for_work);
      run.enqueued.push_back(log_->enqueued);
      run.seconds = result->seconds;
    }
    for (const TensorBox& box : trainer->CheckpointState()) run.state.push_back(Bytes(box));
    return run;
  }

  std::vector<char> Bytes(const TensorBox& box) {
    const mt_backend& abi = operations_->backend().abi();
    std::vector<char> bytes(static_cast<size_t>(box.Elements()) * (box.dtype == MT_F64 ? 8 : 4));
    EXPECT_EQ(abi.copy_to_host(bytes.data(), box.data, bytes.size(), nullptr), MT_OK);
    EXPECT_EQ(abi.stream_synchronize(nullptr), MT_OK);
    return bytes;
  }

  std::unique_ptr<BatchSource> samples_ = std::make_unique<HashedSamples>(51, 8);
  std::unique_ptr<Operations> operations_;
  DeferredLog* log_ = nullptr;
};

void ExpectSameBits(const Training& a, const Training& b) {
  EXPECT_EQ(a.losses, b.losses);
  EXPECT_EQ(a.norms, b.norms);
  EXPECT_TRUE(a.state == b.state);
}

TEST_F(DeviceStepTest, OneWaitPerStepAndTheBitsOfTheReference) {
  for (const auto precision : {v1::TrainingSpec::PRECISION_FP32, v1::TrainingSpec::PRECISION_BF16,
                               v1::TrainingSpec::PRECISION_FP8}) {
    const v1::JobSpec spec = Job(precision, 1);
    const Training deferred = Train(spec, "deferred", 4);
    ExpectSameBits(deferred, Train(spec, "reference", 4));
    // The first step also does what making the weights has left.
    EXPECT_THAT(deferred.waits, ::testing::Each(1));
    EXPECT_EQ(log_->undeclared_products, 0);
  }
}

// Two buffers of tokens: before the third micro-batch the host waits for the first one's copy.
TEST_F(DeviceStepTest, TokensOfAMicroBatchAreNotOverwrittenBeforeTheyWereRead) {
  const v1::JobSpec spec = Job(v1::TrainingSpec::PRECISION_FP32, 4);
  const Training deferred = Train(spec, "deferred", 3);
  ExpectSameBits(deferred, Train(spec, "reference", 3));
  EXPECT_THAT(deferred.waits, ::testing::Each(3));
}

TEST_F(DeviceStepTest, RecordedPassesChangeNoBitAndAreRecordedOnce) {
  v1::JobSpec spec = Job(v1::TrainingSpec::PRECISION_BF16, 3);
  const Training recorded = Train(spec, "deferred", 5);
  // Forward and backward of the first micro-batch, and of the others.
  EXPECT_EQ(log_->graphs_recorded, 4);
  EXPECT_THAT(recorded.enqueued[0], Contains(static_cast<int32_t>(MT_OP_MATMUL)));
  EXPECT_EQ(std::count(recorded.enqueued[4].begin(), recorded.enqueued[4].end(),
                       static_cast<int32_t>(DeferredLog::kLaunch)),
            6);
  EXPECT_THAT(recorded.enqueued[4], Not(Contains(static_cast<int32_t>(MT_OP_MATMUL))));
  spec.mutable_runtime()->set_graphs("off");
  const Training plain = Train(spec, "deferred", 5);
  EXPECT_EQ(log_->graphs_recorded, 4);
  EXPECT_THAT(plain.enqueued[4], Contains(static_cast<int32_t>(MT_OP_MATMUL)));
  ExpectSameBits(recorded, plain);
}

TEST_F(DeviceStepTest, RecordedPassesSeeEachStepsOwnLabelsAndDocuments) {
  v1::JobSpec spec = MaskedJob();
  const Training recorded = Train(spec, "deferred", 5);
  EXPECT_EQ(log_->graphs_recorded, 4);
  EXPECT_THAT(recorded.enqueued[4], Not(Contains(static_cast<int32_t>(MT_OP_MATMUL))));
  ExpectSameBits(recorded, Train(spec, "reference", 5));
  spec.mutable_runtime()->set_graphs("off");
  ExpectSameBits(recorded, Train(spec, "deferred", 5));
}

// The loss's scale is an argument of recorded passes: batches of another size need other records.
TEST_F(DeviceStepTest, PassesAreRecordedAnewWhenTheBatchGrows) {
  v1::JobSpec spec = Job(v1::TrainingSpec::PRECISION_FP32, 4);
  v1::BatchRampup& rampup = *spec.mutable_training()->mutable_batch_rampup();
  rampup.set_start(4);
  rampup.set_increment(4);
  rampup.set_samples(12);  // three steps of two micro-batches, then four of them
  const Training recorded = Train(spec, "deferred", 6);
  EXPECT_EQ(log_->graphs_recorded, 8);
  ExpectSameBits(recorded, Train(spec, "reference", 6));
  spec.mutable_runtime()->set_graphs("off");
  ExpectSameBits(recorded, Train(spec, "deferred", 6));
}

// The number of labels is the host's before the step begins.
TEST_F(DeviceStepTest, OneWaitPerStepWithMasksToo) {
  v1::JobSpec spec = MaskedJob();
  spec.mutable_training()->set_global_batch(2);
  EXPECT_THAT(Train(spec, "deferred", 4).waits, ::testing::Each(1));
}

TEST_F(DeviceStepTest, WhatCannotBeRecordedIsRunAsItIs) {
  const v1::JobSpec spec = Job(v1::TrainingSpec::PRECISION_FP32, 2);
  log_->refuse_graphs = true;
  const Training refused = Train(spec, "deferred", 3);
  EXPECT_EQ(log_->graphs_recorded, 0);
  ExpectSameBits(refused, Train(spec, "reference", 3));
}

TEST_F(DeviceStepTest, UpdateComesAfterTheEventThatGuardsTheState) {
  const std::unique_ptr<Trainer> trainer =
      Make(Job(v1::TrainingSpec::PRECISION_BF16, 1), "deferred");
  const mt_backend& abi = operations_->backend().abi();
  mt_event copied = nullptr;
  ASSERT_EQ(abi.event_create(&copied), MT_OK);
  log_->enqueued.clear();
  ASSERT_TRUE(trainer->BeforeNextUpdate(copied).ok());
  ASSERT_TRUE(trainer->Step().ok());
  const auto& enqueued = log_->enqueued;
  const auto at = std::find(enqueued.begin(), enqueued.end(), DeferredLog::kEventWait);
  ASSERT_NE(at, enqueued.end());
  // Everything that changes the state is after it; the passes are before it.
  EXPECT_EQ(std::find(enqueued.begin(), at, MT_OP_ADAMW), at);
  EXPECT_NE(std::find(at, enqueued.end(), MT_OP_ADAMW), enqueued.end());
  EXPECT_NE(std::find(enqueued.begin(), at, MT_OP_EMBEDDING_BACKWARD), at);
  log_->enqueued.clear();
  ASSERT_TRUE(trainer->Step().ok());
  EXPECT_THAT(log_->enqueued, Not(Contains(DeferredLog::kEventWait))) << "holds for one step";
  abi.event_destroy(copied);
}

TEST_F(DeviceStepTest, LossThatIsNotFiniteLeavesTheState) {
  const std::unique_ptr<Trainer> trainer =
      Make(Job(v1::TrainingSpec::PRECISION_BF16, 1), "deferred");
  ASSERT_TRUE(trainer->Step().ok());
  const std::vector<TensorBox> boxes = trainer->LoadTargets();
  const TensorBox& norm = *std::find_if(boxes.begin(), boxes.end(), [](const TensorBox& box) {
    return box.tensor == "model.norm.weight";
  });
  const std::vector<float> nan(static_cast<size_t>(norm.Elements()), std::nanf(""));
  const mt_backend& abi = operations_->backend().abi();
  abi.copy_to_device(norm.data, nan.data(), 4 * nan.size(), nullptr);
  ASSERT_TRUE(trainer->FinishLoad(trainer->position()).ok());
  std::vector<std::vector<char>> before;
  for (const TensorBox& box : boxes) before.push_back(Bytes(box));
  const absl::Status status = trainer->Step({.stop = true}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("step 2: loss nan"));
  for (size_t i = 0; i < boxes.size(); ++i)
    EXPECT_TRUE(Bytes(boxes[i]) == before[i]) << boxes[i].tensor;
  EXPECT_EQ(trainer->position().step, 1);
}

// The deferred device's milliseconds are tasks, so the phases add up to what was enqueued.
TEST_F(DeviceStepTest, PhasesAreReadFromTheDevicesEvents) {
  const Training run = Train(Job(v1::TrainingSpec::PRECISION_FP32, 2), "deferred", 1);
  const PhaseSeconds& s = run.seconds;
  for (const double seconds : {s.forward, s.backward, s.grad_sync, s.optimizer})
    EXPECT_GE(seconds, 1e-3);
  const double sum = 1e3 * (s.forward + s.backward + s.grad_sync + s.optimizer);
  EXPECT_NEAR(sum, static_cast<double>(run.enqueued[0].size()), 3);
  EXPECT_LT(s.data, 1e-3);
}

}  // namespace
}  // namespace mt
