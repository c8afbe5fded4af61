#include <dirent.h>

#include <thread>

#include "worker/comm/communicator_suite.h"
#include "worker/comm/process_group.h"

namespace mt {
namespace {

absl::StatusOr<std::unique_ptr<Communicator>> Join(int rank, int size, Rendezvous* rendezvous,
                                                   absl::Duration timeout = absl::Seconds(60),
                                                   int64_t slot_bytes = 64 << 10) {
  SharedMemoryOptions options;
  options.name = "tensor";
  options.prefix = "job/1/tensor";
  options.rank = rank;
  options.size = size;
  for (int i = 0; i < size; ++i) options.ranks.push_back(10 + i);
  options.timeout = timeout;
  options.slot_bytes = slot_bytes;
  return NewSharedMemoryCommunicator(options, rendezvous);
}

int OpenDescriptors() {
  int count = 0;
  DIR* folder = opendir("/proc/self/fd");
  while (readdir(folder) != nullptr) ++count;
  closedir(folder);
  return count;
}

TEST(SharedMemory, CollectivesBetweenProcessesAddInRankOrder) {
  for (const int size : {2, 3, 4}) {
    ProcessGroup group(size, [size](int rank, Rendezvous* rendezvous) -> absl::Status {
      // Small slots, so that these sizes take one block, exactly one, and several.
      MT_ASSIGN_OR_RETURN(const auto comm,
                          Join(rank, size, rendezvous, absl::Seconds(60), 64 << 10));
      MT_RETURN_IF_ERROR(
          RunCollectives<float>(comm.get(), MT_F32, {1, 7, 4096, 8192, 8193, 50001}));
      MT_RETURN_IF_ERROR(RunCollectives<double>(comm.get(), MT_F64, {3, 2048, 20001}));
      MT_RETURN_IF_ERROR(RunCollectives<uint16_t>(comm.get(), MT_BF16, {1, 9, 3000, 40001}));
      MT_RETURN_IF_ERROR(RunGathersOfBytes(comm.get()));
      return RunCollectives<int64_t>(comm.get(), MT_I64, {5, 6000});
    });
    group.ExpectAllOk();
  }
}

TEST(SharedMemory, CrossingSendsOfAnySizeDoNotDeadlock) {
  ProcessGroup group(3, [](int rank, Rendezvous* rendezvous) -> absl::Status {
    MT_ASSIGN_OR_RETURN(const auto comm, Join(rank, 3, rendezvous));
    for (const int64_t bytes : {0, 1, 4096, 100000, 8 << 20, 17})
      MT_RETURN_IF_ERROR(RunCrossingSends(comm.get(), bytes));
    return absl::OkStatus();
  });
  group.ExpectAllOk();
}

TEST(SharedMemory, WorksBetweenThreadsAndLeavesNoDescriptor) {
  const int before = OpenDescriptors();
  {
    SharedRendezvous rendezvous;
    std::vector<std::thread> threads;
    std::vector<absl::Status> results(2);
    for (int rank = 0; rank < 2; ++rank) {
      threads.emplace_back([&, rank] {
        auto comm = Join(rank, 2, &rendezvous);
        results[rank] =
            comm.ok() ? RunCollectives<float>(comm->get(), MT_F32, {10, 30000}) : comm.status();
        if (results[rank].ok()) results[rank] = RunCrossingSends(comm->get(), 5000);
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const absl::Status& status : results) EXPECT_TRUE(status.ok()) << status;
  }
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST(SharedMemory, KilledPeerIsNamedByTheSurvivors) {
  int started[2];
  ASSERT_EQ(pipe(started), 0);
  ProcessGroup group(3, [&](int rank, Rendezvous* rendezvous) -> absl::Status {
    MT_ASSIGN_OR_RETURN(const auto comm, Join(rank, 3, rendezvous));
    std::vector<float> data(100000, 1.f);
    for (int step = 0;; ++step) {
      MT_RETURN_IF_ERROR(comm->AllReduce(data.data(), data.size(), MT_F32, ReduceOp::kMax));
      if (step == 20 && rank == 2) (void)!write(started[1], "x", 1);
    }
  });
  char byte;
  ASSERT_EQ(read(started[0], &byte, 1), 1);
  group.Kill(2, SIGKILL);
  for (const int survivor : {0, 1}) {
    const ProcessGroup::Result result = group.Wait(survivor);
    // The first survivor to notice says UNAVAILABLE; the other may hear it from that one.
    EXPECT_TRUE(result.code == absl::StatusCode::kUnavailable ||
                result.code == absl::StatusCode::kAborted)
        << result.message;
    EXPECT_NE(result.message.find("rank 12 (member 2) has ended"), std::string::npos)
        << result.message;
    EXPECT_EQ(result.blamed, 12) << result.message;  // not the one who told
    EXPECT_NE(result.message.find("tensor group"), std::string::npos) << result.message;
    EXPECT_NE(result.message.find("all-reduce"), std::string::npos) << result.message;
  }
  close(started[0]);
  close(started[1]);
}

TEST(SharedMemory, PeerThatDiesBeforeItsMessageIsNamed) {
  ProcessGroup group(2, [](int rank, Rendezvous* rendezvous) -> absl::Status {
    MT_ASSIGN_OR_RETURN(const auto comm, Join(rank, 2, rendezvous));
    if (rank == 1) kill(getpid(), SIGKILL);
    char byte;
    return comm->Receive(&byte, 1, 1);
  });
  const ProcessGroup::Result result = group.Wait(0);
  EXPECT_EQ(result.code, absl::StatusCode::kUnavailable) << result.message;
  EXPECT_EQ(result.blamed, 11);
}

TEST(SharedMemory, MessagesOfAPeerThatHasLeftAreStillReceived) {
  ProcessGroup group(2, [](int rank, Rendezvous* rendezvous) -> absl::Status {
    MT_ASSIGN_OR_RETURN(auto comm, Join(rank, 2, rendezvous));
    char data[3] = {};
    if (rank == 0) {
      MT_RETURN_IF_ERROR(comm->Barrier());
      return comm->Receive(data, 3, 1);
    }
    MT_RETURN_IF_ERROR(comm->Send("abc", 3, 0));
    MT_RETURN_IF_ERROR(comm->Barrier());
    // The peer opens the message's memory through this process: it stays until the peer has closed
    // its side.
    return comm->Receive(data, 1, 0);
  });
  EXPECT_EQ(group.Wait(0).code, absl::StatusCode::kOk);
  EXPECT_EQ(group.Wait(1).code, absl::StatusCode::kUnavailable);  // rank 0 has left
}

TEST(SharedMemory, MissingMemberAtTheStartIsNamed) {
  SharedRendezvous rendezvous;
  const auto comm = Join(0, 2, &rendezvous, absl::Milliseconds(50));
  EXPECT_EQ(comm.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_NE(comm.status().message().find("for rank 11 (member 1)"), absl::string_view::npos)
      << comm.status();
  EXPECT_EQ(BlamedRank(comm.status()), 11);
}

TEST(SharedMemory, HungPeerIsNamedAfterTheTimeout) {
  ProcessGroup group(2, [](int rank, Rendezvous* rendezvous) -> absl::Status {
    MT_ASSIGN_OR_RETURN(const auto comm, Join(rank, 2, rendezvous, absl::Seconds(1)));
    if (rank == 1) raise(SIGSTOP);
    return comm->Barrier();
  });
  const ProcessGroup::Result result = group.Wait(0);
  EXPECT_EQ(result.code, absl::StatusCode::kDeadlineExceeded) << result.message;
  EXPECT_EQ(result.blamed, 11);
}

TEST(SharedMemory, AbortReachesThePeers) {
  ProcessGroup group(2, [](int rank, Rendezvous* rendezvous) -> absl::Status {
    MT_ASSIGN_OR_RETURN(const auto comm, Join(rank, 2, rendezvous));
    if (rank == 1) {
      comm->Abort("asked to stop");
      return comm->Barrier();
    }
    return comm->Barrier();
  });
  for (const int rank : {0, 1}) {
    const ProcessGroup::Result result = group.Wait(rank);
    EXPECT_EQ(result.code, absl::StatusCode::kAborted) << result.message;
    EXPECT_NE(result.message.find("asked to stop"), std::string::npos) << result.message;
  }
}

TEST(SharedMemory, DifferentOperationsAreNoticed) {
  ProcessGroup group(2, [](int rank, Rendezvous* rendezvous) -> absl::Status {
    MT_ASSIGN_OR_RETURN(const auto comm, Join(rank, 2, rendezvous));
    float values[4] = {};
    return comm->AllReduce(values, rank + 1, MT_F32, ReduceOp::kSum);
  });
  for (const int rank : {0, 1}) EXPECT_EQ(group.Wait(rank).code, absl::StatusCode::kAborted);
}

}  // namespace
}  // namespace mt
