#include "coordinator/jobs/rendezvous.h"

namespace mt {

std::vector<std::string> Rendezvous::Put(const std::string& job_id, int generation,
                                         const std::string& key, const std::string& value) {
  Table& table = tables_[{job_id, generation}];
  table.values.emplace(key, value);
  const auto waiting = table.waiting.extract(key);
  if (waiting.empty()) return {};
  return {waiting.mapped().begin(), waiting.mapped().end()};
}

const std::string* Rendezvous::Get(const std::string& job_id, int generation,
                                   const std::string& key, const std::string& node) {
  Table& table = tables_[{job_id, generation}];
  const auto value = table.values.find(key);
  if (value != table.values.end()) return &value->second;
  table.waiting[key].insert(node);
  return nullptr;
}

void Rendezvous::Drop(const std::string& job_id, int generation) {
  tables_.erase(tables_.lower_bound({job_id, 0}), tables_.lower_bound({job_id, generation}));
}

}  // namespace mt
