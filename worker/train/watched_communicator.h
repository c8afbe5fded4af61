// A communicator that tells the channel when the rank is inside a call, so that a hang has a name.
// Costs two stores per call.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "worker/comm/communicator.h"
#include "worker/train/rank_channel.h"

namespace mt {

class WatchedCommunicator : public Communicator {
 public:
  // Both outlive this object.
  WatchedCommunicator(Communicator* inner, RankChannel* channel)
      : Communicator(inner->name(), inner->rank(), inner->size()),
        inner_(inner),
        channel_(channel) {}

  absl::Status AllReduce(void* data, int64_t count, mt_dtype dtype, ReduceOp op) override {
    return Watch("all-reduce", [&] { return inner_->AllReduce(data, count, dtype, op); });
  }
  absl::Status ReduceScatter(const void* input, void* output, int64_t count,
                             mt_dtype dtype) override {
    return Watch("reduce-scatter",
                 [&] { return inner_->ReduceScatter(input, output, count, dtype); });
  }
  absl::Status AllGather(const void* input, void* output, int64_t count, mt_dtype dtype) override {
    return Watch("all-gather", [&] { return inner_->AllGather(input, output, count, dtype); });
  }
  absl::Status Broadcast(void* data, int64_t count, mt_dtype dtype, int root) override {
    return Watch("broadcast", [&] { return inner_->Broadcast(data, count, dtype, root); });
  }
  absl::Status Barrier() override {
    return Watch("barrier", [&] { return inner_->Barrier(); });
  }
  absl::Status Send(const void* data, int64_t bytes, int peer) override {
    return Watch("send", [&] { return inner_->Send(data, bytes, peer); });
  }
  absl::Status Receive(void* data, int64_t bytes, int peer) override {
    return Watch("receive", [&] { return inner_->Receive(data, bytes, peer); });
  }
  absl::Status AllReduceHost(void* data, int64_t count, mt_dtype dtype, ReduceOp op) override {
    return Watch("all-reduce", [&] { return inner_->AllReduceHost(data, count, dtype, op); });
  }
  absl::Status BeginOverlap() override { return inner_->BeginOverlap(); }
  absl::Status EndOverlap() override { return inner_->EndOverlap(); }
  void Abort(absl::string_view reason) override { inner_->Abort(reason); }
  absl::Status Health() const override { return inner_->Health(); }
  std::string Unfinished() const override { return inner_->Unfinished(); }
  int64_t bytes_moved() const override { return inner_->bytes_moved(); }
  absl::Duration seconds_spent() const override { return inner_->seconds_spent(); }

  // The global rank that the group's failure blames.
  std::optional<int> blamed() const { return BlamedRank(inner_->Health()); }

 private:
  template <typename Call>
  absl::Status Watch(const char* operation, Call call) {
    channel_->EnterCollective(&name(), operation);
    const absl::Status status = call();
    channel_->LeaveCollective();
    return status;
  }

  Communicator* const inner_;
  RankChannel* const channel_;
};

}  // namespace mt
