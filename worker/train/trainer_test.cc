#include "worker/train/trainer.h"

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <thread>

#include "common/spec/activation_plan.h"
#include "tests/equivalence/harness.h"
#include "worker/train/generate.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MT_COUNTS_ALLOCATIONS 0  // the sanitizer has its own malloc
#else
#define MT_COUNTS_ALLOCATIONS 1
#endif

// Every allocation of the process, the backends' included, is counted while `counting` is set: the executable's malloc
// comes before the C library's. Not counted: the packing buffers that oneDNN's dnnl_sgemm takes and gives back in each call.
namespace {
std::atomic<int64_t> allocations{0};
std::atomic<bool> counting{false};

void Count(const void* caller) {
  if (!counting) return;
  Dl_info info;
  if (dladdr(caller, &info) != 0 && strstr(info.dli_fname, "/libdnnl.so") != nullptr) return;
  ++allocations;
}
}  // namespace

#if MT_COUNTS_ALLOCATIONS
extern "C" {
void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t count, size_t bytes);
void* __libc_realloc(void* pointer, size_t bytes);
void* __libc_memalign(size_t alignment, size_t bytes);

void* malloc(size_t bytes) {
  Count(__builtin_return_address(0));
  return __libc_malloc(bytes);
}
void* calloc(size_t count, size_t bytes) {
  Count(__builtin_return_address(0));
  return __libc_calloc(count, bytes);
}
void* realloc(void* pointer, size_t bytes) {
  Count(__builtin_return_address(0));
  return __libc_realloc(pointer, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) {
  Count(__builtin_return_address(0));
  return __libc_memalign(alignment, bytes);
}
int posix_memalign(void** pointer, size_t alignment, size_t bytes) {
  Count(__builtin_return_address(0));
  *pointer = __libc_memalign(alignment, bytes);
  return *pointer == nullptr ? ENOMEM : 0;
}
}
#endif

namespace mt {
namespace {

using equivalence::HashedSamples;
using equivalence::SmallJob;
using testing::HasSubstr;

class TrainerTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<Trainer>> Make(const v1::JobSpec& spec, const char* backend,
                                                BatchSource* samples) {
    auto operations = Operations::Create({.backend = backend, .threads = 1});
    if (!operations.ok()) return operations.status();
    operations_ = *std::move(operations);
    return Trainer::Create({.spec = spec,
                            .mesh = *Mesh::Create(1, 1, 1),
                            .operations = operations_.get(),
                            .samples = samples});
  }
  HashedSamples samples_{51, 8};
  std::unique_ptr<Operations> operations_;
};

TEST_F(TrainerTest, StepsAllocateNothing) {
  if (!MT_COUNTS_ALLOCATIONS) GTEST_SKIP() << "the sanitizer has its own malloc";
  for (const char* backend : {"cpu", "reference"}) {
    v1::JobSpec spec = SmallJob();
    spec.mutable_training()->set_precision(v1::TrainingSpec::PRECISION_FP32);
    auto trainer = Make(spec, backend, &samples_);
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    ASSERT_TRUE((*trainer)->InitialiseWeights().ok());
    ASSERT_TRUE((*trainer)->Step().ok());  // the first one may fill the backend's caches
    allocations = 0;
    counting = true;
    const bool ok = (*trainer)->Step().ok() && (*trainer)->Step().ok();
    counting = false;
    EXPECT_TRUE(ok);
    EXPECT_EQ(allocations, 0) << backend;
    // The counter does count.
    counting = true;
    const auto proof = std::make_unique<std::string>(100, 'x');
    counting = false;
    EXPECT_EQ(allocations, 2) << proof->size();
  }
}

TEST_F(TrainerTest, TokenOutsideTheVocabularyIsNamed) {
  HashedSamples wide(52 * 52, 8);
  auto trainer = Make(SmallJob(), "reference", &wide);
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  ASSERT_TRUE((*trainer)->InitialiseWeights().ok());
  const absl::Status status = (*trainer)->Step().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("step 1, forward of micro-batch 0: sample 0 has token id "));
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.vocab = 51"));
}

TEST_F(TrainerTest, LossThatIsNotFiniteLeavesTheWeights) {
  auto trainer = Make(SmallJob(), "reference", &samples_);
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  ASSERT_TRUE((*trainer)->InitialiseWeights().ok());
  const TensorBox box = (*trainer)->LoadTargets().front();
  static_cast<double*>(box.data)[0] = std::nan("");
  static_cast<double*>(box.data)[box.Elements() - 1] = 0.25;
  for (int64_t i = 0; i < box.Elements() - 1; ++i) static_cast<double*>(box.data)[i] = std::nan("");
  const absl::Status status = (*trainer)->Step().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("step 1: loss nan"));
  EXPECT_EQ(static_cast<double*>(box.data)[box.Elements() - 1], 0.25);
  EXPECT_EQ((*trainer)->position().step, 0);
}

TEST_F(TrainerTest, GroupsThatDoNotFitAreRefused) {
  auto operations = Operations::Create({.backend = "reference"});
  const absl::Status status = Trainer::Create({.spec = SmallJob(),
                                               .mesh = *Mesh::Create(2, 1, 1),
                                               .operations = operations->get(),
                                               .samples = &samples_})
                                  .status();
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("the tensor group has this rank as member 0 of 1"));
}

TEST_F(TrainerTest, MemoryIsAsPlanned) {
  const v1::JobSpec spec = SmallJob();
  auto trainer = Make(spec, "reference", &samples_);
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  const TrainerMemory memory = (*trainer)->memory();
  const RankMemory plan = PlanMemory(spec, *Mesh::Create(1, 1, 1), 0);
  EXPECT_EQ(memory.weights, plan.weights);
  EXPECT_EQ(memory.gradients, plan.gradients);
  EXPECT_EQ(memory.optimizer, plan.optimizer);
  EXPECT_EQ(memory.activations, plan.activations);
}

// Megatron's order: micro-batch m of data rank r takes samples [m B D + r B, + B) of the step's global batch.
TEST_F(TrainerTest, SamplesComeInMegatronsOrderUnderAnyDataSplit) {
  class Recorder : public BatchSource {
   public:
    absl::Status Fetch(std::span<const int64_t> ids, const Batch& batch) override {
      const std::span<int32_t> tokens = batch.tokens;
      seen.insert(seen.end(), ids.begin(), ids.end());
      std::fill(tokens.begin(), tokens.end(), 1);
      return absl::OkStatus();
    }
    std::vector<int64_t> seen;
  };
  v1::JobSpec spec = SmallJob();  // a global batch of 8 in micro-batches of 2
  auto groups = NewInProcessGroup("data", 2);
  Recorder recorders[2];
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < 2; ++rank) {
    ranks.emplace_back([&, rank] {
      auto operations = Operations::Create({.backend = "reference", .threads = 1});
      auto trainer = Trainer::Create({.spec = spec,
                                      .mesh = *Mesh::Create(1, 2, 1),
                                      .rank = rank,
                                      .groups = {.data = groups[rank].get()},
                                      .operations = operations->get(),
                                      .samples = &recorders[rank]});
      EXPECT_TRUE(trainer.ok() && (*trainer)->InitialiseWeights().ok() && (*trainer)->Step().ok() &&
                  (*trainer)->Step().ok());
    });
  }
  for (std::thread& rank : ranks) rank.join();
  EXPECT_THAT(recorders[0].seen, testing::ElementsAre(0, 1, 4, 5, 8, 9, 12, 13));
  EXPECT_THAT(recorders[1].seen, testing::ElementsAre(2, 3, 6, 7, 10, 11, 14, 15));
}

// A model that has learned one cycle of tokens goes on with it.
TEST_F(TrainerTest, GeneratesWhatItHasLearned) {
  class Cycle : public BatchSource {
   public:
    absl::Status Fetch(std::span<const int64_t> ids, const Batch& batch) override {
      const std::span<int32_t> tokens = batch.tokens;
      for (size_t i = 0; i < tokens.size(); ++i) {
        tokens[i] = static_cast<int32_t>((ids[i / 9] + static_cast<int64_t>(i % 9)) % 5 * 10);
      }
      return absl::OkStatus();
    }
  } cycle;
  v1::JobSpec spec = SmallJob();
  spec.mutable_training()->set_clip_grad_norm(-1);
  auto trainer = Make(spec, "reference", &cycle);
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  ASSERT_TRUE((*trainer)->InitialiseWeights().ok());
  for (int step = 0; step < 20; ++step) ASSERT_TRUE((*trainer)->Step().ok());

  auto generator =
      Generator::Create(spec.model(), spec.training().precision(), 8, operations_.get());
  ASSERT_TRUE(generator.ok()) << generator.status();
  equivalence::LogicalState state;
  const Backend& backend = operations_->backend();
  ASSERT_TRUE(equivalence::AddBoxes((*trainer)->CheckpointState(), backend, &state).ok());
  ASSERT_TRUE(equivalence::FillBoxes(state, (*generator)->LoadTargets(), backend).ok());
  const std::vector<int32_t> prompt = {0, 10, 20};
  auto tokens = (*generator)->Generate(prompt, {.max_tokens = 9});  // longer than the window of 8
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_THAT(*tokens, testing::ElementsAre(30, 40, 0, 10, 20, 30, 40, 0, 10));
  tokens = (*generator)->Generate(prompt, {.max_tokens = 9, .stop_tokens = {40, 0}});
  EXPECT_THAT(*tokens, testing::ElementsAre(30));

  const GenerateOptions hot{.max_tokens = 20, .sampling = {.temperature = 5}, .seed = 3};
  const auto first = (*generator)->Generate(prompt, hot),
             again = (*generator)->Generate(prompt, hot);
  EXPECT_EQ(*first, *again);
  EXPECT_NE(*first,
            *(*generator)
                 ->Generate(prompt, {.max_tokens = 20, .sampling = {.temperature = 5}, .seed = 4}));

  EXPECT_EQ((*generator)->Generate({}, {}).status().code(), absl::StatusCode::kInvalidArgument);
  const std::vector<int32_t> foreign = {51};
  EXPECT_EQ((*generator)->Generate(foreign, {}).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ((*generator)->Generate(prompt, {.sampling = {.temperature = -1}}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace mt
