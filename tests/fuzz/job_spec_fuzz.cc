// A job spec in YAML: refused, or resolved, judged and planned without harm; and what it prints to
// is the same spec.
#include <google/protobuf/util/message_differencer.h>

#include "common/spec/defaults.h"
#include "common/spec/planner.h"
#include "common/spec/print.h"
#include "common/spec/validate.h"
#include "common/spec/yaml.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto spec = mt::ParseJobSpec(mt::FuzzInput(data, size).Rest(), "job.yaml");
  if (!spec.ok()) return 0;
  const std::string yaml = mt::JobSpecToYaml(*spec);
  const auto copy = mt::ParseJobSpec(yaml, "copy.yaml");
  MT_CHECK(copy.ok()) << copy.status().ToString() << "\n" << yaml;
  MT_CHECK(google::protobuf::util::MessageDifferencer::Equals(*copy, *spec)) << yaml;
  if (!mt::FillDefaults(&*spec).ok() || !mt::ValidateSpec(*spec).ok()) return 0;
  // A plan lists every rank: a fuzzer has no use for a million of them.
  const auto& parallel = spec->parallel();
  if (int64_t{parallel.tensor()} * parallel.pipeline() * parallel.data() > 4096 ||
      spec->model().layers() > 4096)
    return 0;
  mt::PlanJob(*spec).status().IgnoreError();
  mt::CheckFits(*spec, {.slots = 8, .memory_per_slot_bytes = int64_t{1} << 34}).IgnoreError();
  return 0;
}
