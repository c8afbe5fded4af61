#include "worker/checkpoint/reader.h"

#include "common/checkpoint/weights_digest.h"
#include "worker/checkpoint/boxes.h"
#include "worker/checkpoint/slices.h"

namespace mt {

absl::StatusOr<std::unique_ptr<CheckpointReader>> CheckpointReader::Create(
    const v1::CheckpointManifest& manifest, FileResolver resolver, Env* env) {
  MT_RETURN_IF_ERROR(CheckCoverage(manifest));
  auto reader =
      std::unique_ptr<CheckpointReader>(new CheckpointReader(manifest, std::move(resolver), env));
  for (int i = 0; i < reader->manifest_.files_size(); ++i) {
    for (const v1::TensorSlice& slice : reader->manifest_.files(i).slices())
      reader->slices_[slice.tensor()].emplace_back(i, &slice);
  }
  return reader;
}

std::vector<int64_t> CheckpointReader::ShapeOf(const std::string& tensor) const {
  const auto it = slices_.find(tensor);
  if (it == slices_.end()) return {};
  return ToVector(it->second.front().second->global_shape());
}

absl::StatusOr<const SafetensorsReader*> CheckpointReader::Open(int file) {
  std::unique_ptr<SafetensorsReader>& reader = files_[file];
  if (reader == nullptr) {
    MT_ASSIGN_OR_RETURN(const std::string path, resolver_(manifest_.files(file)));
    MT_RETURN_IF_ERROR(VerifyFile(env_, path, manifest_.files(file)));
    MT_ASSIGN_OR_RETURN(reader, SafetensorsReader::Open(env_, path));
  }
  return reader.get();
}

absl::Status CheckpointReader::ReadRows(const std::string& tensor, int64_t first, int64_t count,
                                        float* out) {
  const auto it = slices_.find(tensor);
  if (it == slices_.end())
    return absl::FailedPreconditionError(absl::StrCat("the checkpoint has no tensor ", tensor));
  TensorBox box{.tensor = tensor, .global_shape = ShapeOf(tensor)};
  box.offset.assign(box.global_shape.size(), 0);
  box.shape = box.global_shape;
  box.offset[0] = first;
  box.shape[0] = count;
  std::vector<double> wide;
  for (const auto& [file, slice] : it->second) {
    const std::optional<Region> region =
        Intersect(ToVector(slice->offset()), ToVector(slice->shape()), box.offset, box.shape);
    if (!region.has_value()) continue;
    MT_ASSIGN_OR_RETURN(const SafetensorsReader* reader, Open(file));
    MT_ASSIGN_OR_RETURN(const SafetensorsEntry* entry, FindSlice(*reader, *slice));
    char* destination = reinterpret_cast<char*>(out);
    if (entry->dtype == "F64") {
      wide.resize(static_cast<size_t>(box.Elements()));
      box.dtype = MT_F64;
      destination = reinterpret_cast<char*>(wide.data());
    } else if (entry->dtype != "F32") {
      return absl::FailedPreconditionError(absl::StrCat(reader->path(), ": tensor ", tensor, " is ",
                                                        entry->dtype, ", not F32 or F64"));
    }
    MT_RETURN_IF_ERROR(ReadSlice(*reader, *entry, *slice, *region, box, destination, window_));
  }
  std::copy(wide.begin(), wide.end(), out);
  return absl::OkStatus();
}

}  // namespace mt
