#include "worker/checkpoint/loader.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>

#include "absl/strings/str_join.h"
#include "common/checkpoint/weights_digest.h"
#include "common/hash.h"
#include "worker/checkpoint/boxes.h"
#include "worker/checkpoint/safetensors.h"
#include "worker/checkpoint/slices.h"

namespace mt {
namespace {

// What one slice of a file gives to one box.
struct Part {
  size_t box;
  const v1::TensorSlice* slice;
  Region region;
};
using Plan = std::map<int, std::vector<Part>>;  // by index of the file in the manifest

absl::StatusOr<Plan> MakePlan(const v1::CheckpointManifest& manifest,
                              const std::vector<TensorBox>& boxes) {
  const std::string what =
      absl::StrCat("checkpoint of job ", manifest.job_id(), ", step ", manifest.step());
  MT_RETURN_IF_ERROR(Annotate(CheckCoverage(manifest), what));
  std::map<std::string, std::vector<std::pair<int, const v1::TensorSlice*>>> slices;
  for (int i = 0; i < manifest.files_size(); ++i) {
    for (const v1::TensorSlice& slice : manifest.files(i).slices())
      slices[slice.tensor()].emplace_back(i, &slice);
  }
  Plan plan;
  for (size_t i = 0; i < boxes.size(); ++i) {
    const TensorBox& box = boxes[i];
    MT_RETURN_IF_ERROR(ValidateBox(box));
    const auto it = slices.find(box.tensor);
    if (it == slices.end())
      return absl::FailedPreconditionError(
          absl::StrCat(what, " has no tensor ", box.tensor, "; it is of another model"));
    if (const std::vector<int64_t> shape = ToVector(it->second.front().second->global_shape());
        shape != box.global_shape) {
      return absl::FailedPreconditionError(
          absl::StrCat(what, ": tensor ", box.tensor, " is [", absl::StrJoin(shape, ","),
                       "], the job's is [", absl::StrJoin(box.global_shape, ","), "]"));
    }
    int64_t covered = 0;
    for (const auto& [file, slice] : it->second) {
      std::optional<Region> region =
          Intersect(ToVector(slice->offset()), ToVector(slice->shape()), box.offset, box.shape);
      if (!region.has_value()) continue;
      covered += region->Volume();
      plan[file].push_back({i, slice, *std::move(region)});
    }
    if (covered != box.Elements()) {
      return absl::DataLossError(absl::StrCat(what, ": ", covered, " of ", box.Elements(),
                                              " elements of box ", DescribeBox(box)));
    }
  }
  return plan;
}

class Loader {
 public:
  Loader(const std::vector<TensorBox>& boxes, const LoadOptions& options)
      : boxes_(boxes), options_(options) {
    for (const TensorBox& box : boxes) missing_.push_back(box.Elements());
    staging_.resize(boxes.size());
  }

  absl::Status LoadFile(const SafetensorsReader& reader, const std::vector<Part>& parts,
                        LoadStatistics& statistics) {
    for (const Part& part : parts) {
      const TensorBox& box = boxes_[part.box];
      MT_ASSIGN_OR_RETURN(const SafetensorsEntry* entry, FindSlice(reader, *part.slice));
      if (entry->dtype != SafetensorsDtype(box.dtype)) {
        return absl::FailedPreconditionError(absl::StrCat(reader.path(), ": tensor ", box.tensor,
                                                          " is ", entry->dtype, ", the job's is ",
                                                          SafetensorsDtype(box.dtype)));
      }
      const int64_t box_bytes = box.Elements() * ElementBytes(box.dtype);
      if (options_.device != nullptr && staging_[part.box] == nullptr)
        staging_[part.box] = std::make_unique<char[]>(box_bytes);
      char* destination =
          options_.device != nullptr ? staging_[part.box].get() : static_cast<char*>(box.data);
      MT_RETURN_IF_ERROR(
          ReadSlice(reader, *entry, *part.slice, part.region, box, destination, window_));
      statistics.bytes += part.region.Volume() * ElementBytes(box.dtype);
      missing_[part.box] -= part.region.Volume();
      if (missing_[part.box] == 0 && options_.device != nullptr) {
        MT_RETURN_IF_ERROR(Annotate(CopyToDevice(box, destination, box_bytes), DescribeBox(box)));
        staging_[part.box].reset();
      }
    }
    return absl::OkStatus();
  }

 private:
  // Waits for the copy, which a device may only enqueue: the source is freed next.
  absl::Status CopyToDevice(const TensorBox& box, const char* from, int64_t bytes) const {
    const mt_backend& device = *options_.device;
    int32_t code = device.copy_to_device(box.data, from, static_cast<size_t>(bytes), nullptr);
    if (code == MT_OK) code = device.stream_synchronize(nullptr);
    if (code == MT_OK) return absl::OkStatus();
    return absl::InternalError(
        absl::StrCat("copy to backend ", device.name, ": ", device.error_message()));
  }

  const std::vector<TensorBox>& boxes_;
  const LoadOptions& options_;
  std::vector<int64_t> missing_;                  // elements of each box still to come
  std::vector<std::unique_ptr<char[]>> staging_;  // host copies of boxes that are on a device
  std::vector<char> window_;
};

}  // namespace

FileResolver FolderResolver(std::string folder) {
  return
      [folder = std::move(folder)](const v1::CheckpointFile& file) -> absl::StatusOr<std::string> {
        return JoinPath(folder, file.name());
      };
}

absl::StatusOr<std::vector<std::string>> NeededFiles(const v1::CheckpointManifest& manifest,
                                                     const std::vector<TensorBox>& boxes) {
  MT_ASSIGN_OR_RETURN(const Plan plan, MakePlan(manifest, boxes));
  std::vector<std::string> names;
  for (const auto& [file, parts] : plan) names.push_back(manifest.files(file).name());
  return names;
}

absl::Status VerifyFile(Env* env, const std::string& path, const v1::CheckpointFile& file) {
  MT_ASSIGN_OR_RETURN(const auto opened, env->NewRandomAccessFile(path));
  MT_ASSIGN_OR_RETURN(const uint64_t size, opened->Size());
  if (size != static_cast<uint64_t>(file.size_bytes())) {
    return absl::DataLossError(
        absl::StrCat(path, " has ", size, " bytes, its manifest says ", file.size_bytes()));
  }
  MT_ASSIGN_OR_RETURN(const std::string digest, Xxh3HexOfFile(env, path));
  if (digest != file.xxh3_128()) {
    return absl::DataLossError(absl::StrCat(path, " has XXH3-128 ", digest, ", its manifest says ",
                                            file.xxh3_128(), ": it is corrupt"));
  }
  return absl::OkStatus();
}

absl::Status VerifyOnlyCopy(Env* env, const std::string& path, const v1::CheckpointFile& file) {
  const absl::Status status = VerifyFile(env, path, file);
  if (!absl::IsNotFound(status)) return status;
  const std::string folder = path.substr(0, path.rfind('/'));
  if (env->Stat(JoinPath(folder, "manifest.json")).ok())
    return absl::DataLossError(absl::StrCat(path, " is missing, and its manifest is there"));
  return absl::UnavailableError(absl::StrCat(
      status.message(), ": the folder ", folder,
      " has no manifest.json on this node; is the shared path of the checkpoints mounted here?"));
}

absl::Status LoadCheckpoint(const v1::CheckpointManifest& manifest,
                            const std::vector<TensorBox>& boxes, const FileResolver& resolver,
                            const LoadOptions& options, LoadStatistics* statistics) {
  MT_ASSIGN_OR_RETURN(const Plan plan, MakePlan(manifest, boxes));
  Loader loader(boxes, options);
  LoadStatistics done;
  for (const auto& [index, parts] : plan) {
    const v1::CheckpointFile& file = manifest.files(index);
    MT_ASSIGN_OR_RETURN(const std::string path, resolver(file));
    MT_RETURN_IF_ERROR(VerifyFile(options.env, path, file));
    MT_ASSIGN_OR_RETURN(const auto reader, SafetensorsReader::Open(options.env, path));
    MT_RETURN_IF_ERROR(loader.LoadFile(*reader, parts, done));
    ++done.files;
  }
  if (statistics != nullptr) *statistics = done;
  return absl::OkStatus();
}

absl::StatusOr<std::string> WeightsDigestOfFiles(const v1::CheckpointManifest& manifest,
                                                 const FileResolver& resolver, Env* env) {
  constexpr int64_t kPieceBytes = 8 << 20;
  MT_RETURN_IF_ERROR(CheckCoverage(manifest));
  v1::CheckpointManifest summed = manifest;
  std::vector<char> buffer;
  for (v1::CheckpointFile& file : *summed.mutable_files()) {
    MT_ASSIGN_OR_RETURN(const std::string path, resolver(file));
    MT_ASSIGN_OR_RETURN(const auto reader, SafetensorsReader::Open(env, path));
    for (v1::TensorSlice& slice : *file.mutable_slices()) {
      MT_ASSIGN_OR_RETURN(const SafetensorsEntry* entry, FindSlice(*reader, slice));
      const std::vector<int64_t> global_shape = ToVector(slice.global_shape());
      std::vector<int64_t> offset = ToVector(slice.offset()), shape = ToVector(slice.shape());
      int64_t elements = 1;
      for (const int64_t size : shape) elements *= size;
      ContentSum sum;
      if (elements > 0) {  // in pieces of whole rows of the first dimension
        const int64_t element_bytes = entry->bytes() / elements;
        const int64_t rows = shape.empty() ? 1 : shape[0];
        const int64_t row_bytes = entry->bytes() / rows;
        const int64_t rows_per_piece = std::clamp<int64_t>(kPieceBytes / row_bytes, 1, rows);
        for (int64_t row = 0; row < rows; row += rows_per_piece) {
          const int64_t count = std::min(rows_per_piece, rows - row);
          buffer.resize(count * row_bytes);
          MT_RETURN_IF_ERROR(
              reader->Read(*entry, row * row_bytes, count * row_bytes, buffer.data()));
          if (!shape.empty()) {
            offset[0] = slice.offset(0) + row;
            shape[0] = count;
          }
          if (element_bytes != 1 && element_bytes != 2 && element_bytes != 4 &&
              element_bytes != 8) {
            return absl::DataLossError(
                absl::StrCat(path, ": entry ", entry->name, " is ", entry->dtype));
          }
          sum.Add(SumOfBox(slice.tensor(), entry->dtype, global_shape, offset, shape,
                           static_cast<int>(element_bytes), buffer.data()));
        }
      }
      slice.set_content_sum(sum.Hex());
    }
  }
  return WeightsDigest(summed);
}

}  // namespace mt
