// One slice of a checkpoint's file: where it is, and what a box needs of it.
#pragma once

#include <vector>

#include "common/status.h"
#include "mt/v1/checkpoint.pb.h"
#include "worker/checkpoint/boxes.h"
#include "worker/checkpoint/safetensors.h"

namespace mt {

inline std::vector<int64_t> ToVector(const google::protobuf::RepeatedField<int64_t>& values) {
  return {values.begin(), values.end()};
}

// The entry of `slice`, known to have the shape that the manifest says. DATA_LOSS if the file has no such one.
absl::StatusOr<const SafetensorsEntry*> FindSlice(const SafetensorsReader& reader,
                                                  const v1::TensorSlice& slice);

// Reads `region` of the slice into `destination`, the contiguous memory of `box`. `window` is memory to work in.
absl::Status ReadSlice(const SafetensorsReader& reader, const SafetensorsEntry& entry,
                       const v1::TensorSlice& slice, const Region& region, const TensorBox& box,
                       char* destination, std::vector<char>& window);

}  // namespace mt
