#include <thread>

#include "worker/comm/communicator_suite.h"

namespace mt {
namespace {

// Runs `body` for every member on its own thread; returns their results in member order.
std::vector<absl::Status> RunMembers(std::vector<std::unique_ptr<Communicator>>& members,
                                     const std::function<absl::Status(Communicator*)>& body) {
  std::vector<absl::Status> results(members.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < members.size(); ++i) {
    threads.emplace_back([&, i] { results[i] = body(members[i].get()); });
  }
  for (std::thread& thread : threads) thread.join();
  return results;
}

TEST(SelfCommunicator, EverythingIsACopy) {
  const auto self = NewSelfCommunicator("tensor");
  EXPECT_EQ(self->size(), 1);
  EXPECT_TRUE(RunCollectives<float>(self.get(), MT_F32, {0, 1, 100}).ok());
  EXPECT_EQ(self->bytes_moved(), 0);
}

TEST(InProcessGroup, CollectivesAddInRankOrder) {
  for (const int size : {2, 3, 4}) {
    auto members = NewInProcessGroup("data", size);
    for (const absl::Status& status : RunMembers(members, [](Communicator* comm) -> absl::Status {
           MT_RETURN_IF_ERROR(RunCollectives<float>(comm, MT_F32, {1, 2, 7, 1000}));
           MT_RETURN_IF_ERROR(RunCollectives<double>(comm, MT_F64, {5, 333}));
           MT_RETURN_IF_ERROR(RunCollectives<int32_t>(comm, MT_I32, {5, 333}));
           MT_RETURN_IF_ERROR(RunCollectives<uint16_t>(comm, MT_BF16, {1, 9, 3000, 40001}));
           MT_RETURN_IF_ERROR(RunGathersOfBytes(comm));
           return RunCollectives<int64_t>(comm, MT_I64, {5, 333});
         })) {
      EXPECT_TRUE(status.ok()) << status;
    }
  }
}

TEST(InProcessGroup, CrossingSendsDoNotDeadlock) {
  auto members = NewInProcessGroup("pipeline", 3);
  for (const absl::Status& status : RunMembers(members, [](Communicator* comm) -> absl::Status {
         for (const int64_t bytes : {0, 1, 4097, 1 << 20})
           MT_RETURN_IF_ERROR(RunCrossingSends(comm, bytes));
         return absl::OkStatus();
       })) {
    EXPECT_TRUE(status.ok()) << status;
  }
}

TEST(InProcessGroup, SumsOfMaximaKeepNaN) {
  auto members = NewInProcessGroup("tensor", 2);
  for (const absl::Status& status : RunMembers(members, [](Communicator* comm) -> absl::Status {
         float value = comm->rank() == 0 ? NAN : 1.f;
         MT_RETURN_IF_ERROR(comm->AllReduce(&value, 1, MT_F32, ReduceOp::kMax));
         MT_SUITE_CHECK(std::isnan(value));
         return absl::OkStatus();
       })) {
    EXPECT_TRUE(status.ok()) << status;
  }
}

TEST(InProcessGroup, MissingMemberIsNamedAfterTheTimeout) {
  auto members = NewInProcessGroup("tensor", 3, absl::Milliseconds(50));
  float value = 0;
  const absl::Status status = members[0]->AllReduce(&value, 1, MT_F32, ReduceOp::kSum);
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_NE(status.message().find("tensor group, member 0: all-reduce 1 of 1 F32"),
            absl::string_view::npos)
      << status;
  EXPECT_NE(status.message().find("for member 1"), absl::string_view::npos) << status;
  EXPECT_EQ(BlamedRank(status), 1);
  // Later calls give the first failure at once; the others hear of it too.
  EXPECT_EQ(members[0]->Barrier(), status);
  EXPECT_EQ(members[1]->Barrier().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(BlamedRank(members[2]->Barrier()), 0);
}

TEST(InProcessGroup, MemberThatLeftIsUnavailable) {
  auto members = NewInProcessGroup("data", 2);
  members[1].reset();
  const absl::Status status = members[0]->Barrier();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(status.message().find("member 1 has left the group"), absl::string_view::npos)
      << status;
}

TEST(InProcessGroup, AbortWakesThisMemberAndItsPeers) {
  auto members = NewInProcessGroup("data", 3);
  absl::Status waiting;
  std::thread waiter([&] { waiting = members[0]->Barrier(); });
  members[2]->Abort("stop asked for");
  waiter.join();
  EXPECT_EQ(waiting.code(), absl::StatusCode::kAborted);
  EXPECT_NE(waiting.message().find("stop asked for"), absl::string_view::npos) << waiting;
  EXPECT_EQ(BlamedRank(waiting), 2);
  EXPECT_EQ(members[2]->Barrier().code(), absl::StatusCode::kAborted);
}

TEST(InProcessGroup, DifferentOperationsAreNoticed) {
  auto members = NewInProcessGroup("data", 2);
  const auto results = RunMembers(members, [](Communicator* comm) -> absl::Status {
    float value[2] = {};
    return comm->rank() == 0 ? comm->AllReduce(value, 1, MT_F32, ReduceOp::kSum)
                             : comm->AllReduce(value, 2, MT_F32, ReduceOp::kSum);
  });
  EXPECT_EQ(results[0].code(), absl::StatusCode::kAborted);
  EXPECT_EQ(results[1].code(), absl::StatusCode::kAborted);
}

TEST(InProcessGroup, MessageOfAnotherSizeIsNoticed) {
  auto members = NewInProcessGroup("pipeline", 2);
  ASSERT_TRUE(members[0]->Send("abc", 3, 1).ok());
  char buffer[8];
  const absl::Status status = members[1]->Receive(buffer, 8, 0);
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_NE(status.message().find("sent 3 bytes"), absl::string_view::npos) << status;
}

}  // namespace
}  // namespace mt
