// StateStore for tests: a "disk" that outlives the coordinators, and the ways in which a commit can go wrong.
#pragma once

#include <functional>
#include <memory>

#include "coordinator/store/state_store.h"

namespace mt {

struct MemoryDisk {
  StoredState state;
  std::vector<v1::Event> events;
  bool full = false;  // every commit that holds anything answers RESOURCE_EXHAUSTED
  // Asked before each commit: the process dies before it is durable, after it is, or not at all.
  enum class Death { kNo, kBefore, kAfter };
  std::function<Death()> death;
  int64_t commits = 0;
};

// A commit that dies answers ABORTED, and so does every later one of this store: its process is to be destroyed.
std::unique_ptr<StateStore> NewMemoryStore(std::shared_ptr<MemoryDisk> disk);

}  // namespace mt
