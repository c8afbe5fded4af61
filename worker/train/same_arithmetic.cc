#include "worker/train/same_arithmetic.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace mt {

bool TensorGroupSpansNodes(const TensorGroupPlace& place) {
  const std::string& node = place.rank_table[place.rank].node();
  const std::vector<int> group = place.mesh->TensorGroup(place.rank);
  return std::any_of(group.begin(), group.end(),
                     [&](int rank) { return place.rank_table[rank].node() != node; });
}

std::string GemmCacheOf(const TensorGroupPlace& place, const std::string& folder) {
  return TensorGroupSpansNodes(place) ? "" : folder + "/gemm-algorithms";
}

std::string ArithmeticOf(const Backend& backend) {
  return absl::StrCat(backend.name(), " ", backend.abi().version, ": ", backend.info().name, ", ",
                      backend.info().detail);
}

absl::Status CheckSameArithmetic(const TensorGroupPlace& place, const std::string& mine,
                                 const std::string& prefix, absl::Duration timeout,
                                 Rendezvous* rendezvous) {
  if (!TensorGroupSpansNodes(place)) return absl::OkStatus();
  const int first = place.mesh->TensorGroup(place.rank).front();
  const std::string key = absl::StrCat(prefix, "/arithmetic/", first);
  if (place.rank == first) return rendezvous->Put(key, mine);
  MT_ASSIGN_OR_RETURN(const std::string others, rendezvous->Get(key, timeout));
  if (mine == others) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "rank ", place.rank, " on node ", place.rank_table[place.rank].node(), " computes with \"",
      mine, "\", but rank ", first, " on node ", place.rank_table[first].node(),
      ", of the same tensor group, with \"", others,
      "\": what both compute must be the same bit for bit; make the nodes alike, or choose "
      "parallel.tensor so that each group is on one node"));
}

}  // namespace mt
