// Snapshots of a device's state, which is changed as early as the device may.
#include <gmock/gmock.h>

#include <thread>

#include "absl/synchronization/notification.h"
#include "common/testing/mem_env.h"
#include "worker/checkpoint/test_state.h"
#include "worker/checkpoint/testing/fake_device.h"

namespace mt {
namespace {

using ::testing::HasSubstr;

class StillClock : public Clock {
 public:
  absl::Time Now() override { return absl::UnixEpoch(); }
  absl::Duration Monotonic() override {
    if (looked) looked();
    return absl::ZeroDuration();
  }
  std::function<void()> looked;
};

class SnapshotTest : public ::testing::Test {
 protected:
  SnapshotTest() {
    std::mt19937 random(3);
    layout_ = RandomLayout(tensors_, 1, 2, random);
    Fill(layout_[0], tensors_, 1);
  }
  ~SnapshotTest() override {
    device_.Hold(false, false);
    writer_.reset();
  }

  absl::Status Create() {
    CheckpointWriterOptions options;
    options.env = &env_;
    options.clock = &clock_;
    options.root = kTestRoot;
    options.job_id = kTestJob;
    options.device = device_.table();
    options.before_next_update = [this](mt_event copied, mt_event reached) {
      copied_ = copied;
      reached_ = reached;
      return absl::OkStatus();
    };
    options.on_written = [this](const v1::ShardWritten& written) { written_.push_back(written); };
    options.on_failed = [this](const v1::CheckpointFailed& failed) { failed_.push_back(failed); };
    MT_ASSIGN_OR_RETURN(writer_, CheckpointWriter::Create(options, layout_[0].boxes));
    return absl::OkStatus();
  }
  absl::Status Snapshot(int64_t step) { return writer_->Snapshot({step, step * 16, 0.5}).status(); }
  // What a trainer does: the update of the state, behind what it was asked to wait for.
  void Update(int64_t step) {
    if (copied_ != nullptr) {
      device_.table()->event_record(reached_, nullptr);
      device_.table()->event_wait(copied_, nullptr);
    }
    copied_ = nullptr;
    device_.Enqueue(nullptr, [this, step] { Fill(layout_[0], tensors_, step); });
  }
  // Loads the step's file as the manifest of that step.
  absl::Status Compare(int64_t step) {
    v1::CheckpointManifest manifest;
    manifest.set_format_version(1);
    manifest.set_job_id(kTestJob);
    manifest.set_step(step);
    manifest.set_parent_step(-1);
    for (const auto& written : written_) {
      if (written.step() == step) *manifest.add_files() = written.file();
    }
    MT_ASSIGN_OR_RETURN(const std::string digest, WeightsDigest(manifest));
    manifest.set_weights_digest(digest);
    MT_RETURN_IF_ERROR(CommitManifest(&env_, kTestRoot, manifest));
    return LoadAndCompare(&env_, tensors_, step);
  }

  const std::vector<TestTensor> tensors_ = TestTensors();
  MemEnv env_;
  StillClock clock_;
  FakeDevice device_;
  std::vector<HeldBoxes> layout_;
  mt_event copied_ = nullptr, reached_ = nullptr;
  std::vector<v1::ShardWritten> written_;
  std::vector<v1::CheckpointFailed> failed_;
  std::unique_ptr<CheckpointWriter> writer_;  // before what its thread uses
};

TEST_F(SnapshotTest, TheNextUpdateWaitsForTheCopyAndNothingElseDoes) {
  ASSERT_TRUE(Create().ok());
  device_.Hold(/*copies=*/true, /*compute=*/false);
  ASSERT_TRUE(Snapshot(1).ok());  // returns although nothing is copied
  int forwards = 0;
  device_.Enqueue(nullptr, [&] { ++forwards; });
  EXPECT_EQ(forwards, 1);
  Update(2);
  EXPECT_EQ(CountWrong(layout_[0], tensors_, 1), 0) << "the state was changed before it was copied";
  device_.Hold(false, false);
  ASSERT_TRUE(writer_->Wait().ok());
  EXPECT_EQ(Compare(1), absl::OkStatus());
  EXPECT_EQ(CountWrong(layout_[0], tensors_, 2), 0);
}

TEST_F(SnapshotTest, TheCopyWaitsForWhatTheDeviceHasStillToDo) {
  ASSERT_TRUE(Create().ok());
  device_.Hold(/*copies=*/false, /*compute=*/true);
  Update(2);  // enqueued, not done
  ASSERT_TRUE(Snapshot(2).ok());
  device_.Hold(false, false);
  ASSERT_TRUE(writer_->Wait().ok());
  EXPECT_EQ(Compare(2), absl::OkStatus());
}

TEST_F(SnapshotTest, ASnapshotWaitsUntilTheOneBeforeIsWritten) {
  ASSERT_TRUE(Create().ok());
  device_.Hold(/*copies=*/true, /*compute=*/false);
  ASSERT_TRUE(Snapshot(1).ok());
  Update(2);
  absl::Notification begun;
  std::thread next([&] {
    clock_.looked = [&] {
      clock_.looked = nullptr;
      begun.Notify();
    };
    EXPECT_TRUE(Snapshot(2).ok());
  });
  begun.WaitForNotification();
  device_.Hold(false, false);
  next.join();
  ASSERT_TRUE(writer_->Wait().ok());
  ASSERT_EQ(written_.size(), 2u);
  EXPECT_EQ(written_[0].step(), 1);
  EXPECT_EQ(Compare(1), absl::OkStatus());
  EXPECT_EQ(Compare(2), absl::OkStatus());
}

TEST_F(SnapshotTest, TheStallIsWhatTheUpdateWaited) {
  ASSERT_TRUE(Create().ok());
  device_.Hold(true, false);
  ASSERT_TRUE(Snapshot(1).ok());
  device_.milliseconds = 10;
  Update(2);
  device_.milliseconds = 35;
  device_.Hold(false, false);
  ASSERT_TRUE(writer_->Wait().ok());
  EXPECT_NEAR(written_[0].stall_seconds(), 0.025, 1e-6);

  device_.milliseconds = 40;
  device_.Hold(true, false);
  ASSERT_TRUE(Snapshot(2).ok());
  device_.Hold(false, false);  // copied before the update has come
  device_.milliseconds = 60;
  ASSERT_TRUE(writer_->Wait().ok());
  EXPECT_EQ(written_[1].stall_seconds(), 0);
}

TEST_F(SnapshotTest, AnErrorOfTheCopyIsReportedAndTheNextSnapshotWorks) {
  ASSERT_TRUE(Create().ok());
  device_.fail = "copy";
  const absl::Status status = Snapshot(1);
  EXPECT_THAT(std::string(status.message()), HasSubstr("backend fake: it broke"));
  device_.fail = "event_synchronize";  // the copy failed on the device, behind Snapshot's back
  ASSERT_TRUE(Snapshot(1).ok());
  EXPECT_FALSE(writer_->Wait().ok());
  ASSERT_EQ(failed_.size(), 1u);
  EXPECT_THAT(failed_[0].message(), HasSubstr("waiting for the copy on backend fake: it broke"));
  EXPECT_TRUE(written_.empty());
  device_.fail.clear();
  ASSERT_TRUE(Snapshot(1).ok());
  ASSERT_TRUE(writer_->Wait().ok());
  EXPECT_EQ(Compare(1), absl::OkStatus());
}

TEST_F(SnapshotTest, WithoutPinnedMemoryThereIsNoWriter) {
  device_.fail = "allocate_host";
  const absl::Status status = Create();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("host memory for snapshots"));
}

}  // namespace
}  // namespace mt
