#include "worker/comm/device_communicator.h"

#include <map>
#include <thread>

#include "worker/comm/communicator_suite.h"
#include "worker/comm/testing/fake_device.h"

namespace mt {
namespace {

using testing::FakeMachine;
using Links = DeviceGroupOptions::Links;

// Time that passes only when somebody pauses.
class PausedClock : public Clock {
 public:
  absl::Time Now() override { return absl::UnixEpoch() + Monotonic(); }
  absl::Duration Monotonic() override { return absl::Nanoseconds(now_.load()); }
  void Pass(absl::Duration time) { now_ += absl::ToInt64Nanoseconds(time); }

 private:
  std::atomic<int64_t> now_{0};
};

class Board : public Rendezvous {
 public:
  absl::Status Put(const std::string& key, const std::string& value) override {
    const std::lock_guard lock(mutex_);
    values_[key] = value;
    changed_.notify_all();
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) override {
    std::unique_lock lock(mutex_);
    if (waits_) changed_.wait(lock, [&] { return values_.contains(key); });
    if (!values_.contains(key)) return absl::DeadlineExceededError(key);
    return values_[key];
  }
  void Clear() { values_.clear(); }
  void set_waits(bool waits) { waits_ = waits; }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::string> values_;
  bool waits_ = true;
};

constexpr absl::Duration kTimeout = absl::Minutes(2);

// `size` ranks with a group each; nobody looks after them unless a test does.
class DeviceGroup : public ::testing::Test {
 protected:
  DeviceAccess Access() {
    return {.backend = machine_->backend(),
            .collectives = machine_->collectives(),
            .time = {.clock = &clock_,
                     .pause =
                         [this](absl::Duration time) {
                           clock_.Pass(time);
                           std::this_thread::yield();
                         }},
            .abort_grace = absl::ZeroDuration()};
  }
  DeviceGroupOptions Options(int rank, int size, Links links = Links::kNone) {
    DeviceGroupOptions options;
    options.name = "data";
    options.prefix = "job/1/data";
    options.rank = rank;
    options.size = size;
    options.timeout = kTimeout;
    options.links = links;
    for (int i = 0; i < size; ++i) options.ranks.push_back(10 + i);
    return options;
  }
  // Runs `body` on a thread per rank.
  void OnThreads(int size, const std::function<absl::Status(int rank)>& body) {
    std::vector<std::thread> threads;
    std::vector<absl::Status> results(size);
    for (int rank = 0; rank < size; ++rank) {
      threads.emplace_back([&, rank] {
        FakeMachine::Act(rank);
        results[rank] = body(rank);
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const absl::Status& result : results) EXPECT_TRUE(result.ok()) << result;
  }
  void Join(int size, Links links = Links::kNone, bool thread = false) {
    TearDown();
    board_.Clear();
    machine_ = std::make_unique<FakeMachine>(size);
    members_.resize(size);
    for (int rank = 0; rank < size; ++rank)
      watches_.push_back(std::make_shared<DeviceWatch>(Access(), thread));
    OnThreads(size, [&](int rank) -> absl::Status {
      return NewDeviceCommunicator(Options(rank, size, links), watches_[rank], &board_,
                                   &members_[rank]);
    });
  }
  void TearDown() override {
    members_.clear();
    watches_.clear();
    if (machine_ == nullptr) return;
    EXPECT_EQ(machine_->misuses(), 0);
    machine_.reset();
  }
  Communicator& Acting(int rank) {
    FakeMachine::Act(rank);
    return *members_[rank];
  }
  mt_event Record(int rank) {
    FakeMachine::Act(rank);
    mt_event event = nullptr;
    EXPECT_EQ(machine_->backend()->event_create(&event), MT_OK);
    EXPECT_EQ(machine_->backend()->event_record(event, nullptr), MT_OK);
    return event;
  }
  // Until the compute stream of `rank` has done everything.
  absl::Status Wait(int rank) {
    const mt_event event = Record(rank);
    Communicator* const group = members_[rank].get();
    absl::Status status = WaitForEvent(*machine_->backend(), event, {&group, 1}, Access().time);
    machine_->backend()->event_destroy(event);
    return status;
  }

  PausedClock clock_;
  Board board_;
  std::unique_ptr<FakeMachine> machine_;
  std::vector<std::shared_ptr<DeviceWatch>> watches_;
  std::vector<std::unique_ptr<Communicator>> members_;
};

// The suite's callers read results when a call returns: this waits for the device after each.
class Waiting : public Communicator {
 public:
  Waiting(Communicator* inner, std::function<absl::Status()> wait)
      : Communicator(inner->name(), inner->rank(), inner->size()),
        inner_(inner),
        wait_(std::move(wait)) {}
  absl::Status AllReduce(void* data, int64_t count, mt_dtype dtype, ReduceOp op) override {
    return Then(inner_->AllReduce(data, count, dtype, op));
  }
  absl::Status ReduceScatter(const void* input, void* output, int64_t count,
                             mt_dtype dtype) override {
    return Then(inner_->ReduceScatter(input, output, count, dtype));
  }
  absl::Status AllGather(const void* input, void* output, int64_t count, mt_dtype dtype) override {
    return Then(inner_->AllGather(input, output, count, dtype));
  }
  absl::Status Broadcast(void* data, int64_t count, mt_dtype dtype, int root) override {
    return Then(inner_->Broadcast(data, count, dtype, root));
  }
  absl::Status Barrier() override { return Then(inner_->Barrier()); }
  absl::Status Send(const void* data, int64_t bytes, int peer) override {
    return Then(inner_->Send(data, bytes, peer));
  }
  absl::Status Receive(void* data, int64_t bytes, int peer) override {
    return Then(inner_->Receive(data, bytes, peer));
  }
  void Abort(absl::string_view reason) override { inner_->Abort(reason); }
  absl::Status Health() const override { return inner_->Health(); }

 private:
  absl::Status Then(const absl::Status& status) { return status.ok() ? wait_() : status; }
  Communicator* const inner_;
  const std::function<absl::Status()> wait_;
};

TEST_F(DeviceGroup, CollectivesDoWhatTheInterfaceSays) {
  for (const int size : {2, 3}) {
    SCOPED_TRACE(size);
    Join(size);
    OnThreads(size, [&](int rank) -> absl::Status {
      Waiting comm(members_[rank].get(), [&, rank] { return Wait(rank); });
      MT_RETURN_IF_ERROR(RunCollectives<float>(&comm, MT_F32, {0, 1, 7, 1000}));
      MT_RETURN_IF_ERROR(RunCollectives<uint16_t>(&comm, MT_BF16, {2, 40}));
      MT_RETURN_IF_ERROR(RunCollectives<int64_t>(&comm, MT_I64, {5}));
      return RunGathersOfBytes(&comm);
    });
  }
}

TEST_F(DeviceGroup, CrossingSendsNeedNoReceive) {
  Join(3, Links::kAll);
  OnThreads(3, [&](int rank) -> absl::Status {
    Waiting comm(members_[rank].get(), [&, rank] { return Wait(rank); });
    for (const int64_t bytes : {0, 2, 4096, 400000})
      MT_RETURN_IF_ERROR(RunCrossingSends(&comm, bytes));
    return absl::OkStatus();
  });
}

TEST_F(DeviceGroup, MessagesGoOnlyWhereThereIsALink) {
  Join(3, Links::kNeighbours);
  float value = 1;
  ASSERT_TRUE(Acting(0).Send(&value, 4, 1).ok());
  ASSERT_TRUE(Acting(1).Receive(&value, 4, 0).ok());
  const absl::Status status = Acting(0).Send(&value, 4, 2);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("without a link to rank 12 (member 2)"), std::string::npos)
      << status;
}

TEST_F(DeviceGroup, ACallIsAStepOfTheComputeStream) {
  Join(2);
  machine_->set_automatic(false);
  float values[2] = {0, 0}, seen[2] = {0, 0};
  for (int rank : {0, 1}) {
    Acting(rank);
    machine_->Compute([&values, rank] { values[rank] = rank + 1.f; });
    ASSERT_TRUE(Acting(rank).AllReduce(&values[rank], 1, MT_F32, ReduceOp::kSum).ok());
    machine_->Compute([&, rank] { seen[rank] = values[rank]; });
  }
  EXPECT_EQ(values[0], 0) << "the call has returned before anything ran";
  EXPECT_TRUE(machine_->Run());
  EXPECT_EQ(seen[0], 3);
  EXPECT_EQ(seen[1], 3);
}

TEST_F(DeviceGroup, OverlappedCollectivesWaitForWhatWasBeforeAndNothingWaitsForThem) {
  Join(2);
  machine_->set_hold([](const FakeMachine::Part&) { return true; });
  float first[2] = {0, 0}, second[2] = {0, 0};
  bool beside[2] = {false, false}, after[2] = {false, false};
  for (int rank : {0, 1}) {
    ASSERT_TRUE(Acting(rank).BeginOverlap().ok());
    machine_->Compute([&, rank] { first[rank] = 1; });
    ASSERT_TRUE(Acting(rank).AllReduce(&first[rank], 1, MT_F32, ReduceOp::kSum).ok());
    machine_->Compute([&, rank] { second[rank] = 10; });
    ASSERT_TRUE(Acting(rank).AllReduce(&second[rank], 1, MT_F32, ReduceOp::kSum).ok());
    machine_->Compute([&, rank] { beside[rank] = true; });
    ASSERT_TRUE(Acting(rank).EndOverlap().ok());
    machine_->Compute([&, rank] { after[rank] = true; });
  }
  EXPECT_TRUE(beside[0] && beside[1]) << "compute goes on beside them";
  EXPECT_FALSE(after[0] || after[1]) << "what follows the end waits for all of them";
  EXPECT_EQ(first[0], 1);
  machine_->set_hold(nullptr);
  EXPECT_TRUE(after[0] && after[1]);
  EXPECT_EQ(first[1], 2);
  EXPECT_EQ(second[0], 20);
}

TEST_F(DeviceGroup, HostValuesAreThereWhenTheCallReturns) {
  Join(2);
  OnThreads(2, [&](int rank) -> absl::Status {
    int32_t wanted[2] = {rank, 5 - rank};
    MT_RETURN_IF_ERROR(members_[rank]->AllReduceHost(wanted, 2, MT_I32, ReduceOp::kMax));
    MT_SUITE_CHECK(wanted[0] == 1 && wanted[1] == 5);
    return absl::OkStatus();
  });
}

TEST_F(DeviceGroup, ASlowJoinEndsWithTheNameOfWhoDidNotCome) {
  machine_ = std::make_unique<FakeMachine>(3);
  board_.set_waits(false);
  auto watch = std::make_shared<DeviceWatch>(Access(), false);
  FakeMachine::Act(0);
  ASSERT_TRUE(board_.Put("job/1/data/here/1", "1").ok());
  std::unique_ptr<Communicator> left;
  const absl::Status status = NewDeviceCommunicator(Options(0, 3), watch, &board_, &left);
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_NE(status.message().find("data group, rank 10 (member 0): join 1: waited 2m for rank 12 "
                                  "(member 2), which did not come"),
            std::string::npos)
      << status;
  EXPECT_EQ(BlamedRank(status), 12);
  EXPECT_EQ(left->Health(), status);
  left = nullptr;
  EXPECT_EQ(machine_->aborts(), 1) << "what had begun to join is ended";

  Board empty;
  empty.set_waits(false);
  const absl::Status leaderless = NewDeviceCommunicator(Options(1, 2), watch, &empty, &left);
  EXPECT_EQ(BlamedRank(leaderless), 10) << leaderless;
}

TEST_F(DeviceGroup, AJoinTakesItsTime) {
  machine_ = std::make_unique<FakeMachine>(2);
  machine_->set_slow_joins(true);
  auto watch = std::make_shared<DeviceWatch>(Access(), false);
  std::atomic<int> joined{0};
  std::thread other([&] {
    // All members have created their communicators and time passes, but less than the deadline.
    while (clock_.Monotonic() < absl::Seconds(30)) std::this_thread::yield();
    EXPECT_EQ(joined, 0);
    machine_->set_slow_joins(false);
  });
  OnThreads(2, [&](int rank) -> absl::Status {
    std::unique_ptr<Communicator> member;
    MT_RETURN_IF_ERROR(NewDeviceCommunicator(Options(rank, 2), watch, &board_, &member));
    ++joined;
    return absl::OkStatus();
  });
  other.join();
  EXPECT_EQ(joined, 2);
}

// Rank 0 waits in its last all-reduce, which nobody else calls. (Joining is a group's call 1.)
class HalfCalled : public DeviceGroup {
 protected:
  void Begin(int size, bool thread = false) {
    Join(size, Links::kNone, thread);
    for (int rank = 0; rank < size; ++rank)
      ASSERT_TRUE(Acting(rank).AllReduce(values_, 0, MT_F32, ReduceOp::kSum).ok());
    for (int rank = 0; rank < size; ++rank)
      ASSERT_TRUE(Acting(rank).AllReduce(values_ + 8 * rank, 8, MT_F32, ReduceOp::kSum).ok());
    ASSERT_TRUE(Acting(0).AllReduce(values_, 4, MT_F32, ReduceOp::kSum).ok());
  }
  float values_[32] = {};
  const std::string kName = "data group, rank 10 (member 0): all-reduce 4 of 4 F32 (16 bytes): ";
};

TEST_F(HalfCalled, APeersFailureEndsWhatWaitsForIt) {
  Begin(2);
  watches_[0]->LookAtAll();
  EXPECT_TRUE(members_[0]->Health().ok());
  EXPECT_EQ(members_[0]->Unfinished(), "all-reduce 4 of 4 F32 (16 bytes)");
  machine_->FailState(0, 0);
  watches_[0]->LookAtAll();
  const absl::Status health = members_[0]->Health();
  EXPECT_EQ(health.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(std::string(health.message()), kName + "fake: remote process has ended");
  EXPECT_EQ(BlamedRank(health), 11) << "of two members it can only be the other";
  machine_->AwaitAborts(1);
  EXPECT_EQ(Acting(0).Barrier(), health);
  EXPECT_EQ(Wait(0), health) << "the aborted work is over, but it has not been done";
  watches_[0]->LookAtAll();
  members_[0] = nullptr;
  EXPECT_EQ(machine_->aborts(), 1);
}

TEST_F(HalfCalled, TheDeadlineCountsFromWhereTheDeviceHasReachedTheCall) {
  Begin(3);
  machine_->set_hold([](const FakeMachine::Part&) { return true; });
  watches_[0]->LookAtAll();
  clock_.Pass(kTimeout - absl::Seconds(1));
  watches_[0]->LookAtAll();
  EXPECT_TRUE(members_[0]->Health().ok());
  clock_.Pass(absl::Seconds(1));
  watches_[0]->LookAtAll();
  const absl::Status health = members_[0]->Health();
  EXPECT_EQ(health.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(std::string(health.message()), kName + "waited 2m for the other members");
  EXPECT_EQ(BlamedRank(health), std::nullopt);
}

TEST_F(DeviceGroup, WhatWaitsForComputeIsNotOverdue) {
  Join(2);
  machine_->set_automatic(false);
  float value = 0;
  Acting(0);
  machine_->Compute([] {});
  ASSERT_TRUE(Acting(0).AllReduce(&value, 1, MT_F32, ReduceOp::kSum).ok());
  for (int i = 0; i < 3; ++i) {
    watches_[0]->LookAtAll();
    clock_.Pass(kTimeout);
  }
  EXPECT_TRUE(members_[0]->Health().ok());
  EXPECT_EQ(members_[0]->Unfinished(), "") << "the device has not come to it";
  machine_->Run();
  watches_[0]->LookAtAll();
  EXPECT_EQ(members_[0]->Unfinished(), "all-reduce 2 of 1 F32 (4 bytes)");
}

TEST_F(HalfCalled, AbortFromAnotherThreadEndsTheWaitForTheStep) {
  Begin(2);
  std::thread other([&] {
    // Once the other is in its wait, where time passes.
    while (clock_.Monotonic() < absl::Seconds(1)) std::this_thread::yield();
    members_[0]->Abort("the user has gone home");
  });
  const absl::Status status = Wait(0);
  other.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(std::string(status.message()),
            "data group, rank 10 (member 0): aborted: the user has gone home");
  // And at peers that the library tells.
  machine_->AwaitAborts(1);
  watches_[1]->LookAtAll();
  EXPECT_EQ(BlamedRank(members_[1]->Health()), 10) << members_[1]->Health();
}

TEST_F(HalfCalled, TheWatchThreadSeesAFailureWhileTheHostWaits) {
  Begin(2, /*thread=*/true);
  machine_->FailState(0, 0);
  EXPECT_EQ(Wait(0).code(), absl::StatusCode::kUnavailable);
}

TEST_F(DeviceGroup, ACallThatHangsInTheLibraryIsEndedToo) {
  Join(2);
  std::atomic<bool> inside{false};
  machine_->set_on_call([&](const FakeMachine::Part&) -> int32_t {
    inside = true;
    while (machine_->aborts() == 0) std::this_thread::yield();  // what NCCL's does
    return MT_ERROR_DEVICE;
  });
  std::thread other([&] {
    while (!inside) std::this_thread::yield();
    EXPECT_EQ(members_[0]->Unfinished(), "broadcast 2 of 3 I32 (12 bytes) from rank 11 (member 1)");
    clock_.Pass(kTimeout);
    watches_[0]->LookAtAll();
  });
  int32_t values[3] = {};
  const absl::Status status = Acting(0).Broadcast(values, 3, MT_I32, 1);
  other.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_EQ(BlamedRank(status), 11);
}

TEST_F(DeviceGroup, AnErrorOfTheLibraryIsNamedAndEndsTheGroup) {
  Join(2);
  machine_->set_on_call([&](const FakeMachine::Part&) { return MT_ERROR_DEVICE; });
  double value = 0;
  const absl::Status status = Acting(0).AllReduce(&value, 1, MT_F64, ReduceOp::kSum);
  EXPECT_EQ(std::string(status.message()),
            "data group, rank 10 (member 0): all-reduce 2 of 1 F64 (8 bytes): fake: injected");
  members_[0] = nullptr;
  EXPECT_EQ(machine_->aborts(), 1);
}

TEST_F(DeviceGroup, CountsTheTimeOnTheDeviceAndTheBytes) {
  Join(2);
  machine_->set_hold([](const FakeMachine::Part&) { return true; });
  float values[8] = {};
  ASSERT_TRUE(Acting(0).AllReduce(values, 4, MT_F32, ReduceOp::kSum).ok());
  machine_->Pass(30);
  ASSERT_TRUE(Acting(1).AllReduce(values + 4, 4, MT_F32, ReduceOp::kSum).ok());
  machine_->Pass(12);
  machine_->set_hold(nullptr);
  for (auto& watch : watches_) watch->LookAtAll();
  EXPECT_EQ(members_[0]->seconds_spent(), absl::Milliseconds(42));
  EXPECT_EQ(members_[1]->seconds_spent(), absl::Milliseconds(12));
  EXPECT_EQ(members_[0]->bytes_moved(), 16);
}

TEST_F(DeviceGroup, EventsAreUsedAgain) {
  Join(2);
  float values[2] = {};
  size_t events = 0;
  for (int i = 0; i < 100; ++i) {
    for (int rank : {0, 1})
      ASSERT_TRUE(Acting(rank).AllReduce(&values[rank], 1, MT_F32, ReduceOp::kSum).ok());
    if (i == 3) events = machine_->events();
  }
  EXPECT_EQ(machine_->events(), events);
}

TEST_F(HalfCalled, AGroupThatIsDestroyedAtWorkIsAbortedFirst) {
  Begin(2);
  members_.clear();
  EXPECT_EQ(machine_->aborts(), 1);
}

// What NCCL does between processes of one node. A call that waits for ever makes these tests hang.
TEST_F(HalfCalled, AFailureIsTheCallersBeforeAnyAbortHasReturned) {
  Begin(2);
  machine_->set_ends_together(true);
  machine_->set_on_call([](const FakeMachine::Part&) { return MT_ERROR_DEVICE; });
  const absl::Status status = Acting(0).Barrier();
  EXPECT_NE(status.message().find("barrier 5: fake: injected"), std::string::npos) << status;
  machine_->AwaitAborts(1);  // it cannot return yet: the peer has not aborted
  watches_[1]->LookAtAll();
  EXPECT_TRUE(members_[1]->Health().ok()) << "nobody has told the peer";
  EXPECT_EQ(Wait(0), status);
  members_[1]->Abort("rank 10 has failed");
  members_.clear();
  EXPECT_EQ(machine_->aborts(), 2);
}

TEST_F(DeviceGroup, AllLanesBeginToAbortBeforeAnyIsWaitedFor) {
  Join(3, Links::kAll);
  machine_->set_ends_together(true);
  members_[0]->Abort("the first");
  machine_->AwaitAborts(5);  // its lane of the group, and two links to each of the others
  members_[2]->Abort("the last");
  members_[1]->Abort("the other");
  members_.clear();
  EXPECT_EQ(machine_->aborts(), 15);
}

// Links of both directions: if each member destroyed those that it sends on first, they would wait for each other.
TEST_F(DeviceGroup, MembersDestroyTheirLinksInOneOrder) {
  for (const Links links : {Links::kNeighbours, Links::kAll}) {
    Join(3, links);
    machine_->set_ends_together(true);
    OnThreads(3, [&](int rank) {
      members_[rank] = nullptr;
      return absl::OkStatus();
    });
    EXPECT_EQ(machine_->aborts(), 0);
  }
}

TEST_F(DeviceGroup, AJoinThatFailsIsToldBeforeItsAbortHasReturned) {
  machine_ = std::make_unique<FakeMachine>(2);
  machine_->set_slow_joins(true);
  machine_->set_ends_together(true);
  // The leader has come as far as its own join.
  const mt_collectives& library = *machine_->collectives();
  char id[MT_UNIQUE_ID_BYTES];
  mt_communicator leader = nullptr;
  ASSERT_EQ(library.unique_id(id), MT_OK);
  ASSERT_EQ(library.create(id, 0, 2, &leader), MT_OK);
  for (const char* key : {"job/1/data/id", "job/1/data/here/0"})
    ASSERT_TRUE(board_.Put(key, std::string(id, sizeof id)).ok());

  FakeMachine::Act(1);
  auto watch = std::make_shared<DeviceWatch>(Access(), false);
  std::unique_ptr<Communicator> left;
  DeviceGroupOptions options = Options(1, 2);
  options.timeout = absl::Milliseconds(50);
  const absl::Status status = NewDeviceCommunicator(options, watch, &board_, &left);
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  machine_->AwaitAborts(1);
  EXPECT_EQ(library.abort(leader), MT_OK);
  left = nullptr;
}

}  // namespace
}  // namespace mt
