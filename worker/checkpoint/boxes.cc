#include "worker/checkpoint/boxes.h"

#include <algorithm>

#include "absl/strings/str_join.h"
#include "worker/checkpoint/safetensors.h"

namespace mt {

int64_t Region::Volume() const {
  int64_t volume = 1;
  for (size_t i = 0; i < begin.size(); ++i) volume *= end[i] - begin[i];
  return volume;
}

std::string DescribeBox(const TensorBox& box) {
  return absl::StrCat(box.tensor, " ", SafetensorsDtype(box.dtype), " [",
                      absl::StrJoin(box.shape, ","), "] at [", absl::StrJoin(box.offset, ","),
                      "] of [", absl::StrJoin(box.global_shape, ","), "]");
}

absl::Status ValidateBox(const TensorBox& box) {
  const auto error = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("box ", DescribeBox(box), ": ", what));
  };
  if (box.tensor.empty()) return error("no name");
  if (SafetensorsDtype(box.dtype).empty()) return error("unknown type");
  if (box.global_shape.size() != box.shape.size() || box.offset.size() != box.shape.size())
    return error("dimensions differ");
  int64_t volume = ElementBytes(box.dtype);
  for (size_t i = 0; i < box.shape.size(); ++i) {
    if (box.offset[i] < 0 || box.shape[i] < 0 || box.global_shape[i] < 0 ||
        box.offset[i] > box.global_shape[i] || box.shape[i] > box.global_shape[i] - box.offset[i]) {
      return error("it leaves the tensor");
    }
    if (__builtin_mul_overflow(volume, std::max<int64_t>(box.global_shape[i], 1), &volume))
      return error("its size overflows");
  }
  return absl::OkStatus();
}

std::optional<Region> Intersect(const std::vector<int64_t>& a_offset,
                                const std::vector<int64_t>& a_shape,
                                const std::vector<int64_t>& b_offset,
                                const std::vector<int64_t>& b_shape) {
  Region region;
  for (size_t i = 0; i < a_shape.size(); ++i) {
    region.begin.push_back(std::max(a_offset[i], b_offset[i]));
    region.end.push_back(std::min(a_offset[i] + a_shape[i], b_offset[i] + b_shape[i]));
    if (region.begin[i] >= region.end[i]) return std::nullopt;
  }
  return region;
}

RunIterator::RunIterator(const Region& region, const std::vector<int64_t>& source_offset,
                         const std::vector<int64_t>& source_shape,
                         const std::vector<int64_t>& destination_offset,
                         const std::vector<int64_t>& destination_shape) {
  const int dimensions = static_cast<int>(source_shape.size());
  source_stride_.assign(dimensions, 1);
  destination_stride_.assign(dimensions, 1);
  for (int i = 0; i < dimensions; ++i) {
    extent_.push_back(region.end[i] - region.begin[i]);
    source_start_.push_back(region.begin[i] - source_offset[i]);
    destination_start_.push_back(region.begin[i] - destination_offset[i]);
  }
  for (int i = dimensions - 2; i >= 0; --i) {
    source_stride_[i] = source_stride_[i + 1] * source_shape[i + 1];
    destination_stride_[i] = destination_stride_[i + 1] * destination_shape[i + 1];
  }
  // A dimension joins the run if all dimensions inside it are whole in both boxes.
  run_.count = 1;
  outer_ = dimensions;
  while (outer_ > 0) {
    --outer_;
    run_.count *= extent_[outer_];
    if (extent_[outer_] != source_shape[outer_] || extent_[outer_] != destination_shape[outer_])
      break;
  }
  at_.assign(outer_, 0);
  Place();
}

void RunIterator::Place() {
  run_.source = run_.destination = 0;
  for (size_t i = 0; i < extent_.size(); ++i) {
    const int64_t step = static_cast<int>(i) < outer_ ? at_[i] : 0;
    run_.source += (source_start_[i] + step) * source_stride_[i];
    run_.destination += (destination_start_[i] + step) * destination_stride_[i];
  }
}

void RunIterator::Next() {
  int i = outer_ - 1;
  while (i >= 0 && ++at_[i] == extent_[i]) at_[i--] = 0;
  if (i < 0) {
    done_ = true;
  } else {
    Place();
  }
}

}  // namespace mt
