// The communicators of one rank: one per group of the mesh, over the transport that fits where its
// members are.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/spec/mesh.h"
#include "common/status.h"
#include "mt/v1/worker.pb.h"
#include "worker/comm/communicator.h"

namespace mt {

struct GroupsOptions {
  const Mesh* mesh = nullptr;
  int rank = 0;
  std::vector<v1::RankSlot> rank_table;  // the whole job's, by rank
  // Ranks in host memory: "auto": shared memory if all members of a group are on one node, else Gloo.
  // "shm": as auto, but a group across nodes is INVALID_ARGUMENT. "gloo": always Gloo.
  // Ranks with a device: "auto" or "nccl": what the backend brings.
  std::string transport = "auto";
  // The opened backend of ranks with a device; null = host memory.
  const mt_backend* device = nullptr;
  std::string job_id;
  int generation = 0;
  absl::Duration timeout = absl::Minutes(5);
};

// Groups of one are self communicators, which copy in host memory: a rank with a device has nothing to ask of them. No pointer is null (except embedding on middle stages).
// Names say who is in a group: "tensor (ranks 0,1)".
// Destroy them in one order on all ranks, as their destructor does: a device group may wait for its other members to come to it.
struct RankGroups {
  std::unique_ptr<Communicator> tensor, data, pipeline, embedding, model;
  // Fails all of them and waits for nobody; thread-safe. Destroying device groups after that waits until their aborts, which
  // have all begun by then, have returned.
  void Abort(absl::string_view reason);
  std::string Describe() const;  // "tensor: shm of 2, data: gloo of 3, ...", "...; nccl 2.28.3"
  std::vector<std::string>
      transports;       // of tensor, data, pipeline, embedding, model: self | shm | gloo | nccl
  std::string library;  // of device groups: "nccl 2.28.3"; empty without any
};

// Collective over the job: every rank calls it. `rendezvous` is shared by all ranks of the job's
// generation. After an error `*groups` holds what had been built and what was being joined: tell of the failure, then Abort and
// destroy it, for the latter may wait for peers.
absl::Status BuildGroups(const GroupsOptions& options, Rendezvous* rendezvous, RankGroups* groups);

}  // namespace mt
