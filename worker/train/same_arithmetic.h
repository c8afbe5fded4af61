// Ranks of a tensor group compute some things several times over, each for itself: scores of experts, the narrow projections of
// latent attention, gradients of norms. They must come out bit for bit alike: of two experts with nearly equal scores one rank
// would else choose the first and another the second for the same token, and nobody would notice. On one node the ranks have the
// same libraries and share a file of remembered algorithms; a tensor group across nodes needs what is here.
//
// Data-parallel replicas need none of it: their weights are the same after every sum of gradients.
#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/spec/mesh.h"
#include "common/status.h"
#include "mt/v1/worker.pb.h"
#include "worker/backend/backend.h"
#include "worker/comm/communicator.h"

namespace mt {

struct TensorGroupPlace {
  const Mesh* mesh = nullptr;
  int rank = 0;
  std::vector<v1::RankSlot> rank_table;  // the whole job's, by rank
};

bool TensorGroupSpansNodes(const TensorGroupPlace& place);

// A backend's "gemm_cache": the file in `folder` that remembers which algorithms were fastest. Empty, so that none is chosen by its
// time, if the tensor group spans nodes: each node would remember its own.
std::string GemmCacheOf(const TensorGroupPlace& place, const std::string& folder);

// What the bits of a device's results depend on beside the choice of algorithms: backend, device, driver, libraries.
std::string ArithmeticOf(const Backend& backend);

// Does nothing unless the tensor group spans nodes; then every rank of it calls this with its own ArithmeticOf. FAILED_PRECONDITION
// names the two ranks that differ, their nodes and what each computes with. DEADLINE_EXCEEDED: the group's first rank did not tell.
// `prefix` of the rendezvous keys is unique to the job's generation.
absl::Status CheckSameArithmetic(const TensorGroupPlace& place, const std::string& mine,
                                 const std::string& prefix, absl::Duration timeout,
                                 Rendezvous* rendezvous);

}  // namespace mt
