#include "worker/data/tokenize/piece_cache.h"

#include "absl/hash/hash.h"

namespace mt {
namespace {

constexpr size_t kMostLongSlots = size_t{1} << 17;
constexpr size_t kMostKeyBytes = size_t{10} << 20;
constexpr size_t kMostLongIds = size_t{4} << 20;

uint64_t HashLong(absl::string_view piece) { return absl::HashOf(piece); }

}  // namespace

std::span<const int32_t> PieceCache::FindLong(absl::string_view piece) const {
  if (piece.size() > kLongestKey) return {};
  const uint64_t hash = HashLong(piece);
  const size_t set = (hash & (long_slots_.size() / 2 - 1)) * 2;
  for (size_t i = set; i < set + 2; ++i) {
    const LongSlot& slot = long_slots_[i];
    if (slot.hash != hash || slot.key_bytes != piece.size()) continue;
    if (std::memcmp(keys_.data() + slot.key_at, piece.data(), piece.size()) != 0) continue;
    return std::span(ids_).subspan(slot.ids_at, slot.num_ids);
  }
  return {};
}

void PieceCache::Insert(absl::string_view piece, std::span<const int32_t> ids) {
  if (piece.empty() || piece.size() > kLongestKey) return;
  if (piece.size() <= Short::kMostBytes && ids.size() <= Short::kMostIds)
    return short_.Insert(piece, ids);
  if (piece.size() <= Wide::kMostBytes && ids.size() <= Wide::kMostIds)
    return wide_.Insert(piece, ids);
  InsertLong(piece, ids);
}

void PieceCache::InsertLong(absl::string_view piece, std::span<const int32_t> ids) {
  const bool full =
      keys_.size() + piece.size() > kMostKeyBytes || ids_.size() + ids.size() > kMostLongIds;
  const size_t wanted = keys_.size() / 16;  // few are shorter
  if (full) {
    keys_.clear();
    ids_.clear();
    long_slots_.assign(long_slots_.size(), LongSlot());
  } else if (wanted > long_slots_.size() && long_slots_.size() < kMostLongSlots) {
    std::vector<LongSlot> old(long_slots_.size() * 4);
    std::swap(old, long_slots_);
    for (const LongSlot& slot : old) {
      LongSlot* set = &long_slots_[(slot.hash & (long_slots_.size() / 2 - 1)) * 2];
      if (slot.key_bytes != 0) set[set[0].key_bytes != 0 ? 1 : 0] = slot;
    }
  }
  const uint64_t hash = HashLong(piece);
  LongSlot* set = &long_slots_[(hash & (long_slots_.size() / 2 - 1)) * 2];
  set[1] = set[0];
  set[0] = {hash, static_cast<uint32_t>(keys_.size()), static_cast<uint32_t>(ids_.size()),
            static_cast<uint32_t>(piece.size()), static_cast<uint32_t>(ids.size())};
  keys_.append(piece.data(), piece.size());
  ids_.insert(ids_.end(), ids.begin(), ids.end());
}

}  // namespace mt
