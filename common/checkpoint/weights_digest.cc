#include "common/checkpoint/weights_digest.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "common/hash.h"

namespace mt {
namespace {

constexpr int kMaxDimensions = 8;
constexpr int64_t kMaxElements = int64_t{1} << 56;

// MurmurHash3's 64-bit finalizer (Appleby): a bijection in which every input bit reaches every
// output bit.
inline uint64_t Mix(uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdULL;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ULL;
  x ^= x >> 33;
  return x;
}

struct Key {
  uint64_t low, high;
};

template <typename Bits>
void AddRun(const Key& key, uint64_t first_index, const char* data, int64_t count,
            ContentSum& sum) {
  uint64_t low = 0, high = 0;
  for (int64_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, data + i * sizeof(Bits), sizeof(Bits));
    const uint64_t place = Mix((first_index + i) * 0x9e3779b97f4a7c15ULL + key.low);
    low += Mix(place ^ bits);
    high += Mix(((place << 32) | (place >> 32)) + key.high + bits * 0xd6e8feb86659fd93ULL);
  }
  sum.Add({low, high});
}

// Product of sizes; -1 if one is negative or the product passes kMaxElements.
template <typename Sizes>
int64_t Volume(const Sizes& sizes) {
  int64_t volume = 1;
  for (const int64_t size : sizes) {
    if (size < 0 || size > kMaxElements) return -1;
    if (size != 0 && volume > kMaxElements / size) return -1;
    volume *= size;
  }
  return volume;
}

struct Box {
  const v1::TensorSlice* slice;
  const v1::CheckpointFile* file;
};

std::string Describe(const Box& box) {
  return absl::StrCat("[", absl::StrJoin(box.slice->offset(), ","), "]+[",
                      absl::StrJoin(box.slice->shape(), ","), "] in ", box.file->name());
}

bool Overlap(const v1::TensorSlice& a, const v1::TensorSlice& b) {
  for (int i = 0; i < a.shape_size(); ++i) {
    if (a.offset(i) + a.shape(i) <= b.offset(i) || b.offset(i) + b.shape(i) <= a.offset(i))
      return false;
  }
  return true;
}

absl::Status CheckBox(const Box& box) {
  const v1::TensorSlice& slice = *box.slice;
  const auto error = [&](absl::string_view what) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", slice.tensor(), ", box ", Describe(box), ": ", what));
  };
  const int dimensions = slice.global_shape_size();
  if (slice.tensor().empty()) return error("it has no name");
  if (dimensions > kMaxDimensions)
    return error(absl::StrCat("more than ", kMaxDimensions, " dimensions"));
  if (slice.offset_size() != dimensions || slice.shape_size() != dimensions) {
    return error(absl::StrCat("its dimensions are not those of [",
                              absl::StrJoin(slice.global_shape(), ","), "]"));
  }
  if (Volume(slice.global_shape()) < 0 || Volume(slice.shape()) < 0)
    return error("impossible sizes");
  for (int i = 0; i < dimensions; ++i) {
    if (slice.offset(i) < 0 || slice.offset(i) > slice.global_shape(i) ||
        slice.shape(i) > slice.global_shape(i) - slice.offset(i)) {
      return error(
          absl::StrCat("it leaves the tensor [", absl::StrJoin(slice.global_shape(), ","), "]"));
    }
  }
  return absl::OkStatus();
}

using BoxesByTensor = std::map<std::string, std::vector<Box>>;
BoxesByTensor Group(const v1::CheckpointManifest& manifest) {
  BoxesByTensor boxes;
  for (const v1::CheckpointFile& file : manifest.files()) {
    for (const v1::TensorSlice& slice : file.slices())
      boxes[slice.tensor()].push_back({&slice, &file});
  }
  return boxes;
}

absl::Status CheckTensor(const std::string& tensor, std::vector<Box>& boxes) {
  const v1::TensorSlice& first = *boxes.front().slice;
  int64_t covered = 0;
  for (const Box& box : boxes) {
    MT_RETURN_IF_ERROR(CheckBox(box));
    if (!std::equal(first.global_shape().begin(), first.global_shape().end(),
                    box.slice->global_shape().begin(), box.slice->global_shape().end())) {
      return absl::DataLossError(
          absl::StrCat("tensor ", tensor, " is [", absl::StrJoin(first.global_shape(), ","),
                       "] in ", boxes.front().file->name(), " and [",
                       absl::StrJoin(box.slice->global_shape(), ","), "] in ", box.file->name()));
    }
  }
  // Sweep along the first dimension: a box can only overlap those that begin before it ends.
  std::erase_if(boxes, [](const Box& box) { return Volume(box.slice->shape()) == 0; });
  std::sort(boxes.begin(), boxes.end(), [](const Box& a, const Box& b) {
    return std::lexicographical_compare(a.slice->offset().begin(), a.slice->offset().end(),
                                        b.slice->offset().begin(), b.slice->offset().end());
  });
  for (size_t i = 0; i < boxes.size(); ++i) {
    const v1::TensorSlice& a = *boxes[i].slice;
    covered += Volume(a.shape());
    for (size_t j = i + 1; j < boxes.size(); ++j) {
      const v1::TensorSlice& b = *boxes[j].slice;
      if (a.shape_size() > 0 && b.offset(0) >= a.offset(0) + a.shape(0)) break;
      if (Overlap(a, b)) {
        return absl::DataLossError(absl::StrCat("tensor ", tensor, ": boxes ", Describe(boxes[i]),
                                                " and ", Describe(boxes[j]), " overlap"));
      }
    }
  }
  if (const int64_t volume = Volume(first.global_shape()); covered != volume) {
    return absl::DataLossError(absl::StrCat("tensor ", tensor, ": the files hold ", covered,
                                            " of its ", volume, " elements"));
  }
  return absl::OkStatus();
}

}  // namespace

std::string ContentSum::Hex() const { return absl::StrFormat("%016x%016x", high, low); }

absl::StatusOr<ContentSum> ContentSum::FromHex(absl::string_view hex) {
  ContentSum sum;
  const bool digits =
      hex.find_first_not_of("0123456789abcdef") == absl::string_view::npos && hex.size() == 32;
  if (!digits || !absl::SimpleHexAtoi(hex.substr(0, 16), &sum.high) ||
      !absl::SimpleHexAtoi(hex.substr(16), &sum.low)) {
    return absl::InvalidArgumentError(
        absl::StrCat("content sum \"", hex, "\" is not 32 lower-case hex digits"));
  }
  return sum;
}

ContentSum SumOfBox(absl::string_view tensor, absl::string_view dtype_name,
                    const std::vector<int64_t>& global_shape, const std::vector<int64_t>& offset,
                    const std::vector<int64_t>& shape, int element_bytes, const void* data) {
  const int dimensions = static_cast<int>(shape.size());
  MT_CHECK(global_shape.size() == shape.size() && offset.size() == shape.size())
      << std::string(tensor);
  const auto seed = ContentSum::FromHex(
      Xxh3Hex(absl::StrCat(tensor, " ", dtype_name, " [", absl::StrJoin(global_shape, ","), "]")));
  const Key key{seed->low, seed->high};
  ContentSum sum;
  if (Volume(shape) == 0) return sum;

  // Runs along the last dimension, which are contiguous in the tensor as in the box.
  const int64_t run = dimensions == 0 ? 1 : shape[dimensions - 1];
  std::vector<int64_t> at(dimensions, 0);  // of the run, within the box; the last stays 0
  const char* bytes = static_cast<const char*>(data);
  while (true) {
    uint64_t index = 0;
    for (int i = 0; i < dimensions; ++i) index = index * global_shape[i] + offset[i] + at[i];
    switch (element_bytes) {
      case 1:
        AddRun<uint8_t>(key, index, bytes, run, sum);
        break;
      case 2:
        AddRun<uint16_t>(key, index, bytes, run, sum);
        break;
      case 4:
        AddRun<uint32_t>(key, index, bytes, run, sum);
        break;
      case 8:
        AddRun<uint64_t>(key, index, bytes, run, sum);
        break;
      default:
        MT_CHECK(false) << "elements of " << element_bytes << " bytes";
    }
    bytes += run * element_bytes;
    int i = dimensions - 2;
    while (i >= 0 && ++at[i] == shape[i]) at[i--] = 0;
    if (i < 0) return sum;
  }
}

absl::Status CheckCoverage(const v1::CheckpointManifest& manifest) {
  BoxesByTensor boxes = Group(manifest);
  for (auto& [tensor, list] : boxes) MT_RETURN_IF_ERROR(CheckTensor(tensor, list));
  return absl::OkStatus();
}

absl::StatusOr<std::string> WeightsDigest(const v1::CheckpointManifest& manifest) {
  Xxh3Stream hash;
  for (const auto& [tensor, boxes] : Group(manifest)) {
    ContentSum sum;
    for (const Box& box : boxes) {
      const absl::StatusOr<ContentSum> part = ContentSum::FromHex(box.slice->content_sum());
      if (!part.ok()) {
        return absl::FailedPreconditionError(absl::StrCat(
            "tensor ", tensor, ", box ", Describe(box), ": ", part.status().message()));
      }
      sum.Add(*part);
    }
    const std::string line =
        absl::StrCat(tensor, " [", absl::StrJoin(boxes.front().slice->global_shape(), ","), "] ",
                     sum.Hex(), "\n");
    hash.Update(line.data(), line.size());
  }
  return hash.Hex();
}

}  // namespace mt
