// The promise: whatever happens while a checkpoint is written, committed or deleted, every
// committed one loads whole.
#include <condition_variable>
#include <mutex>

#include "common/testing/mem_env.h"
#include "worker/checkpoint/safetensors_writer.h"
#include "worker/checkpoint/test_state.h"

namespace mt {
namespace {

class CommitTest : public testing::Test {
 protected:
  std::vector<HeldBoxes> Layout(int64_t step, int ranks, uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<HeldBoxes> layout = RandomLayout(tensors_, ranks, 3, random);
    for (HeldBoxes& rank : layout) Fill(rank, tensors_, step);
    return layout;
  }
  absl::Status WriteAndCommit(Env* env, int64_t step, int ranks = 2) {
    std::vector<HeldBoxes> layout = Layout(step, ranks, 11);
    MT_ASSIGN_OR_RETURN(const v1::CheckpointManifest manifest, WriteShards(env, layout, step));
    return CommitManifest(env, kTestRoot, manifest);
  }
  // Every committed step loads; returns them.
  std::vector<int64_t> CheckAll(Env* env) {
    const auto steps = ListCommitted(env, kTestRoot, kTestJob);
    EXPECT_TRUE(steps.ok()) << steps.status();
    for (const int64_t step : *steps) {
      const absl::Status status = LoadAndCompare(env, tensors_, step);
      EXPECT_TRUE(status.ok()) << "step " << step << ": " << status;
    }
    return *steps;
  }
  static int TemporariesIn(Env* env, int64_t step) {
    int count = 0;
    const auto names = env->List(*CheckpointFolder(kTestRoot, kTestJob, step));
    if (!names.ok()) return 0;
    for (const std::string& name : *names) count += name.find(".tmp") != std::string::npos;
    return count;
  }

  const std::vector<TestTensor> tensors_ = TestTensors();
};

// The machine or the process dies before operation number `at`; everything later fails too.
void DieAt(MemEnv& env, int at, int& count) {
  count = 0;
  env.SetFault([&count, at](absl::string_view operation, const std::string&) -> absl::Status {
    return count++ >= at ? absl::UnavailableError("dead") : absl::OkStatus();
  });
}

TEST_F(CommitTest, CrashAtAnyOperationLeavesTheOldOneAndPerhapsTheNewOne) {
  for (const bool power_loss : {true, false}) {
    bool finished = false;
    int with_new = 0, without_new = 0;
    for (int at = 0; !finished; ++at) {
      MemEnv env;
      ASSERT_TRUE(WriteAndCommit(&env, 10).ok());
      int count = 0;
      DieAt(env, at, count);
      finished = WriteAndCommit(&env, 20).ok();
      env.SetFault(nullptr);
      if (power_loss) {
        env.Crash();
      } else {
        env.KillProcess();
      }
      const std::vector<int64_t> steps = CheckAll(&env);
      ASSERT_FALSE(steps.empty()) << "operation " << at;
      EXPECT_EQ(steps[0], 10) << "operation " << at;
      if (finished) {
        EXPECT_EQ(steps.size(), 2u);
      }
      (steps.size() == 2 ? with_new : without_new) += 1;
      // Starting again over the remains works.
      ASSERT_TRUE(RemoveTemporaries(&env, kTestRoot).ok());
      EXPECT_EQ(TemporariesIn(&env, 20), 0);
      ASSERT_TRUE(WriteAndCommit(&env, 20, 3).ok()) << "operation " << at;
      EXPECT_EQ(CheckAll(&env), (std::vector<int64_t>{10, 20}));
      EXPECT_EQ(*ReadFile(&env, absl::StrCat(kTestRoot, "/", kTestJob, "/latest")),
                "step-00000020\n");
    }
    EXPECT_GT(without_new, 10);
    EXPECT_GT(with_new, 1);
  }
}

TEST_F(CommitTest, CrashAtAnyOperationOfADeleteLeavesAWholeOneOrNone) {
  bool finished = false;
  for (int at = 0; !finished; ++at) {
    MemEnv env;
    ASSERT_TRUE(WriteAndCommit(&env, 10).ok());
    ASSERT_TRUE(WriteAndCommit(&env, 20).ok());
    int count = 0;
    DieAt(env, at, count);
    finished = DeleteCheckpoint(&env, kTestRoot, kTestJob, 20).ok();
    env.SetFault(nullptr);
    env.Crash();
    EXPECT_EQ(CheckAll(&env)[0], 10);
    ASSERT_TRUE(DeleteCheckpoint(&env, kTestRoot, kTestJob, 20).ok()) << "operation " << at;
    EXPECT_EQ(CheckAll(&env), std::vector<int64_t>{10});
    EXPECT_FALSE(Exists(&env, *CheckpointFolder(kTestRoot, kTestJob, 20)));
    EXPECT_EQ(*ReadFile(&env, absl::StrCat(kTestRoot, "/", kTestJob, "/latest")),
              "step-00000010\n");
  }
}

TEST_F(CommitTest, DiskFullIsReportedAndLeavesTheOldOneIntact) {
  MemEnv env;
  ASSERT_TRUE(WriteAndCommit(&env, 10).ok());
  env.SetCapacity(env.UsedBytes() + 5000);
  std::vector<HeldBoxes> layout = Layout(20, 1, 11);
  CheckpointWriterOptions options;
  options.env = &env;
  options.root = kTestRoot;
  options.job_id = kTestJob;
  std::vector<v1::CheckpointFailed> failures;
  int written = 0;
  options.on_failed = [&](const v1::CheckpointFailed& failed) { failures.push_back(failed); };
  options.on_written = [&](const v1::ShardWritten&) { ++written; };
  const auto writer = *CheckpointWriter::Create(options, layout[0].boxes);
  ASSERT_TRUE(writer->Snapshot({20, 320, 1}).ok());
  EXPECT_EQ(writer->Wait().code(), absl::StatusCode::kResourceExhausted);
  ASSERT_EQ(failures.size(), 1u);
  EXPECT_EQ(failures[0].reason(), "disk_full");
  EXPECT_EQ(failures[0].step(), 20);
  EXPECT_NE(failures[0].message().find("shard-r0.safetensors"), std::string::npos)
      << failures[0].message();
  EXPECT_EQ(written, 0);
  EXPECT_EQ(TemporariesIn(&env, 20), 0);
  EXPECT_EQ(CheckAll(&env), std::vector<int64_t>{10});
  // Space again: the same writer goes on.
  env.SetCapacity(std::nullopt);
  ASSERT_TRUE(writer->Snapshot({30, 480, 1}).ok());
  EXPECT_TRUE(writer->Wait().ok());
  EXPECT_EQ(written, 1);
}

TEST_F(CommitTest, WriteRunsBehindTheTrainingAndTakesTheValuesOfItsStep) {
  MemEnv env;
  std::mutex mutex;
  std::condition_variable changed;
  bool open = false;
  env.SetFault([&](absl::string_view operation, const std::string&) -> absl::Status {
    if (operation == "append") {
      std::unique_lock<std::mutex> lock(mutex);
      changed.wait(lock, [&] { return open; });
    }
    return absl::OkStatus();
  });
  std::vector<HeldBoxes> layout = Layout(10, 1, 11);
  CheckpointWriterOptions options;
  options.env = &env;
  options.root = kTestRoot;
  options.job_id = kTestJob;
  v1::CheckpointManifest manifest;
  options.on_written = [&](const v1::ShardWritten& written) {
    manifest.set_format_version(1);
    manifest.set_job_id(kTestJob);
    manifest.set_step(written.step());
    *manifest.add_files() = written.file();
  };
  const auto writer = *CheckpointWriter::Create(options, layout[0].boxes);
  ASSERT_TRUE(writer->Snapshot({10, 160, 1}).ok());  // returns although the disk stands still
  Scribble(layout[0]);                               // the next step changes the weights
  {
    const std::lock_guard<std::mutex> lock(mutex);
    open = true;
  }
  changed.notify_all();
  ASSERT_TRUE(writer->Wait().ok());
  ASSERT_TRUE(CommitManifest(&env, kTestRoot, manifest).ok());
  EXPECT_TRUE(LoadAndCompare(&env, tensors_, 10).ok());
}

// The coordinator has given the first one up, and cannot tell it so.
TEST_F(CommitTest, TwoGenerationsDoNotWriteIntoOneFile) {
  MemEnv env;
  const std::string folder = *CheckpointFolder(kTestRoot, kTestJob, 10);
  ASSERT_TRUE(env.CreateDirectories(folder).ok());
  std::vector<SafetensorsEntry> entries = {{"x", "F32", {2}}};
  const auto older = *SafetensorsWriter::Create(&env, JoinPath(folder, "shard-r0.safetensors"),
                                                entries, {}, "-g1");
  ASSERT_TRUE(older->Append("half").ok());
  std::vector<HeldBoxes> layout = Layout(10, 1, 11);
  v1::CheckpointManifest manifest;
  manifest.set_format_version(1);
  manifest.set_job_id(kTestJob);
  manifest.set_step(10);
  CheckpointWriterOptions options;
  options.env = &env;
  options.root = kTestRoot;
  options.job_id = kTestJob;
  options.generation = 2;
  options.on_written = [&](const v1::ShardWritten& written) {
    *manifest.add_files() = written.file();
  };
  const auto newer = *CheckpointWriter::Create(options, layout[0].boxes);
  ASSERT_TRUE(newer->Snapshot({10, 160, 1}).ok());
  ASSERT_TRUE(newer->Wait().ok());
  (void)older->Append("half");
  EXPECT_FALSE(older->Finish().ok());
  ASSERT_TRUE(CommitManifest(&env, kTestRoot, manifest).ok());
  EXPECT_TRUE(LoadAndCompare(&env, tensors_, 10).ok());
  EXPECT_EQ(TemporariesIn(&env, 10), 0);
}

TEST_F(CommitTest, ManifestThatDoesNotCoverIsNotCommitted) {
  MemEnv env;
  std::vector<HeldBoxes> layout = Layout(20, 2, 11);
  v1::CheckpointManifest manifest = *WriteShards(&env, layout, 20);
  manifest.mutable_files()->RemoveLast();
  EXPECT_EQ(CommitManifest(&env, kTestRoot, manifest).code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(CheckAll(&env).empty());
}

TEST_F(CommitTest, JsonFormIsExact) {
  MemEnv env;
  std::vector<HeldBoxes> layout = Layout(20, 2, 11);
  v1::CheckpointManifest manifest = *WriteShards(&env, layout, 20);
  manifest.mutable_spec()->set_name("llama");
  manifest.mutable_spec()->mutable_training()->set_clip_grad_norm(0);  // set, to zero
  ASSERT_TRUE(CommitManifest(&env, kTestRoot, manifest).ok());
  const auto read = ReadManifest(&env, kTestRoot, kTestJob, 20);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->SerializeAsString(), manifest.SerializeAsString());
  EXPECT_EQ(ReadManifest(&env, kTestRoot, kTestJob, 21).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(CommitTest, HeldFilesAreTheWholeOnes) {
  MemEnv env;
  std::vector<HeldBoxes> layout = Layout(20, 2, 11);
  ASSERT_TRUE(WriteShards(&env, layout, 20).ok());  // not committed
  const std::string folder = *CheckpointFolder(kTestRoot, kTestJob, 20);
  ASSERT_TRUE(WriteFileAtomically(&env, folder + "/x", "").ok());
  ASSERT_TRUE(env.Rename(folder + "/x", folder + "/shard-r2.safetensors.tmp").ok());
  const auto held = ListHeld(&env, kTestRoot);
  ASSERT_TRUE(held.ok()) << held.status();
  ASSERT_EQ(held->size(), 1u);
  EXPECT_EQ((*held)[0].job_id(), kTestJob);
  EXPECT_EQ((*held)[0].step(), 20);
  EXPECT_EQ((*held)[0].files_size(), 2);
  EXPECT_TRUE(ListHeld(&env, "/nowhere")->empty());
}

TEST(CheckpointPaths, CannotLeaveTheirFolder) {
  for (const char* bad : {"", ".", "..", "../x", "a/b", "/a", "A", "a\n", "-a", ".hidden"}) {
    EXPECT_EQ(CheckpointFolder("/store", bad, 1).status().code(),
              absl::StatusCode::kInvalidArgument)
        << bad;
    EXPECT_EQ(CheckpointFilePath("/store", "job", 1, bad).status().code(),
              absl::StatusCode::kInvalidArgument)
        << bad;
  }
  EXPECT_EQ(CheckpointFolder("/store", std::string(64, 'a'), 1).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CheckpointFolder("/store", "job", -1).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(*CheckpointFilePath("/store", "job-1.a_b", 1, "shard-r0.safetensors"),
            "/store/job-1.a_b/step-00000001/shard-r0.safetensors");
  EXPECT_EQ(*ParseStepFolderName("step-123456789"), 123456789);
  for (const char* bad :
       {"step-1", "step-000000001", "step-", "step-0000000x", "stop-00000001", "step-+0000001"}) {
    EXPECT_FALSE(ParseStepFolderName(bad).ok()) << bad;
  }
}

TEST(ManifestFromJson, BadOnesAreRefusedNotCrashedOn) {
  for (const char* bad : {"", "{", "[]", "{\"files\": 3}", "{\"format_version\": 1}",
                          "{\"format_version\":1,\"job_id\":\"../x\",\"step\":\"1\"}",
                          "{\"format_version\":1,\"job_id\":\"a\",\"step\":\"1\",\"files\":[{"
                          "\"name\":\"../etc\"}]}"}) {
    EXPECT_EQ(ManifestFromJson(bad).status().code(), absl::StatusCode::kDataLoss) << bad;
  }
  EXPECT_EQ(
      ManifestFromJson("{\"format_version\":2,\"job_id\":\"a\",\"new_field\":1}").status().code(),
      absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace mt
