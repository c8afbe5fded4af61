#include "worker/data/tokenize/piece_cache.h"

#include <algorithm>
#include <utility>

#include "absl/hash/hash.h"

namespace mt {
namespace {

constexpr size_t kFirstSets = 256;
constexpr size_t kMostSets = size_t{1} << 18;
constexpr size_t kFirstLongSlots = 256;
constexpr size_t kMostLongSlots = size_t{1} << 17;
constexpr size_t kMostKeyBytes = size_t{8} << 20;
constexpr size_t kMostLongIds = size_t{4} << 20;

uint64_t HashLong(absl::string_view piece) { return absl::HashOf(piece); }

}  // namespace

PieceCache::PieceCache()
    : sets_(kFirstSets), set_mask_(kFirstSets - 1), long_slots_(kFirstLongSlots) {}

bool PieceCache::FindLong(absl::string_view piece, std::vector<int32_t>* ids) const {
  if (piece.size() > kLongestKey) return false;
  const uint64_t hash = HashLong(piece);
  const size_t set = (hash & (long_slots_.size() / 2 - 1)) * 2;
  for (size_t i = set; i < set + 2; ++i) {
    const LongSlot& slot = long_slots_[i];
    if (slot.hash != hash || slot.key_bytes != piece.size()) continue;
    if (std::memcmp(keys_.data() + slot.key_at, piece.data(), piece.size()) != 0) continue;
    ids->insert(ids->end(), ids_.begin() + slot.ids_at, ids_.begin() + slot.ids_at + slot.num_ids);
    return true;
  }
  return false;
}

void PieceCache::Insert(absl::string_view piece, std::span<const int32_t> ids) {
  if (piece.empty() || piece.size() > kLongestKey) return;
  if (piece.size() > kShortBytes || ids.size() > kShortIds) return InsertLong(piece, ids);
  Slot slot;
  slot.key = KeyOf(piece.data(), piece.size(), piece.size());
  std::copy(ids.begin(), ids.end(), slot.ids);
  slot.num_ids = static_cast<uint32_t>(ids.size());
  if (inserted_ >= sets_.size() && sets_.size() < kMostSets) Grow();
  InsertShort(slot, Hash(slot.key));
}

void PieceCache::InsertShort(const Slot& slot, uint64_t hash) {
  Set& set = sets_[hash & set_mask_];
  set.slots[1] = set.slots[0];
  set.slots[0] = slot;
  ++inserted_;
}

void PieceCache::Grow() {
  std::vector<Set> old(sets_.size() * 4);
  std::swap(old, sets_);
  set_mask_ = sets_.size() - 1;
  inserted_ = 0;
  for (const Set& set : old) {
    for (const Slot* slot : {&set.slots[1], &set.slots[0]}) {
      if (slot->key != Key()) InsertShort(*slot, Hash(slot->key));
    }
  }
}

void PieceCache::InsertLong(absl::string_view piece, std::span<const int32_t> ids) {
  const bool full =
      keys_.size() + piece.size() > kMostKeyBytes || ids_.size() + ids.size() > kMostLongIds;
  const size_t wanted = keys_.size() / 16;  // what lies in the arena has 16 bytes or more, mostly
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
