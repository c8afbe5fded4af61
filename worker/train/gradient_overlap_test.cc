// Gradients are summed over the data group bucket by bucket, while the last backward pass goes on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "common/spec/parameter_layout.h"
#include "tests/equivalence/harness.h"
#include "worker/train/trainer.h"

namespace mt {
namespace {

using equivalence::HashedSamples;
using equivalence::SmallJob;
using ::testing::ElementsAre;

struct Happening {
  std::string what;
  int64_t count = 0;  // elements
};

// Notes what a rank does, in order.
class Log : public OperationObserver {
 public:
  int32_t Run(const mt_backend& backend, int32_t operation, const void* arguments) override {
    if (operation == MT_OP_MATMUL) Add("product");
    if (operation == MT_OP_ADAMW) Add("update");
    return backend.run(operation, arguments, nullptr);
  }
  void Add(const std::string& what, int64_t count = 0) { all.push_back({what, count}); }

  std::vector<Happening> all;
};

class Noted : public Communicator {
 public:
  Noted(Communicator* inner, Log* log)
      : Communicator(inner->name(), inner->rank(), inner->size()), inner_(inner), log_(log) {}
  absl::Status AllReduce(void* data, int64_t count, mt_dtype dtype, ReduceOp op) override {
    log_->Add("all-reduce", count);
    return inner_->AllReduce(data, count, dtype, op);
  }
  absl::Status ReduceScatter(const void* input, void* output, int64_t count,
                             mt_dtype dtype) override {
    log_->Add("reduce-scatter", count);
    return inner_->ReduceScatter(input, output, count, dtype);
  }
  absl::Status AllGather(const void* input, void* output, int64_t count, mt_dtype dtype) override {
    log_->Add("all-gather", count);
    return inner_->AllGather(input, output, count, dtype);
  }
  absl::Status Broadcast(void* data, int64_t count, mt_dtype dtype, int root) override {
    return inner_->Broadcast(data, count, dtype, root);
  }
  absl::Status Barrier() override { return inner_->Barrier(); }
  absl::Status Send(const void* data, int64_t bytes, int peer) override {
    return inner_->Send(data, bytes, peer);
  }
  absl::Status Receive(void* data, int64_t bytes, int peer) override {
    return inner_->Receive(data, bytes, peer);
  }
  absl::Status BeginOverlap() override {
    log_->Add("begin");
    return inner_->BeginOverlap();
  }
  absl::Status EndOverlap() override {
    log_->Add("end");
    return inner_->EndOverlap();
  }
  void Abort(absl::string_view reason) override { inner_->Abort(reason); }
  absl::Status Health() const override { return inner_->Health(); }

 private:
  Communicator* const inner_;
  Log* const log_;
};

// What rank 0 of two data ranks does in one step.
std::vector<Happening> OneStep(bool zero) {
  v1::JobSpec spec = SmallJob();
  spec.mutable_parallel()->set_zero(zero ? 1 : 0);
  auto groups = NewInProcessGroup("data", 2);
  Log logs[2];
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < 2; ++rank) {
    ranks.emplace_back([&, rank] {
      HashedSamples samples(51, 8);  // as SmallJob's model
      Noted data(groups[rank].get(), &logs[rank]);
      auto operations =
          Operations::Create({.backend = "reference", .threads = 1, .observer = &logs[rank]});
      auto trainer = Trainer::Create({.spec = spec,
                                      .mesh = *Mesh::Create(1, 2, 1),
                                      .rank = rank,
                                      .groups = {.data = &data},
                                      .operations = operations->get(),
                                      .samples = &samples});
      ASSERT_TRUE(trainer.ok()) << trainer.status();
      ASSERT_TRUE((*trainer)->InitialiseWeights().ok());
      logs[rank].all.clear();
      ASSERT_TRUE((*trainer)->Step().ok());
    });
  }
  for (std::thread& rank : ranks) rank.join();
  return logs[0].all;
}

class GradientOverlap : public ::testing::TestWithParam<bool> {};

TEST_P(GradientOverlap, EachBucketIsSummedAsSoonAsItsBlockIsDone) {
  const bool zero = GetParam();
  const std::string sum = zero ? "reduce-scatter" : "all-reduce";
  const std::vector<Happening> step = OneStep(zero);
  const v1::JobSpec spec = SmallJob();
  const ParameterLayout layout = LayoutOf(spec.model(), *Mesh::Create(1, 2, 1), 0);

  // Between the first begin and end: the sums, and how many matrix products come after each.
  std::vector<int64_t> counts, products;
  size_t at = 0;
  while (at < step.size() && step[at].what != "begin") {
    EXPECT_NE(step[at].what, sum) << "before the last backward pass";
    ++at;
  }
  for (; at < step.size() && step[at].what != "end"; ++at) {
    if (step[at].what == sum) {
      counts.push_back(step[at].count);
      products.push_back(0);
    } else if (step[at].what == "product" && !products.empty()) {
      ++products.back();
    }
  }
  ASSERT_LT(at, step.size()) << "the overlap ends";

  // Head, blocks from the last to the first, then what is complete at the end: embedding and norms.
  std::vector<int64_t> expected;
  for (int64_t block = spec.model().layers(); block >= -1; --block) {
    for (const FlatBucket& bucket : layout.buckets) {
      if (bucket.block == block) expected.push_back(bucket.range.count / (zero ? 2 : 1));
    }
  }
  EXPECT_EQ(counts, expected);
  // The backward passes of the blocks run after the sum of the block behind them was started: twice as many products as a
  // block has matrices.
  for (int64_t block = 0; block < spec.model().layers(); ++block)
    EXPECT_EQ(products[static_cast<size_t>(block)], products.front()) << block;
  EXPECT_GE(products.front(), 8);

  // Nothing is updated before the end; all gathers are started together after the update, and waited for.
  std::vector<std::string> rest;
  for (++at; at < step.size(); ++at) {
    if (rest.empty() || rest.back() != step[at].what) rest.push_back(step[at].what);
  }
  if (zero) {
    EXPECT_THAT(rest, ElementsAre("all-reduce", "update", "begin", "all-gather", "end"));
  } else {
    EXPECT_THAT(rest, ElementsAre("all-reduce", "update"));
  }
}

INSTANTIATE_TEST_SUITE_P(, GradientOverlap, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "ZeRO1" : "Replicated"; });

}  // namespace
}  // namespace mt
