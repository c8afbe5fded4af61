// The rules of a communicator that never blocks, against a library that plays them: what is in progress, what fails, who is let
// go when it is aborted.
#include "kernels/cuda/collectives_nccl.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "kernels/host/host.h"

namespace mt::cuda {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// What the played library does and has seen.
struct Play {
  std::atomic<int> busy{0};  // this many questions are answered with ncclInProgress; -1: all
  std::atomic<ncclResult_t> state{ncclSuccess};    // what then holds
  std::atomic<ncclResult_t> call{ncclInProgress};  // what enqueuing calls return
  std::atomic<int> questions{0}, calls{0}, aborts{0}, destroys{0}, finalizes{0}, depth{0},
      uses_after_end{0};
  std::atomic<int> aborts_together{1};  // no abort returns before this many have been called
  std::atomic<size_t> count{0};
  std::atomic<ncclDataType_t> type{ncclInt8};
};
Play* play = nullptr;
int handle = 0;
const ncclComm_t kComm = reinterpret_cast<ncclComm_t>(&handle);
const mt_stream kStream = reinterpret_cast<mt_stream>(&handle);

void Use(ncclComm_t) {
  if (play->aborts + play->destroys > 0) ++play->uses_after_end;
}
ncclResult_t Enqueued(ncclComm_t comm, size_t count, ncclDataType_t type) {
  Use(comm);
  ++play->calls;
  play->count = count;
  play->type = type;
  return play->call;
}

Nccl PlayedLibrary() {
  Nccl nccl;
  nccl.version = 22809;
  nccl.ncclGetErrorString = [](ncclResult_t result) {
    return result == ncclRemoteError ? "remote process exited" : "some error";
  };
  nccl.ncclGetLastError = [](ncclComm_t) { return "socket closed"; };
  nccl.ncclGetUniqueId = [](ncclUniqueId* id) {
    std::memset(id, 7, sizeof *id);
    return ncclSuccess;
  };
  nccl.ncclCommInitRankConfig = [](ncclComm_t* comm, int, ncclUniqueId id, int,
                                   ncclConfig_t* config) {
    *comm = kComm;
    return config->blocking == 0 && id.internal[3] == 7 ? play->call.load() : ncclInvalidArgument;
  };
  nccl.ncclCommGetAsyncError = [](ncclComm_t comm, ncclResult_t* state) {
    Use(comm);
    ++play->questions;
    *state = play->state;
    if (play->busy != 0) {
      if (play->busy > 0) --play->busy;
      *state = ncclInProgress;
    }
    return ncclSuccess;
  };
  nccl.ncclAllReduce = [](const void*, void*, size_t count, ncclDataType_t type, ncclRedOp_t,
                          ncclComm_t comm, cudaStream_t) { return Enqueued(comm, count, type); };
  nccl.ncclReduceScatter = nccl.ncclAllReduce;
  nccl.ncclAllGather = [](const void*, void*, size_t count, ncclDataType_t type, ncclComm_t comm,
                          cudaStream_t) { return Enqueued(comm, count, type); };
  nccl.ncclBroadcast = [](const void*, void*, size_t count, ncclDataType_t type, int,
                          ncclComm_t comm, cudaStream_t) { return Enqueued(comm, count, type); };
  nccl.ncclSend = [](const void*, size_t count, ncclDataType_t type, int, ncclComm_t comm,
                     cudaStream_t) { return Enqueued(comm, count, type); };
  nccl.ncclRecv = [](void*, size_t count, ncclDataType_t type, int, ncclComm_t comm, cudaStream_t) {
    return Enqueued(comm, count, type);
  };
  nccl.ncclGroupStart = [] {
    ++play->depth;
    return ncclSuccess;
  };
  nccl.ncclGroupEnd = [] {
    --play->depth;
    return play->call.load();
  };
  nccl.ncclCommFinalize = [](ncclComm_t comm) {
    Use(comm);
    ++play->finalizes;
    play->busy = 2;
    return ncclInProgress;
  };
  nccl.ncclCommDestroy = [](ncclComm_t) {
    ++play->destroys;
    return ncclSuccess;
  };
  nccl.ncclCommAbort = [](ncclComm_t) {
    ++play->aborts;
    while (play->aborts < play->aborts_together) std::this_thread::yield();
    return ncclSuccess;
  };
  return nccl;
}

class CollectivesNcclTest : public ::testing::Test {
 protected:
  void SetUp() override {
    play = &play_;
    char id[MT_UNIQUE_ID_BYTES];
    ASSERT_EQ(nccl_->unique_id(id), MT_OK);
    play_.busy = 3;
    ASSERT_EQ(nccl_->create(id, 2, 4, &communicator_), MT_OK) << host::ErrorMessage();
  }
  void Settle() {
    while (nccl_->state(communicator_) == MT_IN_PROGRESS) std::this_thread::yield();
  }
  void TearDown() override {
    if (communicator_ != nullptr) {
      EXPECT_EQ(nccl_->destroy(communicator_), MT_OK);
    }
    EXPECT_EQ(play_.uses_after_end, 0) << "a handle was used after its end";
    EXPECT_EQ(play_.aborts + play_.destroys, ends_);
  }
  int32_t AllReduce() {
    return nccl_->all_reduce(communicator_, nullptr, nullptr, 5, MT_BF16, MT_REDUCE_SUM, kStream);
  }

  Play play_;
  const Nccl library_ = PlayedLibrary();
  const mt_collectives* nccl_ = MakeCollectives(&library_, [] { return int32_t{MT_OK}; });
  mt_communicator communicator_ = nullptr;
  int ends_ = 1;
};

TEST_F(CollectivesNcclTest, JoiningIsPolled) {
  EXPECT_EQ(nccl_->state(communicator_), MT_IN_PROGRESS);
  Settle();
  EXPECT_EQ(nccl_->state(communicator_), MT_OK);
  EXPECT_STREQ(nccl_->version, "2.28.9");
}

TEST_F(CollectivesNcclTest, ACallReturnsWhenTheLibraryHasTakenIt) {
  Settle();
  play_.busy = 5;
  const int before = play_.questions;
  EXPECT_EQ(AllReduce(), MT_OK);
  EXPECT_EQ(play_.questions - before, 6);
  EXPECT_EQ(play_.count, 5u);
  EXPECT_EQ(play_.type, ncclBfloat16);
  play_.call = ncclSuccess;  // nothing to wait for
  EXPECT_EQ(AllReduce(), MT_OK);
  EXPECT_EQ(play_.questions - before, 6);
}

TEST_F(CollectivesNcclTest, Fp8IsMovedAsBytesAndNotSummed) {
  Settle();
  EXPECT_EQ(nccl_->all_gather(communicator_, nullptr, nullptr, 9, MT_F8_E4M3, kStream), MT_OK);
  EXPECT_EQ(play_.type, ncclUint8);
  EXPECT_EQ(
      nccl_->all_reduce(communicator_, nullptr, nullptr, 9, MT_F8_E4M3, MT_REDUCE_SUM, kStream),
      MT_ERROR_UNSUPPORTED);
}

TEST_F(CollectivesNcclTest, APeersFailureNamesRankCallAndCauseAndStays) {
  Settle();
  play_.state = ncclRemoteError;
  EXPECT_EQ(AllReduce(), MT_ERROR_DEVICE);
  EXPECT_THAT(host::ErrorMessage(),
              AllOf(HasSubstr("rank 2 of 4"), HasSubstr("all_reduce"),
                    HasSubstr("remote process exited"), HasSubstr("socket closed")));
  const std::string first = host::ErrorMessage();
  play_.state = ncclSuccess;
  EXPECT_EQ(nccl_->state(communicator_), MT_ERROR_DEVICE);
  EXPECT_EQ(host::ErrorMessage(), first);
  const int calls = play_.calls;
  EXPECT_EQ(nccl_->send(communicator_, nullptr, 1, 0, kStream), MT_ERROR_DEVICE);
  EXPECT_EQ(play_.calls, calls) << "nothing is enqueued after a failure";
}

TEST_F(CollectivesNcclTest, AFailureThatTheCallItselfReturns) {
  Settle();
  play_.call = ncclInvalidUsage;
  EXPECT_EQ(nccl_->broadcast(communicator_, nullptr, 1, MT_F32, 0, kStream), MT_ERROR_DEVICE);
  EXPECT_THAT(host::ErrorMessage(), HasSubstr("broadcast: some error"));
}

TEST_F(CollectivesNcclTest, AbortLetsAWaitingCallGo) {
  Settle();
  play_.busy = -1;
  std::thread waiting([&] {
    EXPECT_EQ(AllReduce(), MT_ERROR_DEVICE);
    EXPECT_THAT(host::ErrorMessage(), HasSubstr("aborted"));
  });
  while (play_.calls == 0) std::this_thread::yield();
  EXPECT_EQ(nccl_->state(communicator_), MT_IN_PROGRESS) << "state does not wait for the call";
  EXPECT_EQ(nccl_->abort(communicator_), MT_OK);
  waiting.join();
  EXPECT_EQ(play_.aborts, 1);
  EXPECT_EQ(nccl_->abort(communicator_), MT_OK) << "a second abort is nothing";
  EXPECT_EQ(nccl_->state(communicator_), MT_ERROR_DEVICE);
}

TEST_F(CollectivesNcclTest, ASecondThreadsCallWaitsItsTurn) {
  Settle();
  play_.busy = -1;
  std::thread first([&] { EXPECT_EQ(AllReduce(), MT_OK); });
  while (play_.calls == 0) std::this_thread::yield();
  std::thread second([&] { EXPECT_EQ(AllReduce(), MT_OK); });
  const int questions = play_.questions;
  while (play_.questions < questions + 100) std::this_thread::yield();
  EXPECT_EQ(play_.calls, 1);
  play_.busy = 0;
  first.join();
  second.join();
  EXPECT_EQ(play_.calls, 2);
}

TEST_F(CollectivesNcclTest, AbortWhileJoining) {
  play_.busy = -1;
  EXPECT_EQ(nccl_->state(communicator_), MT_IN_PROGRESS);
  EXPECT_EQ(nccl_->abort(communicator_), MT_OK);
  EXPECT_EQ(nccl_->state(communicator_), MT_ERROR_DEVICE);
}

// NCCL's abort waits for the other processes of its node, which may be in the abort of another communicator.
TEST_F(CollectivesNcclTest, AbortsOfSeveralCommunicatorsWaitBesideEachOther) {
  Settle();
  char id[MT_UNIQUE_ID_BYTES];
  mt_communicator second = nullptr;
  ASSERT_EQ(nccl_->unique_id(id), MT_OK);
  ASSERT_EQ(nccl_->create(id, 0, 4, &second), MT_OK);
  play_.aborts_together = ends_ = 2;
  std::thread first([&] { EXPECT_EQ(nccl_->abort(communicator_), MT_OK); });
  EXPECT_EQ(nccl_->abort(second), MT_OK);
  first.join();
  EXPECT_EQ(nccl_->destroy(second), MT_OK);
}

TEST_F(CollectivesNcclTest, AGroupWaitsOnceAtItsEnd) {
  Settle();
  play_.busy = 4;
  const int before = play_.questions;
  ASSERT_EQ(nccl_->group_begin(), MT_OK);
  EXPECT_EQ(nccl_->send(communicator_, nullptr, 1, 0, kStream), MT_OK);
  EXPECT_EQ(nccl_->receive(communicator_, nullptr, 1, 0, kStream), MT_OK);
  EXPECT_EQ(play_.questions, before);
  EXPECT_EQ(play_.depth, 1);
  EXPECT_EQ(nccl_->group_end(), MT_OK);
  EXPECT_EQ(play_.depth, 0);
  EXPECT_EQ(play_.questions - before, 5);
  EXPECT_EQ(nccl_->group_end(), MT_ERROR_INVALID);
}

TEST_F(CollectivesNcclTest, AbortWaitsForAnOpenGroup) {
  Settle();
  ASSERT_EQ(nccl_->group_begin(), MT_OK);
  ASSERT_EQ(nccl_->send(communicator_, nullptr, 1, 0, kStream), MT_OK);
  std::thread aborting([&] { EXPECT_EQ(nccl_->abort(communicator_), MT_OK); });
  // Aborting has begun when calls are refused.
  while (nccl_->state(communicator_) == MT_OK) std::this_thread::yield();
  EXPECT_EQ(play_.aborts, 0);
  EXPECT_EQ(nccl_->group_end(), MT_ERROR_DEVICE);
  aborting.join();
  EXPECT_EQ(play_.aborts, 1);
}

TEST_F(CollectivesNcclTest, AHealthyCommunicatorEndsInOrder) {
  Settle();
  EXPECT_EQ(nccl_->destroy(communicator_), MT_OK);
  communicator_ = nullptr;
  EXPECT_EQ(play_.finalizes, 1);
  EXPECT_EQ(play_.busy, 0) << "it waits until what was enqueued is done";
  EXPECT_EQ(play_.destroys, 1);
}

TEST_F(CollectivesNcclTest, AFailedCommunicatorEndsByForce) {
  Settle();
  play_.state = ncclSystemError;
  EXPECT_EQ(nccl_->destroy(communicator_), MT_OK);
  communicator_ = nullptr;
  EXPECT_EQ(play_.finalizes, 0);
  EXPECT_EQ(play_.aborts, 1);
}

TEST_F(CollectivesNcclTest, RanksOutsideTheGroupAreRefused) {
  char id[MT_UNIQUE_ID_BYTES] = {};
  mt_communicator none = nullptr;
  EXPECT_EQ(nccl_->create(id, 4, 4, &none), MT_ERROR_INVALID);
  EXPECT_EQ(none, nullptr);
}

}  // namespace
}  // namespace mt::cuda
