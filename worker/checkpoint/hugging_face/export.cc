#include "worker/checkpoint/hugging_face/export.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/abi/small_floats.h"
#include "worker/checkpoint/hugging_face/carried_files.h"
#include "worker/checkpoint/hugging_face/config.h"
#include "worker/checkpoint/hugging_face/names.h"
#include "worker/checkpoint/safetensors_writer.h"

namespace mt {
namespace {

constexpr int64_t kPieceElements = 32 << 20;  // held at once, as float32 and as they are written

struct Dtype {
  const char* name;         // in config.json
  const char* safetensors;  // in the files
  int64_t bytes;
};
constexpr Dtype kDtypes[] = {{"bfloat16", "BF16", 2}, {"float16", "F16", 2}, {"float32", "F32", 4}};
constexpr const Dtype& kFloat32 = kDtypes[2];

// IEEE half precision, rounded to nearest even.
uint16_t F16FromFloat(float value) {
  const uint32_t bits = mt_float_bits(value), sign = bits >> 16 & 0x8000;
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return static_cast<uint16_t>(sign | 0x7e00);
  if (magnitude >= 65520.0f) return static_cast<uint16_t>(sign | 0x7c00);
  if (magnitude < std::ldexp(1.0f, -14)) {  // a multiple of 2^-24
    return static_cast<uint16_t>(sign |
                                 static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, 24))));
  }
  const uint32_t rounded = (bits & 0x7fffffff) + 0xfff + (bits >> 13 & 1);
  return static_cast<uint16_t>(sign | ((rounded >> 13) - (112 << 10)));
}

absl::Status AppendAs(const Dtype& dtype, const std::vector<float>& values,
                      SafetensorsWriter* out) {
  if (&dtype == &kFloat32) {
    return out->Append(
        {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)});
  }
  std::vector<uint16_t> narrow(values.size());
  std::transform(values.begin(), values.end(), narrow.begin(),
                 dtype.safetensors[0] == 'B' ? mt_bf16_from_float : F16FromFloat);
  return out->Append({reinterpret_cast<const char*>(narrow.data()), 2 * narrow.size()});
}

int64_t Product(const std::vector<int64_t>& sizes, size_t from = 0) {
  int64_t product = 1;
  for (size_t i = from; i < sizes.size(); ++i) product *= sizes[i];
  return product;
}

// Writes tensors of the hub from parameters of a checkpoint, a piece at a time.
class TensorStream {
 public:
  TensorStream(CheckpointReader* checkpoint, SafetensorsWriter* out)
      : checkpoint_(*checkpoint), out_(out) {}

  absl::Status Write(const HubTensor& tensor, const Dtype& dtype) {
    const HubView& view = tensor.parts[0].view;
    const std::vector<int64_t>& shape = tensor.parts[0].parameter.shape;
    const int64_t columns = shape.size() == 1 ? 1 : shape[1];
    if (tensor.parts.size() == 1 && shape == tensor.shape && view.row_stride == columns)
      return WriteRows(tensor.parts[0].parameter.name, shape[0], columns, dtype);
    // Experts that lie in one tensor are written one by one.
    const bool stacked = tensor.shape.size() == 3;
    const int64_t elements = Product(tensor.shape, stacked ? 1 : 0);
    for (int64_t slice = 0; slice < (stacked ? tensor.shape[0] : 1); ++slice)
      MT_RETURN_IF_ERROR(WriteScattered(tensor, slice * elements, elements, dtype));
    return absl::OkStatus();
  }

 private:
  absl::Status WriteRows(const std::string& parameter, int64_t rows, int64_t columns,
                         const Dtype& dtype) {
    const int64_t step = std::clamp<int64_t>(kPieceElements / columns, 1, rows);
    for (int64_t row = 0; row < rows; row += step) {
      const int64_t count = std::min(step, rows - row);
      piece_.resize(static_cast<size_t>(count * columns));
      MT_RETURN_IF_ERROR(checkpoint_.ReadRows(parameter, row, count, piece_.data()));
      MT_RETURN_IF_ERROR(AppendAs(dtype, piece_, out_));
    }
    return absl::OkStatus();
  }

  // Elements [first, first + count) of the tensor.
  absl::Status WriteScattered(const HubTensor& tensor, int64_t first, int64_t count,
                              const Dtype& dtype) {
    piece_.assign(static_cast<size_t>(count), 0);
    for (const HubTensor::Part& part : tensor.parts) {
      if (part.view.first < first || part.view.first >= first + count) continue;
      const LogicalParameter& p = part.parameter;
      const int64_t columns = p.shape.size() == 1 ? 1 : p.shape[1];
      values_.resize(static_cast<size_t>(p.Elements()));
      MT_RETURN_IF_ERROR(checkpoint_.ReadRows(p.name, 0, p.shape[0], values_.data()));
      for (int64_t row = 0; row < p.shape[0]; ++row) {
        float* to = piece_.data() + part.view.first - first + row * part.view.row_stride;
        const float* from = values_.data() + row * columns;
        for (int64_t column = 0; column < columns; ++column)
          to[column * part.view.column_stride] = from[column];
      }
    }
    return AppendAs(dtype, piece_, out_);
  }

  CheckpointReader& checkpoint_;
  SafetensorsWriter* const out_;
  std::vector<float> piece_, values_;
};

class Exporter {
 public:
  Exporter(CheckpointReader* checkpoint, const v1::JobSpec& job, std::string folder,
           const HubExportOptions& options)
      : checkpoint_(checkpoint),
        model_(job.model()),
        folder_(std::move(folder)),
        options_(options),
        env_(options.env) {
    if (model_.max_positions() > 0) return;
    model_.set_max_positions(job.data().sequence_length());
    // Some readers take YaRN's factor for the ratio of the two.
    const v1::RopeSpec& rope = model_.rope();
    if (rope.scaling() == v1::RopeSpec::SCALING_YARN) {
      model_.set_max_positions(
          std::llround(rope.factor() * static_cast<double>(rope.original_max_positions())));
    }
  }

  absl::StatusOr<HubExportResult> Run() {
    MT_RETURN_IF_ERROR(ChooseDtype());
    MT_ASSIGN_OR_RETURN(const std::string config, Config());
    MT_RETURN_IF_ERROR(CheckTensors());
    MT_RETURN_IF_ERROR(PrepareFolder());
    CutIntoShards();
    for (size_t i = 0; i < shards_.size(); ++i) MT_RETURN_IF_ERROR(WriteShard(i));
    if (shards_.size() > 1) MT_RETURN_IF_ERROR(WriteIndex());
    if (!options_.carry_from.empty()) {
      MT_ASSIGN_OR_RETURN(result_.carried, CarryFiles(env_, options_.carry_from, folder_,
                                                      /*config=*/false));
    }
    const std::string generation = JoinPath(folder_, "generation_config.json");
    if (!Exists(env_, generation)) {
      MT_RETURN_IF_ERROR(WriteFileAtomically(
          env_, generation,
          absl::StrCat("{\n  \"_from_model_config\": true",
                       options_.eod.has_value() ? ",\n  \"eos_token_id\": " : "",
                       options_.eod.has_value() ? Eod() : "", "\n}\n")));
    }
    MT_RETURN_IF_ERROR(WriteFileAtomically(env_, JoinPath(folder_, "config.json"), config));
    return result_;
  }

 private:
  absl::Status ChooseDtype() {
    for (const Dtype& dtype : kDtypes) {
      if (options_.dtype == dtype.name) dtype_ = &dtype;
    }
    if (dtype_ != nullptr) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("type `", options_.dtype, "`: use bfloat16, float16 or float32"));
  }

  absl::StatusOr<std::string> Config() {
    std::string base;
    const std::string path = JoinPath(options_.carry_from, "config.json");
    if (!options_.carry_from.empty() && Exists(env_, path)) {
      MT_ASSIGN_OR_RETURN(base, ReadFile(env_, path));
    } else {
      base = absl::StrCat("{\"bos_token_id\": null, \"eos_token_id\": ", Eod(),
                          ", \"pad_token_id\": null}");
    }
    return HubConfigOf(model_, dtype_->name, base);
  }
  std::string Eod() const {
    return options_.eod.has_value() ? absl::StrCat(*options_.eod) : "null";
  }

  absl::Status CheckTensors() {
    tensors_ = HubTensorsOf(model_);
    for (const HubTensor& tensor : tensors_) {
      for (const HubTensor::Part& part : tensor.parts) {
        const std::vector<int64_t> shape = checkpoint_->ShapeOf(part.parameter.name);
        if (shape == part.parameter.shape) continue;
        return absl::FailedPreconditionError(absl::StrCat(
            "the checkpoint's ", part.parameter.name, " is [", absl::StrJoin(shape, ","),
            "], the model's is [", absl::StrJoin(part.parameter.shape, ","), "]"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status PrepareFolder() {
    MT_RETURN_IF_ERROR(env_->CreateDirectories(folder_));
    MT_ASSIGN_OR_RETURN(const std::vector<std::string> names, env_->List(folder_));
    if (names.empty()) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat(folder_, " is not empty; name a new folder, or empty this one"));
  }

  const Dtype& DtypeOf(const HubTensor& tensor) const {
    return tensor.keeps_float32 ? kFloat32 : *dtype_;
  }

  void CutIntoShards() {
    int64_t bytes = 0;
    for (const HubTensor& tensor : tensors_) {
      const int64_t more = Product(tensor.shape) * DtypeOf(tensor).bytes;
      if (shards_.empty() || (bytes > 0 && bytes + more > options_.max_shard_bytes)) {
        shards_.emplace_back();
        bytes = 0;
      }
      shards_.back().push_back(&tensor);
      bytes += more;
      result_.bytes += more;
    }
    result_.tensors = static_cast<int64_t>(tensors_.size());
    result_.files = static_cast<int64_t>(shards_.size());
  }

  std::string ShardName(size_t i) const {
    return shards_.size() == 1
               ? "model.safetensors"
               : absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, shards_.size());
  }

  absl::Status WriteShard(size_t i) {
    std::map<std::string, const HubTensor*> by_name;
    std::vector<SafetensorsEntry> entries;
    for (const HubTensor* tensor : shards_[i]) {
      by_name[tensor->name] = tensor;
      entries.push_back({tensor->name, DtypeOf(*tensor).safetensors, tensor->shape});
    }
    MT_ASSIGN_OR_RETURN(const auto out,
                        SafetensorsWriter::Create(env_, JoinPath(folder_, ShardName(i)), entries,
                                                  {{"format", "pt"}}));
    TensorStream stream(checkpoint_, out.get());
    for (const SafetensorsEntry& entry : entries) {
      const HubTensor& tensor = *by_name[entry.name];
      MT_RETURN_IF_ERROR(stream.Write(tensor, DtypeOf(tensor)));
    }
    return out->Finish();
  }

  absl::Status WriteIndex() {
    nlohmann::ordered_json index;
    index["metadata"]["total_size"] = result_.bytes;
    for (size_t i = 0; i < shards_.size(); ++i) {
      for (const HubTensor* tensor : shards_[i]) index["weight_map"][tensor->name] = ShardName(i);
    }
    return WriteFileAtomically(env_, JoinPath(folder_, "model.safetensors.index.json"),
                               index.dump(2) + "\n");
  }

  CheckpointReader* const checkpoint_;
  v1::ModelSpec model_;
  const std::string folder_;
  const HubExportOptions& options_;
  Env* const env_;
  const Dtype* dtype_ = nullptr;
  std::vector<HubTensor> tensors_;
  std::vector<std::vector<const HubTensor*>> shards_;
  HubExportResult result_;
};

}  // namespace

absl::StatusOr<HubExportResult> ExportToHub(CheckpointReader* checkpoint, const v1::JobSpec& job,
                                            const std::string& folder,
                                            const HubExportOptions& options) {
  return Exporter(checkpoint, job, folder, options).Run();
}

}  // namespace mt
