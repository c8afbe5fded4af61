#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/str_join.h"
#include "kernels/abi/small_floats.h"
#include "worker/checkpoint/hugging_face/files.h"

namespace mt {
namespace {

constexpr int64_t kWindowElements = 4 << 20;  // of a tensor that are held at once

std::string Name(const HubFiles::Place& place) {
  return absl::StrCat(place.file->path(), ": tensor ", place.entry->name, " (", place.entry->dtype,
                      " [", absl::StrJoin(place.entry->shape, ","), "])");
}

// IEEE half precision.
float FromF16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, exponent = bits >> 10 & 31;
  const uint32_t mantissa = bits & 0x3ff;
  if (exponent == 31) return mt_bits_float(sign | 0x7f800000u | mantissa << 13);
  if (exponent > 0) return mt_bits_float(sign | (exponent + 112) << 23 | mantissa << 13);
  const float small = std::ldexp(static_cast<float>(mantissa), -24);
  return sign != 0 ? -small : small;
}

class PlainReader : public HubTensorReader {
 public:
  explicit PlainReader(HubFiles::Place place) : place_(place) {}
  const std::vector<int64_t>& shape() const override { return place_.entry->shape; }

  absl::Status Read(int64_t first, int64_t count, float* out) const override {
    if (place_.entry->dtype == "F32")
      return place_.file->Read(*place_.entry, 4 * first, 4 * count, out);
    std::vector<uint16_t> stored(static_cast<size_t>(count));
    MT_RETURN_IF_ERROR(place_.file->Read(*place_.entry, 2 * first, 2 * count, stored.data()));
    if (place_.entry->dtype == "BF16") {
      std::transform(stored.begin(), stored.end(), out, mt_float_from_bf16);
    } else {
      std::transform(stored.begin(), stored.end(), out, FromF16);
    }
    return absl::OkStatus();
  }

 private:
  const HubFiles::Place place_;
};

// FP8 E4M3 times the scale of its block of rows and columns.
class BlockReader : public HubTensorReader {
 public:
  BlockReader(HubFiles::Place place, int64_t rows, int64_t columns)
      : place_(place), rows_(rows), columns_(columns) {}
  const std::vector<int64_t>& shape() const override { return place_.entry->shape; }

  absl::Status ReadScales(const HubFiles& files) {
    const std::string name = place_.entry->name + "_scale_inv";
    const HubFiles::Place* scales = files.Find(name);
    if (scales == nullptr)
      return absl::DataLossError(absl::StrCat(Name(place_), " comes without its scales, ", name));
    if (rows_ == 0) {
      return absl::DataLossError(absl::StrCat(
          Name(place_), ": config.json has no quantization_config to tell the size of its blocks"));
    }
    const std::vector<int64_t>& shape = place_.entry->shape;
    if (shape.size() != 2) return absl::DataLossError(Name(place_) + " is not a matrix");
    across_ = (shape[1] + columns_ - 1) / columns_;
    const std::vector<int64_t> wanted = {(shape[0] + rows_ - 1) / rows_, across_};
    if (scales->entry->shape != wanted) {
      return absl::DataLossError(absl::StrCat(Name(*scales), " should be [",
                                              absl::StrJoin(wanted, ","), "], one for each ", rows_,
                                              " by ", columns_, " of the weights"));
    }
    MT_ASSIGN_OR_RETURN(const auto reader,
                        HubTensorReader::Open(files, name, HubStorage::kPlain, 0, 0));
    scales_.resize(static_cast<size_t>(wanted[0] * wanted[1]));
    return reader->Read(0, wanted[0] * wanted[1], scales_.data());
  }

  absl::Status Read(int64_t first, int64_t count, float* out) const override {
    std::vector<uint8_t> stored(static_cast<size_t>(count));
    MT_RETURN_IF_ERROR(place_.file->Read(*place_.entry, first, count, stored.data()));
    const int64_t width = place_.entry->shape[1];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = (first + i) / width, column = (first + i) % width;
      out[i] = mt_float_from_e4m3(stored[i]) * scales_[row / rows_ * across_ + column / columns_];
    }
    return absl::OkStatus();
  }

 private:
  const HubFiles::Place place_;
  const int64_t rows_, columns_;
  int64_t across_ = 0;  // blocks side by side
  std::vector<float> scales_;
};

// Two E2M1 numbers to a byte, the low half first; 32 share a power of two (OCP Microscaling Formats 1.0, sections 5.3 and 6.3).
class Mxfp4Reader : public HubTensorReader {
 public:
  static constexpr int64_t kBlock = 32;
  Mxfp4Reader(HubFiles::Place blocks, HubFiles::Place scales) : blocks_(blocks), scales_(scales) {
    const std::vector<int64_t>& shape = blocks.entry->shape;  // [..., blocks of a row, 16]
    shape_.assign(shape.begin(), shape.end() - 1);
    shape_.back() *= kBlock;
  }
  const std::vector<int64_t>& shape() const override { return shape_; }

  absl::Status Read(int64_t first, int64_t count, float* out) const override {
    static constexpr float kValues[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    if (count == 0) return absl::OkStatus();
    const int64_t first_byte = first / 2, first_scale = first / kBlock;
    std::vector<uint8_t> bytes(static_cast<size_t>((first + count - 1) / 2 - first_byte + 1)),
        scales(static_cast<size_t>((first + count - 1) / kBlock - first_scale + 1));
    MT_RETURN_IF_ERROR(blocks_.file->Read(*blocks_.entry, first_byte, bytes.size(), bytes.data()));
    MT_RETURN_IF_ERROR(
        scales_.file->Read(*scales_.entry, first_scale, scales.size(), scales.data()));
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = first + i;
      const int code = bytes[at / 2 - first_byte] >> (at % 2 * 4) & 15;
      const int exponent = scales[at / kBlock - first_scale];
      const float scale = exponent == 255 ? std::numeric_limits<float>::quiet_NaN()
                                          : std::ldexp(1.0f, exponent - 127);
      out[i] = ((code & 8) != 0 ? -kValues[code & 7] : kValues[code & 7]) * scale;
    }
    return absl::OkStatus();
  }

 private:
  const HubFiles::Place blocks_, scales_;
  std::vector<int64_t> shape_;
};

absl::StatusOr<std::unique_ptr<HubTensorReader>> OpenMxfp4(const HubFiles& files,
                                                           const std::string& tensor) {
  const HubFiles::Place* blocks = files.Find(tensor + "_blocks");
  if (blocks == nullptr) return absl::NotFoundError(tensor + "_blocks");
  const HubFiles::Place* scales = files.Find(tensor + "_scales");
  if (scales == nullptr)
    return absl::DataLossError(
        absl::StrCat(Name(*blocks), " comes without its scales, ", tensor, "_scales"));
  std::vector<int64_t> wanted = blocks->entry->shape;
  if (blocks->entry->dtype != "U8" || wanted.size() < 2 || wanted.back() != 16)
    return absl::DataLossError(Name(*blocks) + " should be U8 [..., 16]: 32 numbers in 16 bytes");
  wanted.pop_back();
  if (scales->entry->dtype != "U8" || scales->entry->shape != wanted) {
    return absl::DataLossError(
        absl::StrCat(Name(*scales), " should be U8 [", absl::StrJoin(wanted, ","), "]"));
  }
  return std::make_unique<Mxfp4Reader>(*blocks, *scales);
}

}  // namespace

absl::StatusOr<std::unique_ptr<HubTensorReader>> HubTensorReader::Open(const HubFiles& files,
                                                                       const std::string& tensor,
                                                                       HubStorage storage,
                                                                       int64_t block_rows,
                                                                       int64_t block_columns) {
  if (storage == HubStorage::kMxfp4) return OpenMxfp4(files, tensor);
  const HubFiles::Place* place = files.Find(tensor);
  if (place == nullptr) return absl::NotFoundError(tensor);
  const std::string& dtype = place->entry->dtype;
  if (dtype == "F32" || dtype == "BF16" || dtype == "F16")
    return std::make_unique<PlainReader>(*place);
  if (dtype == "F8_E4M3") {
    auto reader = std::make_unique<BlockReader>(*place, block_rows, block_columns);
    MT_RETURN_IF_ERROR(reader->ReadScales(files));
    return reader;
  }
  return absl::UnimplementedError(
      absl::StrCat(Name(*place),
                   ": weights are read from F32, BF16, F16, FP8 with scales per "
                   "block and, for gpt_oss, MXFP4"));
}

absl::Status ReadView(const HubTensorReader& tensor, const HubView& view, bool is_vector,
                      const Window2d& window, float* out) {
  // The dimension with the longer step is walked through, the other one lies within a segment of the tensor.
  const int64_t row_stride = is_vector ? INT64_MAX : view.row_stride;
  const int64_t column_stride = is_vector ? view.row_stride : view.column_stride;
  const bool by_rows = row_stride >= column_stride;
  const int64_t outer_count = by_rows ? window.rows : window.columns;
  const int64_t inner_count = by_rows ? window.columns : window.rows;
  const int64_t outer_stride = is_vector ? 0 : by_rows ? row_stride : column_stride;
  const int64_t inner_stride = by_rows ? column_stride : row_stride;
  const int64_t first =
      view.first + (is_vector ? 0 : window.row * row_stride) + window.column * column_stride;
  if (outer_count == 0 || inner_count == 0) return absl::OkStatus();
  const int64_t inner_step =
      std::clamp<int64_t>((kWindowElements - 1) / inner_stride + 1, 1, inner_count);
  std::vector<float> held;
  for (int64_t inner = 0; inner < inner_count; inner += inner_step) {
    const int64_t count = std::min(inner_step, inner_count - inner);
    const int64_t segment = (count - 1) * inner_stride + 1;
    // Segments that lie close together are read together.
    const bool dense = outer_stride > 0 && 2 * segment >= outer_stride;
    const int64_t outer_step =
        dense ? std::max<int64_t>(1, (kWindowElements - segment) / outer_stride + 1) : 1;
    for (int64_t outer = 0; outer < outer_count; outer += outer_step) {
      const int64_t steps = std::min(outer_step, outer_count - outer);
      const int64_t at = first + outer * outer_stride + inner * inner_stride;
      const int64_t span = (steps - 1) * outer_stride + segment;
      held.resize(static_cast<size_t>(span));
      MT_RETURN_IF_ERROR(tensor.Read(at, span, held.data()));
      for (int64_t o = 0; o < steps; ++o) {
        const float* from = held.data() + o * outer_stride;
        if (by_rows) {
          float* to = out + (outer + o) * window.columns + inner;
          for (int64_t i = 0; i < count; ++i) to[i] = from[i * inner_stride];
        } else {
          float* to = out + inner * window.columns + outer + o;
          for (int64_t i = 0; i < count; ++i) to[i * window.columns] = from[i * inner_stride];
        }
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace mt
