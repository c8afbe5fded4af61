// What became of pieces of text seen before: text repeats itself, so that of a hundred pieces one is new.
//
// Nine pieces of ten have at most 15 bytes and give at most three ids: these lie in a table of sets of two slots, a cache line each,
// with key and ids in place. Others, up to kLongestKey bytes, lie in an arena behind a table of the same kind. A set that is full
// drops what it got first, so that a lookup touches one line and never has to search; the tables double as they fill, up to a fixed
// size (short: 16 MiB, long: 4 MiB and 24 MiB of arena).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace mt {

// One thread's.
class PieceCache {
 public:
  static constexpr size_t kShortBytes = 15;
  static constexpr size_t kShortIds = 3;
  static constexpr size_t kLongestKey = 256;

  // The bytes of a short piece, zeros, and its length in the last byte.
  struct Key {
    uint64_t low = 0;
    uint64_t high = 0;
    bool operator==(const Key&) const = default;
  };
  struct Slot {
    Key key;  // length 0: empty
    int32_t ids[kShortIds] = {};
    uint32_t num_ids = 0;
  };

  PieceCache();

  // `piece` has 1..kShortBytes bytes; where `readable` of its bytes and those behind may be read, 16 or more are fastest.
  static Key KeyOf(const char* piece, size_t bytes, size_t readable) {
    Key key;
    if (readable >= 16) {
      std::memcpy(&key, piece, sizeof(key));
      const uint64_t bits = bytes * 8;
      if (bits < 64) {
        key.low &= (uint64_t{1} << bits) - 1;
        key.high = 0;
      } else {
        key.high &= (uint64_t{1} << (bits - 64)) - 1;
      }
    } else {
      std::memcpy(&key, piece, bytes);
    }
    key.high |= uint64_t{bytes} << 56;
    return key;
  }
  static uint64_t Hash(const Key& key) {
    const unsigned __int128 product =
        static_cast<unsigned __int128>(key.low ^ 0x9e3779b97f4a7c15u) *
        (key.high ^ 0xbf58476d1ce4e5b9u);
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
  }

  void Prefetch(uint64_t hash) const { __builtin_prefetch(&sets_[hash & set_mask_]); }
  // Null: not seen, or forgotten. Valid until the next Insert.
  const Slot* Find(const Key& key, uint64_t hash) const {
    const Set& set = sets_[hash & set_mask_];
    if (set.slots[0].key == key) return &set.slots[0];
    if (set.slots[1].key == key) return &set.slots[1];
    return nullptr;
  }
  // For pieces that are long, or have many ids. False: not seen; else appends the ids.
  bool FindLong(absl::string_view piece, std::vector<int32_t>* ids) const;

  // What FindLong or, if both are short, Find will tell of `piece`.
  void Insert(absl::string_view piece, std::span<const int32_t> ids);

 private:
  struct alignas(64) Set {
    Slot slots[2];
  };
  struct LongSlot {
    uint64_t hash = 0;
    uint32_t key_at = 0;     // in keys_
    uint32_t ids_at = 0;     // in ids_
    uint32_t key_bytes = 0;  // 0: empty
    uint32_t num_ids = 0;
  };

  void InsertShort(const Slot& slot, uint64_t hash);
  void InsertLong(absl::string_view piece, std::span<const int32_t> ids);
  void Grow();

  std::vector<Set> sets_;
  uint64_t set_mask_;
  size_t inserted_ = 0;  // since the table has this size
  std::vector<LongSlot> long_slots_;
  std::string keys_;
  std::vector<int32_t> ids_;
};

}  // namespace mt
