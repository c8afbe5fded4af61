// Messages from one member of a device group to another, in one direction.
//
// The library's send is a rendezvous: on its stream it ends when the peer has received. Were it part of the compute stream,
// two members that send to each other before they receive would wait for each other for ever, as 1F1B's stages do. So
//  - each direction between two members is a lane of its own (a communicator of two and a stream): no message waits behind
//    one of another peer or direction;
//  - Send copies the message, on the compute stream, into one of kSendAhead slots in device memory, and the lane sends from
//    there. The compute stream waits only when all slots hold messages that the peer has not received.
// Together that is a mailbox of kSendAhead messages, what communicator.h promises and schedule_test.cc takes for granted.
#pragma once

#include <memory>
#include <vector>

#include "worker/comm/device_lane.h"

namespace mt {

class DeviceLink {
 public:
  DeviceLink(const DeviceAccess& device, std::unique_ptr<DeviceLane> lane)
      : backend_(*device.backend), library_(*device.collectives), lane_(std::move(lane)) {}
  ~DeviceLink();
  DeviceLink(const DeviceLink&) = delete;
  DeviceLink& operator=(const DeviceLink&) = delete;

  // At the end that sends; the other end receives. Slots are made by the first messages, and anew for larger ones.
  absl::Status Send(const CommunicatorCall& call, const void* data, int64_t bytes);
  absl::Status Receive(const CommunicatorCall& call, void* data, int64_t bytes);

  DeviceLane& lane() { return *lane_; }

 private:
  struct Slot {
    void* data = nullptr;
    int64_t capacity = 0;
    mt_event taken = nullptr;  // after the last send from here
  };
  absl::Status Prepare(Slot& slot, int64_t bytes);

  const mt_backend& backend_;
  const mt_collectives& library_;
  std::unique_ptr<DeviceLane> lane_;
  Slot slots_[Communicator::kSendAhead];
  std::vector<void*> outgrown_;  // may still be sent from
  int64_t sent_ = 0;
};

}  // namespace mt
