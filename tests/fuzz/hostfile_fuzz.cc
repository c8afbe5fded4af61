// A hostfile: accepted hosts have different names; refusals name a line and a column.
#include <set>

#include "coordinator/nodes/hostfile.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto nodes = mt::ParseHostfile(mt::FuzzInput(data, size).Rest(), "hosts");
  if (!nodes.ok()) {
    MT_CHECK(nodes.status().message().substr(0, 6) == "hosts:") << nodes.status().ToString();
    return 0;
  }
  std::set<std::string> names;
  for (const mt::NodeConfig& node : *nodes) MT_CHECK(names.insert(node.name).second) << node.name;
  return 0;
}
