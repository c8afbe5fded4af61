// For tests: devices whose streams run when the test lets them, and a library of collectives between them, in host memory.
//
// One thread may act for all ranks, or each rank be a thread. A stream is a queue of tasks; a task runs when it is at the head
// and what it needs is there: an event that has been recorded, or, for a collective, all members' parts at the heads of their
// streams (also send and receive: every message is a rendezvous). Nothing ever blocks but the backend's own waits.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/abi/mt_backend.h"
#include "worker/comm/communicator.h"

namespace mt::testing {

class FakeMachine {
 public:
  // The tables' functions act on the newest machine.
  explicit FakeMachine(int ranks);
  ~FakeMachine();
  FakeMachine(const FakeMachine&) = delete;
  FakeMachine& operator=(const FakeMachine&) = delete;

  const mt_backend* backend() const;
  const mt_collectives* collectives() const;
  // From here on the calling thread's null stream is that of `rank`.
  static void Act(int rank);

  // Enqueues `work` on the compute stream of the rank that the calling thread acts for.
  void Compute(std::function<void()> work);
  // Automatic (the default): streams run whenever anything is called. Otherwise only in Run.
  void set_automatic(bool automatic);
  // Not automatic, but streams run when an event is asked for or waited for, as late as a host can tell. `compute_first`: what
  // can run on compute streams does before anything on others, else after; each order shows the waits that the other hides.
  void set_lazy(bool compute_first);
  // What devices do happens between calls of these two.
  void set_around(std::function<void()> begin, std::function<void()> end);
  // Runs what can run, on all streams. True if every stream is empty then.
  bool Run();
  // Adds to the devices' clock, which events are stamped with.
  void Pass(double milliseconds);
  // The devices' clock is this one, in milliseconds.
  void set_clock(std::function<double()> clock);

  // One member's part of a collective.
  struct Part {
    int rank = 0;   // of the device
    int group = 0;  // communicators in the order of their unique ids, from 0
    int member = 0;
    int64_t number = 0;  // of the member's calls on this communicator, from 1
    std::string kind;    // "all_reduce"
  };
  // A collective of which `hold` is true for any part does not run.
  void set_hold(std::function<bool(const Part&)> hold);
  // Called with no lock held before a part is enqueued; an error fails the call.
  void set_on_call(std::function<int32_t(const Part&)> on_call);
  // Communicators that are being joined stay so.
  void set_slow_joins(bool slow);
  // As NCCL within a node: abort and destroy return only when all members that have been created have called one of them, and an
  // abort is told to no peer. Otherwise both return at once and the peers of an abort fail.
  void set_ends_together(bool together);
  // Waits until `count` aborts have been called; they need not have returned.
  void AwaitAborts(int count);
  // `state` of this group's communicators on `rank` reports an error from here on.
  void FailState(int group, int rank);

  int aborts() const;
  // Calls that the contract forbids: on an aborted communicator, or destroying one that is at work.
  int misuses() const;
  size_t events() const;  // that exist
  // The compute stream of the rank that the calling thread acts for is being recorded.
  bool recording() const;

 private:
  friend struct FakeTables;
  struct Stream;
  struct Event;
  struct Graph;
  struct Group;
  struct Member;
  struct Task;

  void RunLocked();
  void Begin();
  bool RunHead(Stream& stream);
  bool Arrived(Group& group, int64_t number);
  void Combine(Group& group, int64_t number);
  Stream* StreamOf(mt_stream stream);
  void Enqueue(Stream* stream, Task task);
  // With the lock held: runs streams if automatic; if lazy.
  void Changed();
  void Asked();

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::unique_ptr<Stream>> compute_, streams_;
  std::map<Event*, std::unique_ptr<Event>> events_;
  std::vector<std::unique_ptr<Group>> groups_;
  std::vector<std::unique_ptr<Member>> members_;
  std::function<bool(const Part&)> hold_;
  std::function<int32_t(const Part&)> on_call_;
  std::function<void()> begin_, end_;
  std::function<double()> clock_;
  bool at_work_ = false;  // between begin_ and end_
  bool automatic_ = true, lazy_ = false, compute_first_ = false, slow_joins_ = false,
       ends_together_ = false;
  double now_ = 0;
  int aborts_ = 0, misuses_ = 0;
};

}  // namespace mt::testing
