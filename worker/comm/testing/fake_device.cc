#include "worker/comm/testing/fake_device.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "worker/comm/reduce.h"

namespace mt::testing {
namespace {

FakeMachine* machine = nullptr;
thread_local int acting_rank = 0;
thread_local std::string last_error;

}  // namespace

struct FakeMachine::Event {
  int64_t recorded = 0, completed = 0;  // tickets
  double stamp = 0;
};

struct FakeMachine::Member {
  Group* group = nullptr;
  int rank = 0, member = 0;
  int64_t calls = 0;
  bool aborted = false, failed = false;
};

struct FakeMachine::Task {
  std::function<void()> work;  // or
  Event* record = nullptr;     // or
  Event* wait = nullptr;       // or
  Member* member = nullptr;    // a part of a collective
  int64_t ticket = 0;          // of the event, or number of the part
  Part part;
  const void* input = nullptr;
  void* output = nullptr;
  int64_t count = 0;
  mt_dtype dtype = MT_U8;
  int argument = 0;  // reduce_op, root
  bool done = false;
};

// What is launched goes on if the graph is destroyed.
struct FakeMachine::Graph {
  std::shared_ptr<std::vector<std::function<void()>>> tasks =
      std::make_shared<std::vector<std::function<void()>>>();
};

struct FakeMachine::Stream {
  int rank = 0;
  std::deque<Task> tasks;
  std::unique_ptr<Graph> recording;
  bool recordable = true;  // only work came since it began
};

struct FakeMachine::Group {
  int index = 0, size = 0;
  std::vector<Member*> members;
  std::map<int64_t, std::vector<Task*>> arrived;  // by number, then member
};

// What the C functions do.
struct FakeTables {
  using M = FakeMachine;
  static int32_t Error(const std::string& message) {
    last_error = message;
    return MT_ERROR_DEVICE;
  }
  static M::Event* Of(mt_event event) { return reinterpret_cast<M::Event*>(event); }
  static M::Member* Of(mt_communicator member) { return reinterpret_cast<M::Member*>(member); }

  static int32_t Allocate(size_t bytes, void** pointer) {
    *pointer = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    std::memset(*pointer, 0xee, bytes);
    return MT_OK;
  }
  static int32_t Free(void* pointer) {
    std::free(pointer);
    return MT_OK;
  }
  static int32_t Run(int32_t operation, const void* args, mt_stream stream) {
    if (operation != MT_OP_COPY) return Error("the fake device copies only");
    const auto& copy = *static_cast<const mt_copy_args*>(args);
    const size_t bytes = copy.count * ElementSize(static_cast<mt_dtype>(copy.source_dtype));
    return Memory(copy.destination, copy.source, bytes, stream);
  }
  static int32_t Memory(void* destination, const void* source, size_t bytes, mt_stream stream) {
    const std::lock_guard lock(machine->mutex_);
    machine->Enqueue(machine->StreamOf(stream), {.work = [=] {
                       if (bytes > 0) std::memcpy(destination, source, bytes);
                     }});
    return MT_OK;
  }
  static int32_t ToDevice(void* destination, const void* source, size_t bytes, mt_stream stream) {
    const std::lock_guard lock(machine->mutex_);
    const auto* from = static_cast<const char*>(source);
    machine->Enqueue(machine->StreamOf(stream),
                     {.work = [destination, staged = std::vector<char>(from, from + bytes)] {
                       std::memcpy(destination, staged.data(), staged.size());
                     }});
    return MT_OK;
  }

  static int32_t StreamCreate(mt_stream* stream) {
    const std::lock_guard lock(machine->mutex_);
    auto made = std::make_unique<M::Stream>();
    made->rank = acting_rank;
    *stream = reinterpret_cast<mt_stream>(made.get());
    machine->streams_.push_back(std::move(made));
    return MT_OK;
  }
  static int32_t StreamSynchronize(mt_stream stream) {
    std::unique_lock lock(machine->mutex_);
    M::Stream* const waited = machine->StreamOf(stream);
    machine->Asked();
    machine->changed_.wait(lock, [&] { return waited->tasks.empty(); });
    return MT_OK;
  }
  static int32_t StreamDestroy(mt_stream stream) {
    const std::lock_guard lock(machine->mutex_);
    std::erase_if(machine->streams_, [&](const auto& made) {
      return reinterpret_cast<mt_stream>(made.get()) == stream;
    });
    return MT_OK;
  }

  static int32_t EventCreate(mt_event* event) {
    const std::lock_guard lock(machine->mutex_);
    auto made = std::make_unique<M::Event>();
    *event = reinterpret_cast<mt_event>(made.get());
    M::Event* const key = made.get();
    machine->events_[key] = std::move(made);
    return MT_OK;
  }
  static int32_t EventRecord(mt_event event, mt_stream stream) {
    const std::lock_guard lock(machine->mutex_);
    machine->Enqueue(machine->StreamOf(stream),
                     {.record = Of(event), .ticket = ++Of(event)->recorded});
    return MT_OK;
  }
  static int32_t EventWait(mt_event event, mt_stream stream) {
    const std::lock_guard lock(machine->mutex_);
    machine->Enqueue(machine->StreamOf(stream), {.wait = Of(event), .ticket = Of(event)->recorded});
    return MT_OK;
  }
  static int32_t EventQuery(mt_event event) {
    const std::lock_guard lock(machine->mutex_);
    machine->Asked();
    return Of(event)->completed >= Of(event)->recorded ? MT_OK : MT_IN_PROGRESS;
  }
  static int32_t EventSynchronize(mt_event event) {
    std::unique_lock lock(machine->mutex_);
    machine->Asked();
    machine->changed_.wait(lock, [&] { return Of(event)->completed >= Of(event)->recorded; });
    return MT_OK;
  }
  static int32_t EventMilliseconds(mt_event first, mt_event last, float* milliseconds) {
    const std::lock_guard lock(machine->mutex_);
    *milliseconds = static_cast<float>(Of(last)->stamp - Of(first)->stamp);
    return MT_OK;
  }
  static int32_t EventDestroy(mt_event event) {
    const std::lock_guard lock(machine->mutex_);
    const M::Event* const gone = Of(event);
    const auto uses = [&](M::Stream& stream) {
      for (M::Task& task : stream.tasks) {
        if (task.record == gone || task.wait == gone) task.record = task.wait = nullptr;
      }
    };
    for (auto& stream : machine->compute_) uses(*stream);
    for (auto& stream : machine->streams_) uses(*stream);
    machine->events_.erase(Of(event));
    return MT_OK;
  }

  static int32_t GraphBegin(mt_stream stream) {
    const std::lock_guard lock(machine->mutex_);
    M::Stream& recorded = *machine->StreamOf(stream);
    if (recorded.recording != nullptr) return Error("the stream is being recorded already");
    recorded.recording = std::make_unique<M::Graph>();
    recorded.recordable = true;
    return MT_OK;
  }
  static int32_t GraphEnd(mt_stream stream, mt_graph* graph) {
    const std::lock_guard lock(machine->mutex_);
    M::Stream& recorded = *machine->StreamOf(stream);
    const auto made = std::move(recorded.recording);
    if (made == nullptr || !recorded.recordable) return Error("what was recorded is no graph");
    *graph = reinterpret_cast<mt_graph>(new M::Graph(*made));
    return MT_OK;
  }
  static int32_t GraphLaunch(mt_graph graph, mt_stream stream) {
    const std::lock_guard lock(machine->mutex_);
    machine->Enqueue(machine->StreamOf(stream),
                     {.work = [tasks = reinterpret_cast<M::Graph*>(graph)->tasks] {
                       for (const auto& task : *tasks) task();
                     }});
    return MT_OK;
  }
  static int32_t GraphDestroy(mt_graph graph) {
    delete reinterpret_cast<M::Graph*>(graph);
    return MT_OK;
  }

  static int32_t UniqueId(char id[MT_UNIQUE_ID_BYTES]) {
    const std::lock_guard lock(machine->mutex_);
    auto group = std::make_unique<M::Group>();
    group->index = static_cast<int>(machine->groups_.size());
    std::memset(id, 0, MT_UNIQUE_ID_BYTES);
    std::memcpy(id, &group->index, sizeof(int));
    machine->groups_.push_back(std::move(group));
    return MT_OK;
  }
  static int32_t Create(const char id[MT_UNIQUE_ID_BYTES], int32_t rank, int32_t size,
                        mt_communicator* communicator) {
    const std::lock_guard lock(machine->mutex_);
    int index = 0;
    std::memcpy(&index, id, sizeof(int));
    M::Group& group = *machine->groups_.at(index);
    group.size = size;
    group.members.resize(size);
    auto member = std::make_unique<M::Member>();
    member->group = &group;
    member->rank = acting_rank;
    member->member = rank;
    group.members[rank] = member.get();
    *communicator = reinterpret_cast<mt_communicator>(member.get());
    machine->members_.push_back(std::move(member));
    return MT_OK;
  }
  static int32_t State(mt_communicator communicator) {
    const std::lock_guard lock(machine->mutex_);
    const M::Member& member = *Of(communicator);
    if (member.aborted) ++machine->misuses_;
    if (member.failed) return Error("remote process has ended");
    const bool joined =
        std::count(member.group->members.begin(), member.group->members.end(), nullptr) == 0;
    return joined && !machine->slow_joins_ ? MT_OK : MT_IN_PROGRESS;
  }
  static int32_t Call(mt_communicator communicator, const char* kind, M::Task task,
                      mt_stream stream) {
    std::unique_lock lock(machine->mutex_);
    M::Member& member = *Of(communicator);
    if (member.aborted) ++machine->misuses_;
    task.member = &member;
    task.ticket = ++member.calls;
    task.part = {member.rank, member.group->index, member.member, task.ticket, kind};
    if (machine->on_call_ != nullptr) {
      const auto on_call = machine->on_call_;
      lock.unlock();
      const int32_t code = on_call(task.part);
      if (code != MT_OK) return code < 0 ? Error("injected") : code;
      lock.lock();
    }
    machine->Enqueue(machine->StreamOf(stream), std::move(task));
    return MT_OK;
  }
  static int32_t AllReduce(mt_communicator c, const void* input, void* output, int64_t count,
                           int32_t dtype, int32_t op, mt_stream stream) {
    return Call(c, "all_reduce",
                {.input = input,
                 .output = output,
                 .count = count,
                 .dtype = static_cast<mt_dtype>(dtype),
                 .argument = op},
                stream);
  }
  static int32_t ReduceScatter(mt_communicator c, const void* input, void* output, int64_t count,
                               int32_t dtype, mt_stream stream) {
    return Call(
        c, "reduce_scatter",
        {.input = input, .output = output, .count = count, .dtype = static_cast<mt_dtype>(dtype)},
        stream);
  }
  static int32_t AllGather(mt_communicator c, const void* input, void* output, int64_t count,
                           int32_t dtype, mt_stream stream) {
    return Call(
        c, "all_gather",
        {.input = input, .output = output, .count = count, .dtype = static_cast<mt_dtype>(dtype)},
        stream);
  }
  static int32_t Broadcast(mt_communicator c, void* data, int64_t count, int32_t dtype,
                           int32_t root, mt_stream stream) {
    return Call(c, "broadcast",
                {.input = data,
                 .output = data,
                 .count = count,
                 .dtype = static_cast<mt_dtype>(dtype),
                 .argument = root},
                stream);
  }
  static int32_t Send(mt_communicator c, const void* data, int64_t bytes, int32_t,
                      mt_stream stream) {
    return Call(c, "send", {.input = data, .count = bytes}, stream);
  }
  static int32_t Receive(mt_communicator c, void* data, int64_t bytes, int32_t, mt_stream stream) {
    return Call(c, "receive", {.output = data, .count = bytes}, stream);
  }
  static int32_t Abort(mt_communicator communicator) {
    std::unique_lock lock(machine->mutex_);
    M::Member& member = *Of(communicator);
    if (member.aborted) ++machine->misuses_;
    ++machine->aborts_;
    member.aborted = true;
    for (M::Member* const other : member.group->members) {
      if (other != nullptr && other != &member && !machine->ends_together_) other->failed = true;
    }
    machine->Changed();
    AwaitEnds(lock, member);
    return MT_OK;
  }
  static void AwaitEnds(std::unique_lock<std::mutex>& lock, const M::Member& member) {
    machine->changed_.notify_all();
    machine->changed_.wait(lock, [group = member.group] {
      return !machine->ends_together_ ||
             std::all_of(group->members.begin(), group->members.end(),
                         [](const M::Member* other) { return other == nullptr || other->aborted; });
    });
  }
  static int32_t Destroy(mt_communicator communicator) {
    std::unique_lock lock(machine->mutex_);
    M::Member& member = *Of(communicator);
    if (member.aborted) return MT_OK;
    for (const auto& stream : machine->streams_) {
      for (const M::Task& task : stream->tasks) {
        if (task.member == &member) ++machine->misuses_;
      }
    }
    member.aborted = true;
    AwaitEnds(lock, member);
    return MT_OK;
  }
};

namespace {

const mt_collectives& CollectivesTable();

const mt_backend& BackendTable() {
  static const mt_backend table = [] {
    mt_backend t{};
    t.struct_size = sizeof(t);
    t.abi_major = MT_BACKEND_ABI_MAJOR;
    t.abi_minor = MT_BACKEND_ABI_MINOR;
    t.name = "fake";
    t.version = "1";
    t.error_message = [] { return last_error.c_str(); };
    t.run = FakeTables::Run;
    t.allocate = FakeTables::Allocate;
    t.free = FakeTables::Free;
    t.copy_to_device = FakeTables::ToDevice;
    t.copy_to_host = FakeTables::Memory;
    t.stream_create = FakeTables::StreamCreate;
    t.stream_synchronize = FakeTables::StreamSynchronize;
    t.stream_destroy = FakeTables::StreamDestroy;
    t.event_create = FakeTables::EventCreate;
    t.event_record = FakeTables::EventRecord;
    t.event_wait = FakeTables::EventWait;
    t.event_query = FakeTables::EventQuery;
    t.event_synchronize = FakeTables::EventSynchronize;
    t.event_milliseconds = FakeTables::EventMilliseconds;
    t.event_destroy = FakeTables::EventDestroy;
    t.graph_begin = FakeTables::GraphBegin;
    t.graph_end = FakeTables::GraphEnd;
    t.graph_launch = FakeTables::GraphLaunch;
    t.graph_destroy = FakeTables::GraphDestroy;
    t.collectives = [] { return &CollectivesTable(); };
    return t;
  }();
  return table;
}

const mt_collectives& CollectivesTable() {
  static const mt_collectives table = {.struct_size = sizeof(mt_collectives),
                                       .name = "fake",
                                       .version = "1.2",
                                       .unique_id = FakeTables::UniqueId,
                                       .create = FakeTables::Create,
                                       .state = FakeTables::State,
                                       .all_reduce = FakeTables::AllReduce,
                                       .reduce_scatter = FakeTables::ReduceScatter,
                                       .all_gather = FakeTables::AllGather,
                                       .broadcast = FakeTables::Broadcast,
                                       .send = FakeTables::Send,
                                       .receive = FakeTables::Receive,
                                       .group_begin = nullptr,
                                       .group_end = nullptr,
                                       .abort = FakeTables::Abort,
                                       .destroy = FakeTables::Destroy};
  return table;
}

}  // namespace

FakeMachine::FakeMachine(int ranks) {
  for (int rank = 0; rank < ranks; ++rank) {
    compute_.push_back(std::make_unique<Stream>());
    compute_.back()->rank = rank;
  }
  machine = this;
}
FakeMachine::~FakeMachine() { machine = nullptr; }

const mt_backend* FakeMachine::backend() const { return &BackendTable(); }
const mt_collectives* FakeMachine::collectives() const { return &CollectivesTable(); }
void FakeMachine::Act(int rank) { acting_rank = rank; }

FakeMachine::Stream* FakeMachine::StreamOf(mt_stream stream) {
  return stream == nullptr ? compute_.at(acting_rank).get() : reinterpret_cast<Stream*>(stream);
}

void FakeMachine::Enqueue(Stream* stream, Task task) {
  if (stream->recording != nullptr) {
    if (task.work == nullptr) stream->recordable = false;
    stream->recording->tasks->push_back(std::move(task.work));
    return;
  }
  stream->tasks.push_back(std::move(task));
  Changed();
}

void FakeMachine::Changed() {
  if (automatic_) RunLocked();
}

void FakeMachine::Compute(std::function<void()> work) {
  const std::lock_guard lock(mutex_);
  Enqueue(compute_.at(acting_rank).get(), {.work = std::move(work)});
}

void FakeMachine::set_automatic(bool automatic) {
  const std::lock_guard lock(mutex_);
  automatic_ = automatic;
  Changed();
}

void FakeMachine::Asked() {
  if (automatic_ || lazy_) RunLocked();
}

void FakeMachine::set_lazy(bool compute_first) {
  const std::lock_guard lock(mutex_);
  automatic_ = false;
  lazy_ = true;
  compute_first_ = compute_first;
}

bool FakeMachine::Run() {
  const std::lock_guard lock(mutex_);
  RunLocked();
  const auto empty = [](const auto& stream) { return stream->tasks.empty(); };
  return std::all_of(compute_.begin(), compute_.end(), empty) &&
         std::all_of(streams_.begin(), streams_.end(), empty);
}

void FakeMachine::set_around(std::function<void()> begin, std::function<void()> end) {
  const std::lock_guard lock(mutex_);
  begin_ = std::move(begin);
  end_ = std::move(end);
}

bool FakeMachine::recording() const {
  const std::lock_guard lock(mutex_);
  return compute_.at(acting_rank)->recording != nullptr;
}

void FakeMachine::Pass(double milliseconds) {
  const std::lock_guard lock(mutex_);
  now_ += milliseconds;
}
void FakeMachine::set_clock(std::function<double()> clock) {
  const std::lock_guard lock(mutex_);
  clock_ = std::move(clock);
}
void FakeMachine::set_hold(std::function<bool(const Part&)> hold) {
  const std::lock_guard lock(mutex_);
  hold_ = std::move(hold);
  Changed();
}
void FakeMachine::set_on_call(std::function<int32_t(const Part&)> on_call) {
  const std::lock_guard lock(mutex_);
  on_call_ = std::move(on_call);
}
void FakeMachine::set_slow_joins(bool slow) {
  const std::lock_guard lock(mutex_);
  slow_joins_ = slow;
}
void FakeMachine::FailState(int group, int rank) {
  const std::lock_guard lock(mutex_);
  for (Member* const member : groups_.at(group)->members) {
    if (member != nullptr && member->rank == rank) member->failed = true;
  }
}
void FakeMachine::set_ends_together(bool together) {
  const std::lock_guard lock(mutex_);
  ends_together_ = together;
  changed_.notify_all();
}
void FakeMachine::AwaitAborts(int count) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return aborts_ >= count; });
}
int FakeMachine::aborts() const {
  const std::lock_guard lock(mutex_);
  return aborts_;
}
int FakeMachine::misuses() const {
  const std::lock_guard lock(mutex_);
  return misuses_;
}
size_t FakeMachine::events() const {
  const std::lock_guard lock(mutex_);
  return events_.size();
}

void FakeMachine::RunLocked() {
  auto run = [](auto& streams, auto&& head) {
    bool progress = false;
    for (auto& stream : streams) {
      while (!stream->tasks.empty() && head(*stream)) progress = true;
    }
    return progress;
  };
  const auto head = [this](Stream& stream) { return RunHead(stream); };
  while (true) {
    // Once around, the first kind until it is stuck: what waits for too little runs too early.
    bool progress = false;
    while (run(compute_first_ ? compute_ : streams_, head)) progress = true;
    progress |= run(compute_first_ ? streams_ : compute_, head);
    if (!progress) break;
  }
  if (at_work_ && end_ != nullptr) end_();
  at_work_ = false;
  changed_.notify_all();
}

void FakeMachine::Begin() {
  if (!at_work_ && begin_ != nullptr) begin_();
  at_work_ = true;
}

bool FakeMachine::RunHead(Stream& stream) {
  Task& task = stream.tasks.front();
  if (task.wait != nullptr && task.wait->completed < task.ticket) return false;
  if (task.member != nullptr && !task.done && !task.member->aborted) {
    Group& group = *task.member->group;
    std::vector<Task*>& arrived = group.arrived[task.ticket];
    arrived.resize(group.size);
    arrived[task.member->member] = &task;
    if (!Arrived(group, task.ticket)) return false;
    Begin();
    Combine(group, task.ticket);
  }
  if (task.member != nullptr) {
    auto& arrived = task.member->group->arrived[task.ticket];
    if (!arrived.empty()) arrived[task.member->member] = nullptr;
  }
  if (task.record != nullptr) {
    task.record->completed = task.ticket;
    task.record->stamp = clock_ != nullptr ? clock_() : now_;
  }
  if (task.work != nullptr) {
    Begin();
    task.work();
  }
  stream.tasks.pop_front();
  return true;
}

bool FakeMachine::Arrived(Group& group, int64_t number) {
  for (const Task* const task : group.arrived[number]) {
    if (task == nullptr || (hold_ != nullptr && hold_(task->part))) return false;
  }
  return true;
}

void FakeMachine::Combine(Group& group, int64_t number) {
  const std::vector<Task*> parts = group.arrived[number];
  const Task& first = *parts[0];
  const int64_t bytes = first.count * static_cast<int64_t>(ElementSize(first.dtype));
  const std::string& kind = first.part.kind;
  std::vector<std::vector<char>> inputs;  // as they were
  const bool scatter = kind == "reduce_scatter";
  for (const Task* const part : parts) {
    const auto* from = static_cast<const char*>(part->input);
    if (from == nullptr) from = static_cast<const char*>(first.input);  // receive
    inputs.emplace_back(from, from + (scatter ? bytes * group.size : bytes));
  }
  const auto sum = [&](int64_t offset, void* output) {
    std::vector<const void*> values;
    for (const auto& input : inputs) values.push_back(input.data() + offset);
    Reduce(values, output, first.count, first.dtype,
           first.argument == MT_REDUCE_MAX ? ReduceOp::kMax : ReduceOp::kSum);
  };
  for (size_t i = 0; i < parts.size(); ++i) {
    Task& part = *parts[i];
    part.done = true;
    char* const output = static_cast<char*>(part.output);
    if (kind == "all_reduce") sum(0, output);
    if (scatter) sum(static_cast<int64_t>(i) * bytes, output);
    if (kind == "all_gather") {
      for (size_t j = 0; j < inputs.size(); ++j)
        std::memcpy(output + j * bytes, inputs[j].data(), bytes);
    }
    if (kind == "broadcast") std::memcpy(output, inputs[first.argument].data(), bytes);
    if (part.part.kind == "receive") std::memcpy(output, inputs[0].data(), bytes);
  }
}

}  // namespace mt::testing
