#include <thread>

#include "worker/comm/communicator_suite.h"
#include "worker/comm/process_group.h"

namespace mt {
namespace {

GlooOptions Options(int rank, int size, absl::Duration timeout = absl::Seconds(15)) {
  GlooOptions options;
  options.name = "data";
  options.prefix = "job/1/data";
  options.address = "127.0.0.1";
  options.rank = rank;
  options.size = size;
  for (int i = 0; i < size; ++i) options.ranks.push_back(10 + i);
  options.timeout = timeout;
  return options;
}

TEST(Gloo, CollectivesBetweenProcessesAddInRankOrder) {
  for (const int size : {2, 3}) {
    ProcessGroup group(size, [size](int rank, Rendezvous* rendezvous) -> absl::Status {
      MT_ASSIGN_OR_RETURN(const auto comm, NewGlooCommunicator(Options(rank, size), rendezvous));
      MT_RETURN_IF_ERROR(RunCollectives<float>(comm.get(), MT_F32, {1, 7, 4097, 50001}));
      MT_RETURN_IF_ERROR(RunCollectives<double>(comm.get(), MT_F64, {3, 20001}));
      MT_RETURN_IF_ERROR(RunCollectives<uint16_t>(comm.get(), MT_BF16, {1, 9, 3000, 40001}));
      MT_RETURN_IF_ERROR(RunGathersOfBytes(comm.get()));
      return RunCollectives<int64_t>(comm.get(), MT_I64, {5, 6000});
    });
    group.ExpectAllOk();
  }
}

TEST(Gloo, CrossingSendsOfAnySizeDoNotDeadlock) {
  ProcessGroup group(3, [](int rank, Rendezvous* rendezvous) -> absl::Status {
    MT_ASSIGN_OR_RETURN(const auto comm, NewGlooCommunicator(Options(rank, 3), rendezvous));
    for (const int64_t bytes : {0, 1, 60000, 60001, 8 << 20, 17})
      MT_RETURN_IF_ERROR(RunCrossingSends(comm.get(), bytes));
    return absl::OkStatus();
  });
  group.ExpectAllOk();
}

TEST(Gloo, WhatWasSentArrivesAfterTheSenderHasLeft) {
  ProcessGroup group(2, [](int rank, Rendezvous* rendezvous) -> absl::Status {
    MT_ASSIGN_OR_RETURN(auto comm, NewGlooCommunicator(Options(rank, 2), rendezvous));
    std::vector<char> data(200000, static_cast<char>(7 - rank));
    if (rank == 0) return comm->Send(data.data(), data.size(), 1);
    MT_RETURN_IF_ERROR(comm->Receive(data.data(), data.size(), 0));
    MT_SUITE_CHECK(data == std::vector<char>(200000, 7));
    return absl::OkStatus();
  });
  group.ExpectAllOk();
}

// A deadline, a missing peer, a dead one: who waits says which.
TEST(Gloo, KilledPeerIsNamedByTheSurvivor) {
  int started[2];
  ASSERT_EQ(pipe(started), 0);
  ProcessGroup group(2, [&](int rank, Rendezvous* rendezvous) -> absl::Status {
    MT_ASSIGN_OR_RETURN(const auto comm, NewGlooCommunicator(Options(rank, 2), rendezvous));
    std::vector<float> data(100000, 1.f);
    for (int step = 0;; ++step) {
      MT_RETURN_IF_ERROR(comm->AllReduce(data.data(), data.size(), MT_F32, ReduceOp::kMax));
      if (step == 5 && rank == 1) (void)!write(started[1], "x", 1);
    }
  });
  char byte;
  ASSERT_EQ(read(started[0], &byte, 1), 1);
  group.Kill(1, SIGKILL);
  const ProcessGroup::Result result = group.Wait(0);
  EXPECT_EQ(result.code, absl::StatusCode::kUnavailable) << result.message;
  EXPECT_EQ(result.blamed, 11) << result.message;
  EXPECT_NE(result.message.find("data group, rank 10 (member 0): all-reduce"), std::string::npos)
      << result.message;
  close(started[0]);
  close(started[1]);
}

TEST(Gloo, EverySurvivorOfAKillHears) {
  ProcessGroup group(3, [](int rank, Rendezvous* rendezvous) -> absl::Status {
    MT_ASSIGN_OR_RETURN(const auto comm, NewGlooCommunicator(Options(rank, 3), rendezvous));
    MT_RETURN_IF_ERROR(comm->Barrier());
    if (rank == 1) kill(getpid(), SIGKILL);
    std::vector<float> data(100000, 1.f);
    MT_RETURN_IF_ERROR(comm->AllReduce(data.data(), data.size(), MT_F32, ReduceOp::kMax));
    return absl::OkStatus();
  });
  for (const int survivor : {0, 2}) {
    const ProcessGroup::Result result = group.Wait(survivor);
    EXPECT_EQ(result.code, absl::StatusCode::kUnavailable) << result.message;
  }
}

TEST(Gloo, HungPeerIsNamedAfterTheTimeout) {
  ProcessGroup group(2, [](int rank, Rendezvous* rendezvous) -> absl::Status {
    MT_ASSIGN_OR_RETURN(const auto comm,
                        NewGlooCommunicator(Options(rank, 2, absl::Seconds(2)), rendezvous));
    if (rank == 1) raise(SIGSTOP);
    return comm->Barrier();
  });
  const ProcessGroup::Result result = group.Wait(0);
  EXPECT_EQ(result.code, absl::StatusCode::kDeadlineExceeded) << result.message;
  EXPECT_NE(result.message.find("barrier"), std::string::npos) << result.message;
  EXPECT_EQ(result.blamed, 11);
}

TEST(Gloo, MissingMemberAtTheStartIsNamed) {
  SharedRendezvous rendezvous;
  const auto comm = NewGlooCommunicator(Options(0, 2, absl::Milliseconds(300)), &rendezvous);
  EXPECT_EQ(comm.status().code(), absl::StatusCode::kDeadlineExceeded) << comm.status();
  EXPECT_NE(comm.status().message().find("rank 11 (member 1)"), absl::string_view::npos)
      << comm.status();
  EXPECT_EQ(BlamedRank(comm.status()), 11);
}

TEST(Gloo, ImpossibleAddressIsAnErrorNotAnException) {
  SharedRendezvous rendezvous;
  GlooOptions options = Options(0, 2, absl::Milliseconds(300));
  options.address = "192.0.2.77";  // nobody's
  EXPECT_FALSE(NewGlooCommunicator(options, &rendezvous).ok());
}

TEST(Gloo, AbortWakesThisMemberAndThePeers) {
  ProcessGroup group(2, [](int rank, Rendezvous* rendezvous) -> absl::Status {
    MT_ASSIGN_OR_RETURN(const auto comm, NewGlooCommunicator(Options(rank, 2), rendezvous));
    MT_RETURN_IF_ERROR(comm->Barrier());  // both have joined
    char byte;
    if (rank == 0) return comm->Receive(&byte, 1, 1);
    std::thread aborter([&] { comm->Abort("asked to stop"); });
    const absl::Status status = comm->Receive(&byte, 1, 0);
    aborter.join();
    return status;
  });
  const ProcessGroup::Result self = group.Wait(1);
  EXPECT_EQ(self.code, absl::StatusCode::kAborted) << self.message;
  EXPECT_NE(self.message.find("asked to stop"), std::string::npos) << self.message;
  const ProcessGroup::Result peer = group.Wait(0);
  EXPECT_EQ(peer.code, absl::StatusCode::kUnavailable) << peer.message;
  EXPECT_EQ(peer.blamed, 11);
}

// The promise that lets a job change transports: not one bit depends on it.
TEST(Transports, GiveTheSameBits) {
  constexpr int kSize = 3;
  constexpr int64_t kCount = 30011;
  const auto run =
      [&](const std::function<absl::StatusOr<std::unique_ptr<Communicator>>(int)>& join) {
        std::vector<std::vector<float>> results(kSize);
        std::vector<std::thread> threads;
        for (int rank = 0; rank < kSize; ++rank) {
          threads.emplace_back([&, rank] {
            const auto comm = join(rank);
            ASSERT_TRUE(comm.ok()) << comm.status();
            std::vector<float> data = WildValues<float>(rank, kCount, 5), part(kCount / kSize);
            ASSERT_TRUE(
                (*comm)->ReduceScatter(data.data(), part.data(), kCount / kSize, MT_F32).ok());
            ASSERT_TRUE((*comm)->AllReduce(data.data(), kCount, MT_F32, ReduceOp::kSum).ok());
            results[rank] = data;
            results[rank].insert(results[rank].end(), part.begin(), part.end());
          });
        }
        for (std::thread& thread : threads) thread.join();
        return results;
      };
  auto threads = NewInProcessGroup("t", kSize);
  const auto in_process = run([&](int rank) -> absl::StatusOr<std::unique_ptr<Communicator>> {
    return std::move(threads[rank]);
  });
  SharedRendezvous rendezvous;
  const auto gloo =
      run([&](int rank) { return NewGlooCommunicator(Options(rank, kSize), &rendezvous); });
  const auto shared = run([&](int rank) {
    SharedMemoryOptions options;
    options.name = "t";
    options.prefix = "shm";
    options.rank = rank;
    options.size = kSize;
    options.slot_bytes = 32 << 10;
    return NewSharedMemoryCommunicator(options, &rendezvous);
  });
  for (int rank = 0; rank < kSize; ++rank) {
    ASSERT_EQ(in_process[rank].size(), static_cast<size_t>(kCount + kCount / kSize));
    EXPECT_EQ(std::memcmp(in_process[rank].data(), shared[rank].data(),
                          in_process[rank].size() * sizeof(float)),
              0);
    EXPECT_EQ(std::memcmp(in_process[rank].data(), gloo[rank].data(),
                          in_process[rank].size() * sizeof(float)),
              0);
  }
}

}  // namespace
}  // namespace mt
