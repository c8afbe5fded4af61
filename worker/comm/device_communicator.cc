#include "worker/comm/device_communicator.h"

#include <algorithm>
#include <map>
#include <utility>

#include "common/check.h"
#include "worker/comm/device_link.h"
#include "worker/comm/reduce.h"

namespace mt {
namespace {

class DeviceCommunicator : public CheckedCommunicator, private DeviceWatch::Watched {
 public:
  DeviceCommunicator(const DeviceGroupOptions& options, std::shared_ptr<DeviceWatch> watch)
      : CheckedCommunicator(options.name, options.rank, options.size, options.ranks),
        watch_(std::move(watch)),
        backend_(*watch_->device().backend),
        library_(*watch_->device().collectives) {}
  ~DeviceCommunicator() override {
    watch_->Remove(this);
    ForLanes([](DeviceLane& lane) { lane.AbortUnfinished(); });  // all, before any is waited for
    // In the order of Join, which is the same on every member: the library's destroy may wait for the lane's other members to
    // come to the same one.
    lane_.reset();
    while (!links_.empty()) links_.erase(links_.begin());
    if (scratch_ != nullptr) backend_.free(scratch_);
    if (host_event_ != nullptr) backend_.event_destroy(host_event_);
  }

  absl::Status Join(const DeviceGroupOptions& options, Rendezvous* rendezvous) {
    MT_RETURN_IF_ERROR(DeviceStatus(backend_, backend_.allocate(kScratchBytes, &scratch_),
                                    "memory for control values"));
    MT_RETURN_IF_ERROR(DeviceStatus(backend_, backend_.event_create(&host_event_), "an event"));
    std::vector<int> everyone(size());
    for (int i = 0; i < size(); ++i) everyone[i] = i;
    lane_ = NewLane(options, options.prefix, everyone);
    MT_RETURN_IF_ERROR(lane_->Join(rendezvous));
    // The pairs in the same order on every member: of those not yet joined the first has both its members waiting.
    for (int from = 0; from < size(); ++from) {
      for (int to = 0; to < size(); ++to) {
        if (from == to || (from != rank() && to != rank()) ||
            options.links == DeviceGroupOptions::Links::kNone ||
            (options.links == DeviceGroupOptions::Links::kNeighbours && std::abs(from - to) != 1)) {
          continue;
        }
        std::unique_ptr<DeviceLink>& link = links_[{from, to}];
        link = std::make_unique<DeviceLink>(
            watch_->device(),
            NewLane(options, absl::StrCat(options.prefix, "/", from, "-", to), {from, to}));
        MT_RETURN_IF_ERROR(link->lane().Join(rendezvous));
      }
    }
    watch_->Add(this);
    return absl::OkStatus();
  }

  absl::Status AllReduceHost(void* data, int64_t count, mt_dtype dtype, ReduceOp op) override {
    const int64_t bytes = count * static_cast<int64_t>(ElementSize(dtype));
    if (bytes > kScratchBytes)
      return absl::InvalidArgumentError(absl::StrCat(bytes, " bytes of control values"));
    MT_RETURN_IF_ERROR(Health());
    MT_RETURN_IF_ERROR(DeviceStatus(backend_,
                                    backend_.copy_to_device(scratch_, data, bytes, nullptr),
                                    "copying to the device"));
    MT_RETURN_IF_ERROR(AllReduce(scratch_, count, dtype, op));
    MT_RETURN_IF_ERROR(
        DeviceStatus(backend_, backend_.event_record(host_event_, nullptr), "recording an event"));
    Communicator* const self = this;
    MT_RETURN_IF_ERROR(WaitForEvent(backend_, host_event_, {&self, 1}, watch_->device().time));
    // Only now: a copy to ordinary memory may wait for the stream.
    MT_RETURN_IF_ERROR(DeviceStatus(backend_, backend_.copy_to_host(data, scratch_, bytes, nullptr),
                                    "copying to the host"));
    return DeviceStatus(backend_, backend_.stream_synchronize(nullptr), "copying to the host");
  }

  absl::Status BeginOverlap() override {
    MT_CHECK(!overlapping_) << name() << ": overlap within overlap";
    overlapping_ = true;
    return Health();
  }
  absl::Status EndOverlap() override {
    MT_CHECK(overlapping_) << name() << ": no overlap to end";
    overlapping_ = false;
    MT_RETURN_IF_ERROR(Health());
    return lane_->MakeComputeWait();
  }

  std::string Unfinished() const override {
    std::optional<CommunicatorCall> oldest;
    ForLanes([&](DeviceLane& lane) {
      const std::optional<CommunicatorCall> call = lane.Waiting();
      if (call.has_value() && (!oldest.has_value() || call->number < oldest->number)) oldest = call;
    });
    return oldest.has_value() ? absl::StrCat(oldest->operation, " ", oldest->number, oldest->detail)
                              : std::string();
  }
  absl::Duration seconds_spent() const override {
    absl::Duration spent;
    ForLanes([&](DeviceLane& lane) { spent += lane.spent(); });
    return spent;
  }

 private:
  static constexpr int64_t kScratchBytes = 1024;

  std::unique_ptr<DeviceLane> NewLane(const DeviceGroupOptions& options, const std::string& prefix,
                                      const std::vector<int>& members) {
    DeviceLane::Options lane;
    lane.prefix = prefix;
    lane.size = static_cast<int>(members.size());
    lane.rank =
        static_cast<int>(std::find(members.begin(), members.end(), rank()) - members.begin());
    lane.members = members;
    for (const int member : members) lane.names.push_back(MemberName(member));
    lane.timeout = options.timeout;
    return std::make_unique<DeviceLane>(watch_->device(), std::move(lane));
  }

  template <typename Body>
  void ForLanes(Body body) const {
    if (lane_ != nullptr) body(*lane_);
    for (const auto& [ends, link] : links_) body(link->lane());
  }

  void Look() override {
    ForLanes([&](DeviceLane& lane) {
      const std::optional<DeviceLane::Trouble> trouble = lane.Look();
      if (trouble.has_value()) (void)FailCall(trouble->status, trouble->call);
    });
  }
  void OnFailure(const absl::Status&) override { AbortLanes(); }
  void DoAbort(absl::string_view) override { AbortLanes(); }
  void AbortLanes() {
    ForLanes([](DeviceLane& lane) { lane.Abort(); });
  }

  template <typename Body>
  absl::Status Collective(Body body) {
    return lane_->Enqueue(current_call(), body, /*compute_waits=*/!overlapping_);
  }
  absl::Status DoAllReduce(void* data, int64_t count, mt_dtype dtype, ReduceOp op) override {
    const int32_t reduce = op == ReduceOp::kSum ? MT_REDUCE_SUM : MT_REDUCE_MAX;
    return Collective([&](mt_communicator communicator, mt_stream stream) {
      return library_.all_reduce(communicator, data, data, count, dtype, reduce, stream);
    });
  }
  absl::Status DoReduceScatter(const void* input, void* output, int64_t count,
                               mt_dtype dtype) override {
    return Collective([&](mt_communicator communicator, mt_stream stream) {
      return library_.reduce_scatter(communicator, input, output, count, dtype, stream);
    });
  }
  absl::Status DoAllGather(const void* input, void* output, int64_t bytes) override {
    return Collective([&](mt_communicator communicator, mt_stream stream) {
      return library_.all_gather(communicator, input, output, bytes, MT_U8, stream);
    });
  }
  absl::Status DoBroadcast(void* data, int64_t bytes, int root) override {
    return Collective([&](mt_communicator communicator, mt_stream stream) {
      return library_.broadcast(communicator, data, bytes, MT_U8, root, stream);
    });
  }
  absl::Status DoBarrier() override {
    return Collective([&](mt_communicator communicator, mt_stream stream) {
      return library_.all_reduce(communicator, scratch_, scratch_, 1, MT_I32, MT_REDUCE_MAX,
                                 stream);
    });
  }

  absl::StatusOr<DeviceLink*> Link(int from, int to) {
    const auto it = links_.find({from, to});
    if (it != links_.end()) return it->second.get();
    return absl::FailedPreconditionError(absl::StrCat("this group was made without a link to ",
                                                      MemberName(from == rank() ? to : from)));
  }
  absl::Status DoSend(const void* data, int64_t bytes, int peer) override {
    MT_ASSIGN_OR_RETURN(DeviceLink* const link, Link(rank(), peer));
    return bytes == 0 ? absl::OkStatus() : link->Send(current_call(), data, bytes);
  }
  absl::Status DoReceive(void* data, int64_t bytes, int peer) override {
    MT_ASSIGN_OR_RETURN(DeviceLink* const link, Link(peer, rank()));
    return bytes == 0 ? absl::OkStatus() : link->Receive(current_call(), data, bytes);
  }

  const std::shared_ptr<DeviceWatch> watch_;
  const mt_backend& backend_;
  const mt_collectives& library_;
  std::unique_ptr<DeviceLane> lane_;
  // By the members that send and receive, one of which is this: so also in the order in which they join.
  std::map<std::pair<int, int>, std::unique_ptr<DeviceLink>> links_;
  void* scratch_ = nullptr;
  mt_event host_event_ = nullptr;
  bool overlapping_ = false;
};

}  // namespace

absl::Status NewDeviceCommunicator(const DeviceGroupOptions& options,
                                   std::shared_ptr<DeviceWatch> watch, Rendezvous* rendezvous,
                                   std::unique_ptr<Communicator>* communicator) {
  MT_CHECK(options.size >= 2) << options.name << ": a device group of " << options.size;
  auto made = std::make_unique<DeviceCommunicator>(options, std::move(watch));
  DeviceCommunicator& group = *made;
  *communicator = std::move(made);
  return group.JoinGroup([&] { return group.Join(options, rendezvous); });
}

}  // namespace mt
