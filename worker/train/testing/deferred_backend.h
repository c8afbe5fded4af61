// What a test sees of the deferred backend (deferred_backend.cc).
#pragma once

#include <cstdint>
#include <vector>

namespace mt::testing {

struct DeferredLog {
  // In the order in which they were enqueued: operation numbers, and
  enum : int32_t { kToDevice = -1, kToHost = -2, kEventWait = -3, kLaunch = -4 };
  std::vector<int32_t> enqueued;  // not what was recorded into a graph
  int64_t waits_for_work = 0;     // the host waited, and something was not done yet
  int64_t graphs_recorded = 0;
  // Matrix products that ran without their types, sizes and beta having been asked about before: a
  // library would choose its code for them in the middle of a step.
  int64_t undeclared_products = 0;
  bool refuse_graphs = false;  // graph_end fails from here on
};

// Exported by the library under this name.
inline constexpr char kDeferredLogSymbol[] = "mt_deferred_log";
using DeferredLogFunction = DeferredLog* (*)();

}  // namespace mt::testing
