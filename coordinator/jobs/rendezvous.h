// Key-value meeting place of one job's ranks, per generation. Kept in memory only: workers put and ask again after every
// registration. A Get is answered when the key exists.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

namespace mt {

class Rendezvous {
 public:
  // The nodes that wait for this key; they are to be sent the value. A key keeps its first value: a later Put of the same
  // key changes nothing.
  std::vector<std::string> Put(const std::string& job_id, int generation, const std::string& key,
                               const std::string& value);
  // The value, or null: then `node` waits.
  const std::string* Get(const std::string& job_id, int generation, const std::string& key,
                         const std::string& node);
  // Forgets generations of the job before `generation`.
  void Drop(const std::string& job_id, int generation);

 private:
  struct Table {
    std::map<std::string, std::string> values;
    std::map<std::string, std::set<std::string>> waiting;  // key: nodes
  };
  std::map<std::pair<std::string, int>, Table> tables_;
};

}  // namespace mt
