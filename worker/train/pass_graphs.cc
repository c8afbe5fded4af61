#include "worker/train/pass_graphs.h"

#include <utility>

#include "common/log.h"

namespace mt {

PassGraphs::~PassGraphs() { Forget(); }

void PassGraphs::Forget() {
  for (Pass& pass : passes_) {
    if (pass.graph != nullptr) backend_.abi().graph_destroy(std::exchange(pass.graph, nullptr));
  }
}

absl::StatusOr<mt_graph> PassGraphs::Record(absl::FunctionRef<absl::Status()> body) {
  MT_RETURN_IF_ERROR(backend_.ToStatus(backend_.abi().graph_begin(nullptr), "graph_begin"));
  const absl::Status recorded = body();
  // Also after a failure: the stream must stop recording.
  mt_graph graph = nullptr;
  const absl::Status ended =
      backend_.ToStatus(backend_.abi().graph_end(nullptr, &graph), "graph_end");
  if (recorded.ok() && ended.ok()) return graph;
  if (graph != nullptr) backend_.abi().graph_destroy(graph);
  return recorded.ok() ? ended : recorded;
}

absl::Status PassGraphs::Run(int64_t number, absl::FunctionRef<absl::Status()> body) {
  Pass& pass = passes_[static_cast<size_t>(number)];
  if (enabled_ && pass.has_run && pass.graph == nullptr) {
    absl::StatusOr<mt_graph> graph = Record(body);
    if (graph.ok()) {
      pass.graph = *graph;
    } else {
      MT_LOG(Warning) << "graphs are off from here on: " << graph.status().ToString();
      enabled_ = false;
    }
  }
  pass.has_run = true;
  if (pass.graph == nullptr) return body();
  return backend_.ToStatus(backend_.abi().graph_launch(pass.graph, nullptr), "graph_launch");
}

}  // namespace mt
