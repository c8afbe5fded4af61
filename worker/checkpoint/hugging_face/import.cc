#include "worker/checkpoint/hugging_face/import.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "absl/strings/str_join.h"
#include "common/spec/architectures.h"
#include "common/spec/model_traits.h"
#include "worker/checkpoint/boxes.h"

namespace mt {
namespace {

constexpr int64_t kStagedElements = 16 << 20;  // of a box that are held at once
constexpr uint64_t kMaxConfigBytes = 16 << 20;

bool IsVector(const LogicalParameter& p) { return p.shape.size() == 1; }

// Elements [first, first + values) of a box.
absl::Status Store(const TensorBox& box, int64_t first, const std::vector<float>& values,
                   const mt_backend* device) {
  const void* from = values.data();
  std::vector<double> wide;
  if (box.dtype == MT_F64) {
    wide.assign(values.begin(), values.end());
    from = wide.data();
  } else if (box.dtype != MT_F32) {
    return absl::InternalError(absl::StrCat("box ", DescribeBox(box), " holds no weights"));
  }
  const size_t element = box.dtype == MT_F64 ? 8 : 4, bytes = values.size() * element;
  char* to = static_cast<char*>(box.data) + static_cast<size_t>(first) * element;
  if (device == nullptr) {
    std::memcpy(to, from, bytes);
    return absl::OkStatus();
  }
  int32_t code = device->copy_to_device(to, from, bytes, nullptr);
  if (code == MT_OK) code = device->stream_synchronize(nullptr);  // `from` is overwritten next
  if (code == MT_OK) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("copy of ", DescribeBox(box), " to backend ",
                                          device->name, ": ", device->error_message()));
}

}  // namespace

absl::Status ZeroBox(const TensorBox& box, const mt_backend* device) {
  const int64_t bytes_each = box.dtype == MT_F64 || box.dtype == MT_I64 ? 2 : 1;
  if (device == nullptr) {
    std::memset(box.data, 0, static_cast<size_t>(4 * bytes_each * box.Elements()));
    return absl::OkStatus();
  }
  std::vector<float> zeros;
  for (int64_t first = 0; first < box.Elements(); first += kStagedElements) {
    zeros.assign(static_cast<size_t>(std::min(kStagedElements, box.Elements() - first)), 0);
    MT_RETURN_IF_ERROR(Store(box, first, zeros, device));
  }
  return absl::OkStatus();
}

absl::StatusOr<HubConfig> HubFolder::ReadConfig(Env* env, const std::string& folder) {
  const std::string path = JoinPath(folder, "config.json");
  absl::StatusOr<std::string> json = ReadFile(env, path, kMaxConfigBytes);
  if (absl::IsNotFound(json.status())) {
    return absl::NotFoundError(absl::StrCat(
        folder,
        " is not a model's folder: it has no config.json; name the folder that Hugging "
        "Face's save_pretrained or a download made"));
  }
  MT_RETURN_IF_ERROR(json.status());
  return ParseHubConfig(*json, path);
}

absl::StatusOr<std::unique_ptr<HubFolder>> HubFolder::Open(Env* env, const std::string& folder) {
  MT_ASSIGN_OR_RETURN(HubConfig config, ReadConfig(env, folder));
  v1::ModelSpec model = config.model;
  MT_RETURN_IF_ERROR(ResolveModel(&model));
  MT_ASSIGN_OR_RETURN(std::unique_ptr<HubFiles> files, HubFiles::Open(env, folder));
  return std::unique_ptr<HubFolder>(
      new HubFolder(std::move(config), std::move(model), std::move(files)));
}

absl::StatusOr<HubFolder::Found> HubFolder::Find(const v1::ModelSpec& model,
                                                 const LogicalParameter& parameter) const {
  std::vector<HubView> views = HubViews(model, parameter);
  for (HubView& view : views) {
    absl::StatusOr<std::unique_ptr<HubTensorReader>> reader = HubTensorReader::Open(
        *files_, view.tensor, view.storage, config_.fp8_block_rows, config_.fp8_block_columns);
    if (absl::IsNotFound(reader.status())) continue;
    MT_RETURN_IF_ERROR(reader.status());
    if ((*reader)->shape() != view.shape) {
      return absl::FailedPreconditionError(absl::StrCat(
          files_->folder(), ": tensor ", view.tensor, " is [",
          absl::StrJoin((*reader)->shape(), ","), "], but config.json and model make it [",
          absl::StrJoin(view.shape, ","), "]; the weights are of another model"));
    }
    return Found{std::move(view), *std::move(reader)};
  }
  std::string remedy = "; the download is incomplete, or config.json is of another model";
  if (parameter.name == kHeadName) {
    remedy =
        "; if it shares its weights with the embedding, config.json needs "
        "\"tie_word_embeddings\": true";
  } else if (parameter.layer >= model.layers()) {
    remedy =
        "; its block of multi-token prediction was not saved (transformers does not): go "
        "without it by `model: {mtp: {layers: 0}}`";
  }
  return absl::FailedPreconditionError(
      absl::StrCat(files_->folder(), ": tensor ", views.front().tensor, " is missing", remedy));
}

absl::Status HubFolder::Check(const v1::ModelSpec& model) const {
  std::set<std::string> used;
  for (const LogicalParameter& parameter : ParametersOf(model)) {
    MT_ASSIGN_OR_RETURN(const Found found, Find(model, parameter));
    if (found.view.storage == HubStorage::kMxfp4) {
      used.insert(found.view.tensor + "_blocks");
      used.insert(found.view.tensor + "_scales");
    } else {
      used.insert(found.view.tensor);
    }
  }
  for (const auto& [name, place] : files_->tensors()) {
    if (used.contains(name) || MayBeLeftOut(model, name)) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        place.file->path(), ": tensor ", name, " [", absl::StrJoin(place.entry->shape, ","),
        "] has no place in this model; config.json is of another model, or says too little"));
  }
  return absl::OkStatus();
}

absl::Status HubFolder::ReadRows(const v1::ModelSpec& model, const LogicalParameter& parameter,
                                 int64_t first, int64_t count, float* out) const {
  MT_ASSIGN_OR_RETURN(const Found found, Find(model, parameter));
  const Window2d window =
      IsVector(parameter) ? Window2d{.column = first, .columns = count}
                          : Window2d{.row = first, .rows = count, .columns = parameter.shape[1]};
  return ReadView(*found.reader, found.view, IsVector(parameter), window, out);
}

absl::Status HubFolder::Load(const v1::ModelSpec& model, const std::vector<TensorBox>& boxes,
                             const mt_backend* device) const {
  std::map<std::string, LogicalParameter> parameters;
  for (LogicalParameter& parameter : ParametersOf(model)) {
    std::string name = parameter.name;
    parameters.emplace(std::move(name), std::move(parameter));
  }
  std::vector<float> staged;
  for (const TensorBox& box : boxes) {
    MT_RETURN_IF_ERROR(ValidateBox(box));
    const auto it = parameters.find(box.tensor);
    if (it == parameters.end()) {
      MT_RETURN_IF_ERROR(ZeroBox(box, device));
      continue;
    }
    const LogicalParameter& parameter = it->second;
    if (parameter.shape != box.global_shape) {
      return absl::FailedPreconditionError(absl::StrCat("box ", DescribeBox(box),
                                                        ": the model's is [",
                                                        absl::StrJoin(parameter.shape, ","), "]"));
    }
    MT_ASSIGN_OR_RETURN(const Found found, Find(model, parameter));
    const bool vector = IsVector(parameter);
    const int64_t rows = vector ? 1 : box.shape[0], columns = vector ? box.shape[0] : box.shape[1];
    const int64_t step = std::clamp<int64_t>(kStagedElements / std::max<int64_t>(1, columns), 1,
                                             std::max<int64_t>(1, rows));
    for (int64_t row = 0; row < rows; row += step) {
      const int64_t count = std::min(step, rows - row);
      const Window2d window{.row = vector ? 0 : box.offset[0] + row,
                            .column = vector ? box.offset[0] : box.offset[1],
                            .rows = count,
                            .columns = columns};
      staged.resize(static_cast<size_t>(count * columns));
      MT_RETURN_IF_ERROR(ReadView(*found.reader, found.view, vector, window, staged.data()));
      MT_RETURN_IF_ERROR(Store(box, row * columns, staged, device));
    }
  }
  return absl::OkStatus();
}

}  // namespace mt
