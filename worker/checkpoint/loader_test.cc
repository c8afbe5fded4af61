#include "worker/checkpoint/loader.h"

#include "common/testing/mem_env.h"
#include "worker/checkpoint/test_state.h"
#include "worker/checkpoint/testing/fake_device.h"

namespace mt {
namespace {

std::string Folder(int64_t step) { return *CheckpointFolder(kTestRoot, kTestJob, step); }

TEST(LoadCheckpoint, FillsAnyLayoutFromAnyOther) {
  const std::vector<TestTensor> tensors = TestTensors();
  std::string digest;
  for (uint32_t seed = 0; seed < 40; ++seed) {
    std::mt19937 random(seed);
    MemEnv env;
    std::vector<HeldBoxes> source = RandomLayout(tensors, 1 + random() % 5, random() % 5, random);
    for (HeldBoxes& rank : source) Fill(rank, tensors, 20);
    const auto manifest = WriteShards(&env, source, 20);
    ASSERT_TRUE(manifest.ok()) << manifest.status();
    ASSERT_TRUE(CommitManifest(&env, kTestRoot, *manifest).ok());

    std::vector<HeldBoxes> target = RandomLayout(tensors, 1 + random() % 5, random() % 5, random);
    for (HeldBoxes& rank : target) {
      Scribble(rank);
      LoadOptions options;
      options.env = &env;
      LoadStatistics statistics;
      const absl::Status status =
          LoadCheckpoint(*manifest, rank.boxes, FolderResolver(Folder(20)), options, &statistics);
      ASSERT_TRUE(status.ok()) << "seed " << seed << ": " << status;
      ASSERT_EQ(CountWrong(rank, tensors, 20), 0) << "seed " << seed;
      EXPECT_EQ(static_cast<size_t>(statistics.files), NeededFiles(*manifest, rank.boxes)->size());
    }
    // Equal contents have one digest, whatever the layout, from the manifest as from the bytes.
    if (digest.empty()) digest = manifest->weights_digest();
    EXPECT_EQ(manifest->weights_digest(), digest) << "seed " << seed;
    EXPECT_EQ(*WeightsDigestOfFiles(*manifest, FolderResolver(Folder(20)), &env), digest)
        << "seed " << seed;
  }
}

TEST(LoadCheckpoint, LargeRowsAndColumnsGoThroughWindows) {
  const std::vector<TestTensor> tensors = {{"wide", {64, 40000}}, {"tall", {50000, 24}}};
  std::mt19937 random(3);
  MemEnv env;
  std::vector<HeldBoxes> source(2);
  for (int i = 0; i < 2; ++i) {
    source[i].Add(tensors[0], {i * 32, 0}, {32, 40000});
    source[i].Add(tensors[1], {i * 25000, 0}, {25000, 24});
    Fill(source[i], tensors, 3);
  }
  const auto manifest = WriteShards(&env, source, 3);
  ASSERT_TRUE(manifest.ok());
  std::vector<HeldBoxes> target(3);
  for (int i = 0; i < 3; ++i) {
    target[i].Add(tensors[0], {0, i * 13333},
                  {64, i == 2 ? 40000 - 2 * 13333 : 13333});  // columns, long runs
    target[i].Add(tensors[1], {0, i * 8}, {50000, 8});        // columns, short runs
    Scribble(target[i]);
    LoadOptions options;
    options.env = &env;
    const absl::Status status =
        LoadCheckpoint(*manifest, target[i].boxes, FolderResolver(Folder(3)), options);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(CountWrong(target[i], tensors, 3), 0);
  }
}

TEST(LoadCheckpoint, WaitsForTheDeviceBeforeItFreesWhatIsCopied) {
  const std::vector<TestTensor> tensors = TestTensors();
  std::mt19937 random(5);
  MemEnv env;
  std::vector<HeldBoxes> layout = RandomLayout(tensors, 3, 3, random);
  for (HeldBoxes& rank : layout) Fill(rank, tensors, 1);
  const auto manifest = WriteShards(&env, layout, 1);
  ASSERT_TRUE(manifest.ok());
  std::vector<HeldBoxes> target = RandomLayout(tensors, 1, 2, random);
  Scribble(target[0]);
  FakeDevice device;
  device.lazy = true;  // nothing is copied until somebody waits for it
  LoadOptions options;
  options.env = &env;
  options.device = device.table();
  ASSERT_TRUE(LoadCheckpoint(*manifest, target[0].boxes, FolderResolver(Folder(1)), options).ok());
  EXPECT_EQ(device.copies, static_cast<int>(target[0].boxes.size()));
  EXPECT_EQ(device.pending(), 0);
  EXPECT_EQ(CountWrong(target[0], tensors, 1), 0);
}

class DamagedCheckpoint : public testing::Test {
 protected:
  DamagedCheckpoint() {
    std::mt19937 random(9);
    std::vector<HeldBoxes> layout = RandomLayout(tensors_, 2, 3, random);
    for (HeldBoxes& rank : layout) Fill(rank, tensors_, 20);
    manifest_ = *WriteShards(&env_, layout, 20);
    target_ = RandomLayout(tensors_, 1, 1, random);
    options_.env = &env_;
  }
  absl::Status Load() {
    return LoadCheckpoint(manifest_, target_[0].boxes, FolderResolver(Folder(20)), options_);
  }
  void ExpectFailure(absl::StatusCode code, absl::string_view part) {
    const absl::Status status = Load();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_NE(status.message().find(part), absl::string_view::npos) << status;
  }

  const std::vector<TestTensor> tensors_ = TestTensors();
  MemEnv env_;
  v1::CheckpointManifest manifest_;
  std::vector<HeldBoxes> target_;
  LoadOptions options_;
};

TEST_F(DamagedCheckpoint, WholeOneLoads) { EXPECT_TRUE(Load().ok()) << Load(); }

TEST_F(DamagedCheckpoint, AnyCorruptByteIsFound) {
  const std::string path = Folder(20) + "/shard-r1.safetensors";
  const uint64_t size = manifest_.files(1).size_bytes();
  for (const uint64_t at : {uint64_t{0}, uint64_t{9}, uint64_t{4095}, uint64_t{4096}, size - 1}) {
    ASSERT_TRUE(env_.CorruptByte(path, at).ok());
    ExpectFailure(absl::StatusCode::kDataLoss, path);
    ASSERT_TRUE(env_.CorruptByte(path, at).ok());  // the bit flips back
  }
  EXPECT_TRUE(Load().ok());
}

TEST_F(DamagedCheckpoint, TruncatedFileIsFound) {
  ASSERT_TRUE(
      env_.TruncateFile(Folder(20) + "/shard-r0.safetensors", manifest_.files(0).size_bytes() - 1)
          .ok());
  ExpectFailure(absl::StatusCode::kDataLoss, "its manifest says");
}

TEST_F(DamagedCheckpoint, MissingFileIsNotFound) {
  ASSERT_TRUE(env_.RemoveFile(Folder(20) + "/shard-r0.safetensors").ok());
  ExpectFailure(absl::StatusCode::kNotFound, "shard-r0.safetensors");
}

// Of a shared folder: a missing file is lost, a folder that is not mounted is not.
TEST_F(DamagedCheckpoint, OnlyAMissingFileBesideItsManifestIsLost) {
  const std::string path = Folder(20) + "/shard-r0.safetensors";
  EXPECT_TRUE(VerifyOnlyCopy(&env_, path, manifest_.files(0)).ok());
  ASSERT_TRUE(env_.RemoveFile(path).ok());
  ASSERT_TRUE(WriteFileAtomically(&env_, Folder(20) + "/manifest.json", "{}").ok());
  EXPECT_EQ(VerifyOnlyCopy(&env_, path, manifest_.files(0)).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(VerifyOnlyCopy(&env_, "/not-mounted/shard-r0.safetensors", manifest_.files(0)).code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(DamagedCheckpoint, ManifestWithAHoleIsFound) {
  manifest_.mutable_files(0)->mutable_slices()->RemoveLast();
  ExpectFailure(absl::StatusCode::kDataLoss, "elements");
}

TEST_F(DamagedCheckpoint, EntryThatTheFileLacksIsFound) {
  manifest_.mutable_files(0)->mutable_slices(0)->set_entry("nothing");
  ExpectFailure(absl::StatusCode::kDataLoss, "has no entry nothing");
}

TEST_F(DamagedCheckpoint, AnotherModelIsRefused) {
  const TensorBox good = target_[0].boxes[0];
  target_[0].boxes[0].tensor = "model.layers.7.mlp.gate_proj.weight";
  ExpectFailure(absl::StatusCode::kFailedPrecondition,
                "has no tensor model.layers.7.mlp.gate_proj.weight");
  target_[0].boxes[0] = good;
  target_[0].boxes[0].global_shape[0] += 1;
  ExpectFailure(absl::StatusCode::kFailedPrecondition, "the job's is");
  target_[0].boxes[0] = good;
  target_[0].boxes[0].dtype = MT_I32;
  ExpectFailure(absl::StatusCode::kFailedPrecondition, "the job's is I32");
}

}  // namespace
}  // namespace mt
