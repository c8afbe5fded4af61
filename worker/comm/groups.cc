#include "worker/comm/groups.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_join.h"
#include "worker/comm/device_communicator.h"

namespace mt {
namespace {

class Builder {
 public:
  // `watch` is null for ranks in host memory.
  Builder(const GroupsOptions& options, std::shared_ptr<DeviceWatch> watch, Rendezvous* rendezvous)
      : options_(options), watch_(std::move(watch)), rendezvous_(rendezvous) {}

  // The group that `ranks` are; it stays null if this rank is not one of them. Returns the transport.
  absl::StatusOr<std::string> Build(absl::string_view kind, const std::vector<int>& ranks,
                                    std::unique_ptr<Communicator>* group) {
    const auto self = std::find(ranks.begin(), ranks.end(), options_.rank);
    if (self == ranks.end()) return "none";
    const std::string name = absl::StrCat(kind, " (rank", ranks.size() == 1 ? " " : "s ",
                                          absl::StrJoin(ranks, ","), ")");
    if (ranks.size() == 1) {
      *group = NewSelfCommunicator(name);
      return "self";
    }

    // Any two groups of a kind are disjoint, so the first rank tells them apart.
    const std::string prefix =
        absl::StrCat(options_.job_id, "/", options_.generation, "/", kind, "/", ranks.front());
    const int member = static_cast<int>(self - ranks.begin()),
              size = static_cast<int>(ranks.size());
    if (watch_ != nullptr) {
      DeviceGroupOptions device;
      device.name = name;
      device.prefix = prefix;
      device.rank = member;
      device.size = size;
      device.ranks = ranks;
      device.timeout = options_.timeout;
      if (kind == "pipeline") device.links = DeviceGroupOptions::Links::kNeighbours;
      MT_RETURN_IF_ERROR(NewDeviceCommunicator(device, watch_, rendezvous_, group));
      return watch_->device().collectives->name;
    }

    std::set<std::string> nodes;
    for (const int rank : ranks) nodes.insert(options_.rank_table[rank].node());
    if (options_.transport == "shm" && nodes.size() > 1) {
      return absl::InvalidArgumentError(absl::StrCat("runtime.transport is shm, but the ", name,
                                                     " group is on nodes ",
                                                     absl::StrJoin(nodes, ", "), "; use auto"));
    }
    if (nodes.size() == 1 && options_.transport != "gloo") {
      SharedMemoryOptions shared;
      shared.name = name;
      shared.prefix = prefix;
      shared.rank = member;
      shared.size = size;
      shared.ranks = ranks;
      shared.timeout = options_.timeout;
      MT_ASSIGN_OR_RETURN(*group, NewSharedMemoryCommunicator(shared, rendezvous_));
      return "shm";
    }
    GlooOptions gloo;
    gloo.name = name;
    gloo.address = options_.rank_table[options_.rank].data_address();
    gloo.prefix = prefix;
    gloo.rank = member;
    gloo.size = size;
    gloo.ranks = ranks;
    gloo.timeout = options_.timeout;
    if (gloo.address.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, " group: node ", options_.rank_table[options_.rank].node(),
                       " has no data address; name its interface with ifname= in the hostfile"));
    }
    MT_ASSIGN_OR_RETURN(*group, NewGlooCommunicator(gloo, rendezvous_));
    return "gloo";
  }

 private:
  const GroupsOptions& options_;
  const std::shared_ptr<DeviceWatch> watch_;
  Rendezvous* const rendezvous_;
};

absl::Status CheckTransport(const GroupsOptions& options) {
  const std::string& transport = options.transport;
  if (transport.empty() || transport == "auto") return absl::OkStatus();
  const bool of_host = transport == "shm" || transport == "gloo", of_device = transport == "nccl";
  if (!of_host && !of_device) {
    return absl::InvalidArgumentError(
        absl::StrCat("runtime.transport \"", transport, "\" is not auto, nccl, shm or gloo"));
  }
  if (options.device != nullptr && of_host) {
    return absl::InvalidArgumentError(
        absl::StrCat("runtime.transport is ", transport, ", but backend ", options.device->name,
                     " keeps its data on the device; use auto or nccl"));
  }
  if (options.device == nullptr && of_device) {
    return absl::InvalidArgumentError(
        "runtime.transport is nccl, but the backend keeps its data in host memory; use auto");
  }
  return absl::OkStatus();
}

// Null for ranks in host memory, and for one that is alone.
absl::StatusOr<std::shared_ptr<DeviceWatch>> WatchFor(const GroupsOptions& options) {
  if (options.device == nullptr || options.mesh->world() == 1) return nullptr;
  const mt_collectives* collectives = options.device->collectives();
  if (collectives == nullptr) {
    const char* reason = options.device->error_message();
    return absl::FailedPreconditionError(
        absl::StrCat("backend ", options.device->name, " has no collectives here, which ",
                     options.mesh->world(), " ranks need: ", reason == nullptr ? "" : reason));
  }
  return std::make_shared<DeviceWatch>(
      DeviceAccess{.backend = options.device, .collectives = collectives});
}

}  // namespace

absl::Status BuildGroups(const GroupsOptions& options, Rendezvous* rendezvous, RankGroups* groups) {
  const Mesh& mesh = *options.mesh;
  if (static_cast<int>(options.rank_table.size()) != mesh.world() || options.rank < 0 ||
      options.rank >= mesh.world()) {
    return absl::InvalidArgumentError(absl::StrCat("rank ", options.rank, " of a table of ",
                                                   options.rank_table.size(), " ranks for ",
                                                   mesh.ToString()));
  }
  MT_RETURN_IF_ERROR(CheckTransport(options));
  MT_ASSIGN_OR_RETURN(const std::shared_ptr<DeviceWatch> watch, WatchFor(options));
  Builder builder(options, watch, rendezvous);
  if (watch != nullptr) {
    const mt_collectives& library = *watch->device().collectives;
    groups->library = absl::StrCat(library.name, " ", library.version);
  }
  const auto build = [&](absl::string_view kind, const std::vector<int>& ranks,
                         std::unique_ptr<Communicator>& communicator) -> absl::Status {
    MT_ASSIGN_OR_RETURN(std::string transport, builder.Build(kind, ranks, &communicator));
    groups->transports.push_back(std::move(transport));
    return absl::OkStatus();
  };
  // The same order on every rank: a rank waits in one kind for peers that have passed the kinds
  // before it.
  MT_RETURN_IF_ERROR(build("tensor", mesh.TensorGroup(options.rank), groups->tensor));
  MT_RETURN_IF_ERROR(build("data", mesh.DataGroup(options.rank), groups->data));
  MT_RETURN_IF_ERROR(build("pipeline", mesh.PipelineGroup(options.rank), groups->pipeline));
  MT_RETURN_IF_ERROR(build("embedding", mesh.EmbeddingGroup(options.rank), groups->embedding));
  return build("model", mesh.ModelGroup(options.rank), groups->model);
}

void RankGroups::Abort(absl::string_view reason) {
  for (Communicator* communicator :
       {tensor.get(), data.get(), pipeline.get(), embedding.get(), model.get()}) {
    if (communicator != nullptr) communicator->Abort(reason);
  }
}

std::string RankGroups::Describe() const {
  const Communicator* all[] = {tensor.get(), data.get(), pipeline.get(), embedding.get(),
                               model.get()};
  const char* kinds[] = {"tensor", "data", "pipeline", "embedding", "model"};
  std::vector<std::string> parts;
  for (int i = 0; i < 5; ++i) {
    if (all[i] != nullptr)
      parts.push_back(absl::StrCat(kinds[i], ": ", transports[i], " of ", all[i]->size()));
  }
  return absl::StrCat(absl::StrJoin(parts, ", "), library.empty() ? "" : "; ", library);
}

}  // namespace mt
