#include "worker/comm/device_lane.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace mt {
namespace {

constexpr absl::Duration kJoinPause = absl::Milliseconds(1);
constexpr absl::Duration kSettlePause = absl::Microseconds(20);
constexpr absl::Duration kRollCall = absl::Seconds(1);  // to ask who has come, once it is too late

std::string HereKey(const std::string& prefix, int place) {
  return absl::StrCat(prefix, "/here/", place);
}

}  // namespace

DeviceLane::DeviceLane(const DeviceAccess& device, Options options)
    : device_(device),
      backend_(*device.backend),
      library_(*device.collectives),
      options_(std::move(options)) {}

DeviceLane::~DeviceLane() {
  AbortUnfinished();
  if (aborting_.joinable()) aborting_.join();
  if (communicator_ != nullptr) library_.destroy(communicator_);
  for (const Pending& pending : pending_) {
    backend_.event_destroy(pending.begin);
    backend_.event_destroy(pending.done);
  }
  for (const mt_event event : spare_) backend_.event_destroy(event);
  if (ready_ != nullptr) backend_.event_destroy(ready_);
  if (stream_ != nullptr) backend_.stream_destroy(stream_);
}

absl::Status DeviceLane::Code(int32_t code, absl::string_view what) const {
  if (code >= 0) return absl::OkStatus();
  const absl::Status status = DeviceStatus(backend_, code, what);
  // The library's own failures are nearly always a peer's.
  return code == MT_ERROR_DEVICE ? absl::UnavailableError(status.message()) : status;
}

absl::Status DeviceLane::Blame(const absl::Status& status) const {
  if (options_.size != 2) return status;
  return PeerError(status.code(), status.message(), options_.members[1 - options_.rank]);
}

absl::Status DeviceLane::Join(Rendezvous* rendezvous) {
  MT_RETURN_IF_ERROR(Begin(rendezvous));
  return Await(rendezvous);
}

absl::Status DeviceLane::Begin(Rendezvous* rendezvous) {
  MT_RETURN_IF_ERROR(Code(backend_.stream_create(&stream_), "a stream for collectives"));
  MT_RETURN_IF_ERROR(Code(backend_.event_create(&ready_), "an event for collectives"));
  const std::string key = absl::StrCat(options_.prefix, "/id");
  char id[MT_UNIQUE_ID_BYTES];
  if (options_.rank == 0) {
    MT_RETURN_IF_ERROR(Code(library_.unique_id(id), "unique id"));
    MT_RETURN_IF_ERROR(rendezvous->Put(key, std::string(id, sizeof(id))));
  } else {
    const absl::StatusOr<std::string> value = rendezvous->Get(key, options_.timeout);
    if (!value.ok()) {
      return PeerError(value.status().code(),
                       absl::StrCat("waited for the unique id of ", options_.names[0], ": ",
                                    value.status().message()),
                       options_.members[0]);
    }
    if (value->size() != sizeof(id)) {
      return absl::InternalError(
          absl::StrCat("rendezvous key ", key, " holds ", value->size(), " bytes"));
    }
    std::memcpy(id, value->data(), sizeof(id));
  }
  MT_RETURN_IF_ERROR(rendezvous->Put(HereKey(options_.prefix, options_.rank), "1"));
  return Code(library_.create(id, options_.rank, options_.size, &communicator_),
              absl::StrCat("creating the ", library_.name, " communicator"));
}

absl::Status DeviceLane::Await(Rendezvous* rendezvous) {
  const absl::Duration deadline = device_.time.clock->Monotonic() + options_.timeout;
  while (true) {
    const int32_t state = library_.state(communicator_);
    if (state == MT_OK) return absl::OkStatus();
    if (state != MT_IN_PROGRESS)
      return Blame(Code(state, absl::StrCat(library_.name, " could not join the members")));
    if (device_.time.clock->Monotonic() >= deadline) return Missing(rendezvous);
    device_.time.pause(kJoinPause);
  }
}

absl::Status DeviceLane::Missing(Rendezvous* rendezvous) {
  const std::string waited = absl::StrCat("waited ", absl::FormatDuration(options_.timeout));
  for (int place = 0; place < options_.size; ++place) {
    if (place == options_.rank) continue;
    if (rendezvous->Get(HereKey(options_.prefix, place), kRollCall).ok()) continue;
    return PeerError(absl::StatusCode::kDeadlineExceeded,
                     absl::StrCat(waited, " for ", options_.names[place], ", which did not come"),
                     options_.members[place]);
  }
  return Blame(absl::DeadlineExceededError(
      absl::StrCat(waited, " for ", library_.name, " ", library_.version,
                   " to connect the members, who all came: can they reach each other?")));
}

absl::StatusOr<mt_event> DeviceLane::TakeEvent() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!spare_.empty()) {
      const mt_event event = spare_.back();
      spare_.pop_back();
      return event;
    }
  }
  mt_event event = nullptr;
  MT_RETURN_IF_ERROR(Code(backend_.event_create(&event), "an event for collectives"));
  return event;
}

// A communicator that does not block may answer a call before it has enqueued it: nothing else may be asked of it till then.
absl::Status DeviceLane::Settle() {
  const absl::Duration deadline = device_.time.clock->Monotonic() + options_.timeout;
  while (true) {
    if (aborted_) return absl::AbortedError("aborted");
    const int32_t state = library_.state(communicator_);
    if (state != MT_IN_PROGRESS) return Blame(Code(state, library_.name));
    if (device_.time.clock->Monotonic() >= deadline) {
      return Blame(absl::DeadlineExceededError(
          absl::StrCat("not enqueued after ", absl::FormatDuration(options_.timeout))));
    }
    device_.time.pause(kSettlePause);
  }
}

absl::Status DeviceLane::CallLibrary(const CommunicatorCall& call, const Body& body) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    calling_ = Pending{.call = call, .since = device_.time.clock->Monotonic()};
  }
  absl::Status status;
  {
    const std::lock_guard<std::timed_mutex> lock(call_mutex_);
    if (aborted_) return absl::AbortedError("aborted");
    status = Blame(Code(body(communicator_, stream_), library_.name));
    if (status.ok()) status = Settle();
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  calling_.reset();
  return status;
}

absl::Status DeviceLane::Enqueue(const CommunicatorCall& call, const Body& body,
                                 bool compute_waits) {
  MT_RETURN_IF_ERROR(Code(backend_.event_record(ready_, nullptr), "recording an event"));
  MT_RETURN_IF_ERROR(Code(backend_.event_wait(ready_, stream_), "waiting for an event"));
  Pending pending{.call = call};
  MT_ASSIGN_OR_RETURN(pending.begin, TakeEvent());
  MT_ASSIGN_OR_RETURN(pending.done, TakeEvent());
  MT_RETURN_IF_ERROR(Code(backend_.event_record(pending.begin, stream_), "recording an event"));
  MT_RETURN_IF_ERROR(CallLibrary(call, body));
  MT_RETURN_IF_ERROR(Code(backend_.event_record(pending.done, stream_), "recording an event"));
  if (compute_waits)
    MT_RETURN_IF_ERROR(Code(backend_.event_wait(pending.done, nullptr), "waiting for an event"));
  const std::lock_guard<std::mutex> lock(mutex_);
  last_number_ = call.number;
  pending_.push_back(std::move(pending));
  return Harvest();
}

absl::Status DeviceLane::MakeComputeWait() {
  MT_RETURN_IF_ERROR(Code(backend_.event_record(ready_, stream_), "recording an event"));
  return Code(backend_.event_wait(ready_, nullptr), "waiting for an event");
}

absl::Status DeviceLane::Harvest() {
  while (!pending_.empty()) {
    const Pending& oldest = pending_.front();
    const int32_t code = backend_.event_query(oldest.done);
    if (code == MT_IN_PROGRESS) return absl::OkStatus();
    MT_RETURN_IF_ERROR(Blame(Code(code, "the device")));
    float milliseconds = 0;
    if (backend_.event_milliseconds(oldest.begin, oldest.done, &milliseconds) == MT_OK)
      spent_ += absl::Milliseconds(static_cast<double>(milliseconds));
    spare_.push_back(oldest.begin);
    spare_.push_back(oldest.done);
    pending_.pop_front();
  }
  return absl::OkStatus();
}

const DeviceLane::Pending* DeviceLane::Oldest() const {
  if (!pending_.empty()) return &pending_.front();
  return calling_.has_value() ? &*calling_ : nullptr;
}

std::optional<DeviceLane::Trouble> DeviceLane::Look() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (aborted_) return std::nullopt;
  const absl::Status harvest = Harvest();
  const Pending* const oldest = Oldest();
  const CommunicatorCall call =
      oldest != nullptr ? oldest->call
                        : CommunicatorCall{.operation = "after call", .number = last_number_};
  if (!harvest.ok()) return Trouble{harvest, call};
  const int32_t state = library_.state(communicator_);
  if (state < 0) return Trouble{Blame(Code(state, library_.name)), call};
  if (oldest == nullptr) return std::nullopt;

  const absl::Duration now = device_.time.clock->Monotonic();
  if (!pending_.empty() && !oldest->since.has_value() &&
      backend_.event_query(oldest->begin) == MT_OK) {
    pending_.front().since = now;
  }
  if (!oldest->since.has_value() || now - *oldest->since < options_.timeout) return std::nullopt;
  const std::string peers =
      options_.size == 2 ? options_.names[1 - options_.rank] : "the other members";
  return Trouble{Blame(absl::DeadlineExceededError(absl::StrCat(
                     "waited ", absl::FormatDuration(options_.timeout), " for ", peers))),
                 call};
}

std::optional<CommunicatorCall> DeviceLane::Waiting() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const Pending* const oldest = Oldest();
  if (oldest == nullptr || !oldest->since.has_value()) return std::nullopt;
  return oldest->call;
}

void DeviceLane::Abort() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);  // no Look is in the library after this
    if (aborted_.exchange(true)) return;
  }
  if (communicator_ == nullptr) return;
  aborting_ = std::thread([this] {
    const bool locked = call_mutex_.try_lock_for(absl::ToChronoMilliseconds(device_.abort_grace));
    library_.abort(communicator_);
    if (locked) call_mutex_.unlock();
  });
}

void DeviceLane::AbortUnfinished() {
  bool unfinished = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!aborted_) unfinished = !Harvest().ok() || !pending_.empty();
  }
  if (unfinished) Abort();
}

absl::Duration DeviceLane::spent() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return spent_;
}

}  // namespace mt
