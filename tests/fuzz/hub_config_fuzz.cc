// config.json of a Hugging Face folder. One that is accepted makes a model that resolves, whose parameters all have a place in
// the hub's tensors, and that is written again as the same model or refused with what its class has no place for.
#include "common/spec/architectures.h"
#include "tests/fuzz/fuzz.h"
#include "worker/checkpoint/hugging_face/config.h"
#include "worker/checkpoint/hugging_face/names.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string json = mt::FuzzInput(data, size).Rest();
  const auto config = mt::ParseHubConfig(json, "config.json");
  if (!config.ok()) return 0;
  mt::v1::ModelSpec model = config->model;
  MT_CHECK_OK(mt::ResolveModel(&model));
  const auto written = mt::HubConfigOf(model, "float32", json);
  if (written.ok()) {
    const auto again = mt::ParseHubConfig(*written, "written");
    MT_CHECK_OK(again.status());
  }
  // Names of a small model only: the list of a large one is long, and no different.
  if (model.layers() * (1 + model.moe().experts()) > 200) return 0;
  for (const mt::LogicalParameter& parameter : mt::ParametersOf(model)) {
    for (const mt::HubView& view : mt::HubViews(model, parameter)) {
      __int128 elements = 1;
      for (const int64_t dimension : view.shape) elements *= dimension;
      const int64_t rows = parameter.shape[0];
      const int64_t columns = parameter.shape.size() == 1 ? 1 : parameter.shape[1];
      const __int128 last = static_cast<__int128>(view.first) +
                            static_cast<__int128>(rows - 1) * view.row_stride +
                            static_cast<__int128>(columns - 1) * view.column_stride;
      MT_CHECK(view.first >= 0 && last < elements) << parameter.name;
    }
  }
  MT_CHECK(!mt::HubTensorsOf(model).empty());
  return 0;
}
