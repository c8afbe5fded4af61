#include "worker/checkpoint/slices.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_join.h"

namespace mt {
namespace {

constexpr int64_t kWindowBytes = 1 << 20;   // short runs that lie close together are read together
constexpr int64_t kDirectBytes = 64 << 10;  // longer runs are read straight to their place

}  // namespace

absl::StatusOr<const SafetensorsEntry*> FindSlice(const SafetensorsReader& reader,
                                                  const v1::TensorSlice& slice) {
  const SafetensorsEntry* entry = reader.Find(slice.entry());
  if (entry == nullptr)
    return absl::DataLossError(
        absl::StrCat(reader.path(), " has no entry ", slice.entry(), ", which its manifest lists"));
  if (entry->shape != ToVector(slice.shape())) {
    return absl::DataLossError(absl::StrCat(
        reader.path(), ": entry ", slice.entry(), " is [", absl::StrJoin(entry->shape, ","),
        "], its manifest says [", absl::StrJoin(slice.shape(), ","), "]"));
  }
  return entry;
}

absl::Status ReadSlice(const SafetensorsReader& reader, const SafetensorsEntry& entry,
                       const v1::TensorSlice& slice, const Region& region, const TensorBox& box,
                       char* destination, std::vector<char>& window) {
  const int64_t element = ElementBytes(box.dtype);
  const std::vector<int64_t> offset = ToVector(slice.offset()), shape = ToVector(slice.shape());
  RunIterator runs(region, offset, shape, box.offset, box.shape);
  // Bytes between the starts of neighbouring runs, if they are rows of a matrix: is reading across
  // the gap worth it?
  const int64_t row_bytes = shape.empty() ? element : shape.back() * element;
  int64_t window_begin = 0, window_end = 0;
  for (; !runs.done(); runs.Next()) {
    const int64_t begin = runs.run().source * element, bytes = runs.run().count * element;
    char* to = destination + runs.run().destination * element;
    if (bytes >= kDirectBytes || row_bytes > 4 * bytes) {
      MT_RETURN_IF_ERROR(reader.Read(entry, begin, bytes, to));
      continue;
    }
    if (begin < window_begin || begin + bytes > window_end) {
      window_begin = begin;
      window_end = std::min<int64_t>(begin + kWindowBytes, entry.bytes());
      window.resize(kWindowBytes);
      MT_RETURN_IF_ERROR(
          reader.Read(entry, window_begin, window_end - window_begin, window.data()));
    }
    std::memcpy(to, window.data() + (begin - window_begin), bytes);
  }
  return absl::OkStatus();
}

}  // namespace mt
