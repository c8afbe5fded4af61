#include "kernels/cuda/collectives_nccl.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/host/host.h"

namespace mt::cuda {
namespace {

using Clock = std::chrono::steady_clock;

// How long the end of a communicator may take before it is left to the end of the process.
constexpr auto kEndDeadline = std::chrono::seconds(10);
// Of that, how long what is still enqueued may take to finish in order.
constexpr auto kFinalizeDeadline = std::chrono::seconds(5);
// A group is a few calls in a row; an abort lets the thread that makes them come to its end.
constexpr auto kGroupDeadline = std::chrono::seconds(2);

const Nccl* library = nullptr;
int32_t (*bind_thread)() = nullptr;

// Invariants
//  - `comm` is used only under `mutex`, one call of NCCL at a time, and is null once the communicator has been taken apart: no
//    thread can meet a handle that another has freed.
//  - Waiting is done without the mutex and without anything that communicators share, so `state` never waits for a peer, and aborts of
//    several communicators wait beside each other.
//  - `failure`, once set, stays: the first cause is what is reported.
//  - `order` is held from a call until the library has taken it: a second thread's call waits its turn.
struct Communicator {
  int32_t rank = 0, size = 0;
  std::atomic<bool> ending{false};  // abort or destroy has begun
  std::mutex order;                 // before `mutex`
  std::mutex mutex;
  std::condition_variable group_left;
  ncclComm_t comm = nullptr;
  int in_groups = 0;  // threads between group_begin and group_end that have used it
  std::string failure;
};

Communicator* Of(mt_communicator communicator) {
  return reinterpret_cast<Communicator*>(communicator);
}

// The calling thread's group: how deep, and which communicators it has used.
struct Group {
  int depth = 0;
  std::vector<Communicator*> used;
};
thread_local Group group;

// Under the mutex. Keeps the first cause and reports it.
int32_t FailedLocked(Communicator& c, const std::string& what, ncclResult_t result) {
  if (c.failure.empty()) {
    const char* detail = c.comm != nullptr ? library->ncclGetLastError(c.comm) : nullptr;
    c.failure = "rank " + std::to_string(c.rank) + " of " + std::to_string(c.size) + ": " + what +
                ": " + library->ncclGetErrorString(result);
    if (detail != nullptr && detail[0] != '\0') c.failure += std::string(": ") + detail;
  }
  return host::Fail(MT_ERROR_DEVICE, 0, "%s", c.failure.c_str());
}

int32_t EndedLocked(Communicator& c, const char* what) {
  if (!c.failure.empty()) return host::Fail(MT_ERROR_DEVICE, 0, "%s", c.failure.c_str());
  return host::Fail(MT_ERROR_DEVICE, 0, "rank %d of %d: %s: the communicator was aborted", c.rank,
                    c.size, what);
}

// MT_OK, MT_IN_PROGRESS or an error. Never waits.
int32_t Look(Communicator& c, const char* what) {
  const std::lock_guard lock(c.mutex);
  if (c.comm == nullptr || c.ending || !c.failure.empty()) return EndedLocked(c, what);
  ncclResult_t state = ncclSuccess;
  const ncclResult_t asked = library->ncclCommGetAsyncError(c.comm, &state);
  if (asked != ncclSuccess) return FailedLocked(c, "ncclCommGetAsyncError", asked);
  if (state == ncclInProgress) return MT_IN_PROGRESS;
  if (state != ncclSuccess) return FailedLocked(c, what, state);
  return MT_OK;
}

// Waits until the communicator has taken what it was given. It ends with an abort, if not before.
int32_t WaitUntilTaken(Communicator& c, const char* what) {
  int32_t code = Look(c, what);
  for (int turn = 0; code == MT_IN_PROGRESS; ++turn) {
    if (turn < 1000)
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    code = Look(c, what);
  }
  return code;
}

// Makes one call of NCCL, `call(comm)`, that enqueues something; within a group the end of the group does the waiting.
template <typename Call>
int32_t Enqueue(mt_communicator communicator, const char* what, Call&& call) {
  if (communicator == nullptr)
    return host::Fail(MT_ERROR_INVALID, 0, "%s: communicator is null", what);
  if (const int32_t code = bind_thread(); code != MT_OK) return code;
  Communicator& c = *Of(communicator);
  std::unique_lock order(c.order, std::defer_lock);
  if (group.depth == 0) order.lock();
  {
    const std::lock_guard lock(c.mutex);
    if (c.comm == nullptr || c.ending || !c.failure.empty()) return EndedLocked(c, what);
    const ncclResult_t result = call(c.comm);
    if (result != ncclSuccess && result != ncclInProgress) return FailedLocked(c, what, result);
    if (group.depth > 0) {
      bool known = false;
      for (const Communicator* used : group.used) known = known || used == &c;
      if (!known) {
        group.used.push_back(&c);
        ++c.in_groups;
      }
      return MT_OK;
    }
    if (result == ncclSuccess) return MT_OK;
  }
  return WaitUntilTaken(c, what);
}

bool NcclType(int32_t type, ncclDataType_t* result) {
  switch (type) {
    case MT_F32:
      *result = ncclFloat32;
      return true;
    case MT_F64:
      *result = ncclFloat64;
      return true;
    case MT_BF16:
      *result = ncclBfloat16;
      return true;
    case MT_I32:
      *result = ncclInt32;
      return true;
    case MT_I64:
      *result = ncclInt64;
      return true;
    case MT_U8:
      *result = ncclUint8;
      return true;
    default:
      return false;
  }
}

// FP8 is moved as bytes; its sums would need the scales.
bool MovedType(int32_t type, ncclDataType_t* result) {
  return NcclType(type == MT_F8_E4M3 || type == MT_F8_E5M2 ? int32_t{MT_U8} : type, result);
}

int32_t BadType(const char* what, int32_t type) {
  return host::Fail(MT_ERROR_UNSUPPORTED, 0, "%s: type %d", what, type);
}

size_t Size(int64_t count) { return static_cast<size_t>(count); }

int32_t UniqueId(char id[MT_UNIQUE_ID_BYTES]) {
  static_assert(sizeof(ncclUniqueId) == MT_UNIQUE_ID_BYTES);
  if (const int32_t code = bind_thread(); code != MT_OK) return code;
  ncclUniqueId made;
  const ncclResult_t result = library->ncclGetUniqueId(&made);
  if (result != ncclSuccess)
    return host::Fail(MT_ERROR_DEVICE, 0, "ncclGetUniqueId: %s",
                      library->ncclGetErrorString(result));
  std::memcpy(id, &made, sizeof made);
  return MT_OK;
}

int32_t Create(const char id[MT_UNIQUE_ID_BYTES], int32_t rank, int32_t size,
               mt_communicator* communicator) {
  *communicator = nullptr;
  if (size < 1 || rank < 0 || rank >= size)
    return host::Fail(MT_ERROR_INVALID, 0, "communicator: rank %d of %d", rank, size);
  if (const int32_t code = bind_thread(); code != MT_OK) return code;
  ncclUniqueId unique;
  std::memcpy(&unique, id, sizeof unique);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  auto made = std::make_unique<Communicator>();
  made->rank = rank;
  made->size = size;
  const ncclResult_t result =
      library->ncclCommInitRankConfig(&made->comm, size, unique, rank, &config);
  if (result != ncclSuccess && result != ncclInProgress) {
    const std::lock_guard lock(made->mutex);
    return FailedLocked(*made, "ncclCommInitRankConfig", result);
  }
  *communicator = reinterpret_cast<mt_communicator>(made.release());
  return MT_OK;
}

int32_t State(mt_communicator communicator) {
  if (communicator == nullptr)
    return host::Fail(MT_ERROR_INVALID, 0, "state: communicator is null");
  return Look(*Of(communicator), "communicator");
}

int32_t AllReduce(mt_communicator communicator, const void* input, void* output, int64_t count,
                  int32_t dtype, int32_t reduce_op, mt_stream stream) {
  ncclDataType_t type;
  if (!NcclType(dtype, &type)) return BadType("all_reduce", dtype);
  const ncclRedOp_t op = reduce_op == MT_REDUCE_MAX ? ncclMax : ncclSum;
  return Enqueue(communicator, "all_reduce", [&](ncclComm_t comm) {
    return library->ncclAllReduce(input, output, Size(count), type, op, comm, StreamOf(stream));
  });
}

int32_t ReduceScatter(mt_communicator communicator, const void* input, void* output, int64_t count,
                      int32_t dtype, mt_stream stream) {
  ncclDataType_t type;
  if (!NcclType(dtype, &type)) return BadType("reduce_scatter", dtype);
  return Enqueue(communicator, "reduce_scatter", [&](ncclComm_t comm) {
    return library->ncclReduceScatter(input, output, Size(count), type, ncclSum, comm,
                                      StreamOf(stream));
  });
}

int32_t AllGather(mt_communicator communicator, const void* input, void* output, int64_t count,
                  int32_t dtype, mt_stream stream) {
  ncclDataType_t type;
  if (!MovedType(dtype, &type)) return BadType("all_gather", dtype);
  return Enqueue(communicator, "all_gather", [&](ncclComm_t comm) {
    return library->ncclAllGather(input, output, Size(count), type, comm, StreamOf(stream));
  });
}

int32_t Broadcast(mt_communicator communicator, void* data, int64_t count, int32_t dtype,
                  int32_t root, mt_stream stream) {
  ncclDataType_t type;
  if (!MovedType(dtype, &type)) return BadType("broadcast", dtype);
  return Enqueue(communicator, "broadcast", [&](ncclComm_t comm) {
    return library->ncclBroadcast(data, data, Size(count), type, root, comm, StreamOf(stream));
  });
}

int32_t Send(mt_communicator communicator, const void* data, int64_t bytes, int32_t peer,
             mt_stream stream) {
  return Enqueue(communicator, "send", [&](ncclComm_t comm) {
    return library->ncclSend(data, Size(bytes), ncclUint8, peer, comm, StreamOf(stream));
  });
}

int32_t Receive(mt_communicator communicator, void* data, int64_t bytes, int32_t peer,
                mt_stream stream) {
  return Enqueue(communicator, "receive", [&](ncclComm_t comm) {
    return library->ncclRecv(data, Size(bytes), ncclUint8, peer, comm, StreamOf(stream));
  });
}

int32_t GroupBegin() {
  if (const int32_t code = bind_thread(); code != MT_OK) return code;
  const ncclResult_t result = library->ncclGroupStart();
  if (result != ncclSuccess)
    return host::Fail(MT_ERROR_DEVICE, 0, "ncclGroupStart: %s",
                      library->ncclGetErrorString(result));
  ++group.depth;
  return MT_OK;
}

int32_t GroupEnd() {
  if (group.depth == 0) return host::Fail(MT_ERROR_INVALID, 0, "group_end without group_begin");
  const ncclResult_t result = library->ncclGroupEnd();
  if (--group.depth > 0) return MT_OK;
  const std::vector<Communicator*> used = std::move(group.used);
  group.used.clear();
  int32_t code = MT_OK;
  for (Communicator* c : used) {
    int32_t one = MT_OK;
    if (result == ncclInProgress) {
      one = WaitUntilTaken(*c, "group");
    } else if (result != ncclSuccess) {
      const std::lock_guard lock(c->mutex);
      one = FailedLocked(*c, "group", result);
    }
    if (code == MT_OK) code = one;
    const std::lock_guard lock(c->mutex);
    if (--c->in_groups == 0) c->group_left.notify_all();
  }
  if (code == MT_OK && used.empty() && result != ncclSuccess && result != ncclInProgress)
    return host::Fail(MT_ERROR_DEVICE, 0, "ncclGroupEnd: %s", library->ncclGetErrorString(result));
  return code;
}

// Runs `work` on a thread of its own; false if it has not ended by the deadline, and then it is left alone.
bool RunUntil(Clock::time_point deadline, std::function<void()> work) {
  struct Done {
    std::mutex mutex;
    std::condition_variable changed;
    bool done = false;
  };
  const auto done = std::make_shared<Done>();
  std::thread([done, work = std::move(work)] {
    if (bind_thread() == MT_OK) work();
    const std::lock_guard lock(done->mutex);
    done->done = true;
    done->changed.notify_all();
  }).detach();
  std::unique_lock lock(done->mutex);
  return done->changed.wait_until(lock, deadline, [&] { return done->done; });
}

// Takes the handle from the communicator, after which nobody else can use it. Threads inside a group are waited for.
ncclComm_t Take(Communicator& c) {
  c.ending = true;
  std::unique_lock lock(c.mutex);
  c.group_left.wait_for(lock, kGroupDeadline, [&] { return c.in_groups == 0; });
  return std::exchange(c.comm, nullptr);
}

int32_t TookTooLong(const Communicator& c, const char* what) {
  return host::Fail(MT_ERROR_DEVICE, 0,
                    "rank %d of %d: %s did not end in time; what it holds is given up", c.rank,
                    c.size, what);
}

int32_t Abort(mt_communicator communicator) {
  if (communicator == nullptr) return MT_OK;
  Communicator& c = *Of(communicator);
  const Clock::time_point deadline = Clock::now() + kEndDeadline;
  const ncclComm_t comm = Take(c);
  if (comm == nullptr) return MT_OK;
  // The library first tells its kernels and threads to stop, then waits: also for peers on this machine, whose memory and
  // whose proxy it shares, until they abort too.
  return RunUntil(deadline, [comm] { library->ncclCommAbort(comm); })
             ? MT_OK
             : TookTooLong(c, "ncclCommAbort");
}

// In order if all is well: what is enqueued finishes first. If a peer does not come along, or anything has failed, by force.
void Finish(ncclComm_t comm, bool healthy) {
  bool finished = false;
  if (healthy) {
    ncclResult_t state = library->ncclCommFinalize(comm);
    const auto deadline = Clock::now() + kFinalizeDeadline;
    while (state == ncclInProgress && Clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::microseconds(200));
      if (library->ncclCommGetAsyncError(comm, &state) != ncclSuccess) state = ncclInternalError;
    }
    finished = state == ncclSuccess;
  }
  if (finished)
    library->ncclCommDestroy(comm);
  else
    library->ncclCommAbort(comm);
}

int32_t Destroy(mt_communicator communicator) {
  if (communicator == nullptr) return MT_OK;
  const std::unique_ptr<Communicator> c(Of(communicator));
  // A communicator that is still being made cannot be finalized.
  const bool healthy = Look(*c, "communicator") == MT_OK;
  const Clock::time_point deadline = Clock::now() + kEndDeadline;
  const ncclComm_t comm = Take(*c);
  if (comm == nullptr) return MT_OK;
  return RunUntil(deadline, [comm, healthy] { Finish(comm, healthy); })
             ? MT_OK
             : TookTooLong(*c, "ncclCommDestroy");
}

}  // namespace

const mt_collectives* MakeCollectives(const Nccl* nccl, int32_t (*bind)()) {
  static mt_collectives table;
  static std::string version;
  library = nccl;
  bind_thread = bind;
  version = VersionText(nccl->version);
  table = {};
  table.struct_size = sizeof table;
  table.name = "nccl";
  table.version = version.c_str();
  table.unique_id = UniqueId;
  table.create = Create;
  table.state = State;
  table.all_reduce = AllReduce;
  table.reduce_scatter = ReduceScatter;
  table.all_gather = AllGather;
  table.broadcast = Broadcast;
  table.send = Send;
  table.receive = Receive;
  table.group_begin = GroupBegin;
  table.group_end = GroupEnd;
  table.abort = Abort;
  table.destroy = Destroy;
  return &table;
}

}  // namespace mt::cuda
