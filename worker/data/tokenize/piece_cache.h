// What became of pieces of text seen before: text repeats itself, so that of a hundred pieces one is new.
//
// Nine pieces of ten have at most 15 bytes and give at most three ids; most others have at most 31 and give at most seven. These two
// kinds have tables whose slots hold key and ids: 32 and 64 bytes, two to a set. What is larger still, up to kLongestKey bytes, lies
// in an arena. A set that is full drops what it got first, so that a lookup never has to search; the tables double as they fill, up
// to 32 MiB for the first, 16 MiB for the second, and 30 MiB with the arena.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "worker/data/tokenize/huge_array.h"

namespace mt {

// Pieces of less than 8 * kWords bytes that give at most kIds ids.
template <size_t kWords, size_t kIds>
class PieceTable {
 public:
  static constexpr size_t kMostBytes = 8 * kWords - 1;
  static constexpr size_t kMostIds = kIds;

  // The piece's bytes, zeros, and its length in the last byte.
  struct Key {
    std::array<uint64_t, kWords> words;
    bool operator==(const Key& other) const {  // in place; the default calls memcmp
      uint64_t differences = 0;
      for (size_t i = 0; i < kWords; ++i) differences |= words[i] ^ other.words[i];
      return differences == 0;
    }
  };
  struct Slot {
    Key key{};  // length 0: empty
    int32_t ids[kIds] = {};
    uint32_t num_ids = 0;
  };

  explicit PieceTable(size_t most_bytes) : most_sets_(most_bytes / sizeof(Set)) {}

  // `piece` has 1..kMostBytes bytes, and may be read up to `readable`; where that is the size of a key, it is fastest.
  static Key KeyOf(const char* piece, size_t bytes, size_t readable) {
    Key key;
    if (readable >= sizeof(key)) {
      std::memcpy(&key, piece, sizeof(key));
      for (size_t i = 0; i < kWords; ++i) {
        const size_t before = 8 * i;
        if (bytes <= before) {
          key.words[i] = 0;
        } else if (bytes < before + 8) {
          key.words[i] &= (uint64_t{1} << 8 * (bytes - before)) - 1;
        }
      }
    } else {
      key = Key{};
      std::memcpy(&key, piece, bytes);
    }
    key.words[kWords - 1] |= uint64_t{bytes} << 56;
    return key;
  }
  static uint64_t Hash(const Key& key) {
    uint64_t hash = 0;
    for (size_t i = 0; i < kWords; i += 2) {
      const unsigned __int128 product =
          static_cast<unsigned __int128>(key.words[i] ^ 0x9e3779b97f4a7c15u ^ hash) *
          (key.words[i + 1] ^ 0xbf58476d1ce4e5b9u);
      hash = static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
    }
    return hash;
  }

  void Prefetch(uint64_t hash) const {
    const char* set = reinterpret_cast<const char*>(&sets_[hash & set_mask_]);
    for (size_t line = 0; line < sizeof(Set); line += 64) __builtin_prefetch(set + line);
  }
  // Null: not seen, or forgotten. Valid until the next Insert.
  const Slot* Find(const Key& key, uint64_t hash) const {
    const Set& set = sets_[hash & set_mask_];
    if (set.slots[0].key == key) return &set.slots[0];
    if (set.slots[1].key == key) return &set.slots[1];
    return nullptr;
  }

  void Insert(absl::string_view piece, std::span<const int32_t> ids) {
    Slot slot;
    slot.key = KeyOf(piece.data(), piece.size(), piece.size());
    std::copy(ids.begin(), ids.end(), slot.ids);
    slot.num_ids = static_cast<uint32_t>(ids.size());
    if (inserted_ >= sets_.size() / 2 && sets_.size() < most_sets_) Grow();
    InsertSlot(slot);
  }

 private:
  struct alignas(64) Set {
    Slot slots[2];
  };

  void InsertSlot(const Slot& slot) {
    Set& set = sets_[Hash(slot.key) & set_mask_];
    set.slots[1] = set.slots[0];
    set.slots[0] = slot;
    ++inserted_;
  }

  void Grow() {
    HugeArray<Set> old(sets_.size() * 4);
    std::swap(old, sets_);
    set_mask_ = sets_.size() - 1;
    inserted_ = 0;
    for (Set& set : old) {
      for (const Slot* slot : {&set.slots[1], &set.slots[0]}) {
        if (slot->key != Key{}) InsertSlot(*slot);
      }
    }
  }

  const size_t most_sets_;
  HugeArray<Set> sets_{128};
  uint64_t set_mask_ = 127;
  size_t inserted_ = 0;  // since the table has this size
};

// One thread's.
class PieceCache {
 public:
  using Short = PieceTable<2, 3>;
  using Wide = PieceTable<4, 7>;
  static constexpr size_t kLongestKey = 256;

  const Short& short_pieces() const { return short_; }
  const Wide& wide_pieces() const { return wide_; }
  // Of pieces that fit into neither; also of those that are short but have many ids. Empty: not seen. Valid until the next Insert.
  std::span<const int32_t> FindLong(absl::string_view piece) const;

  // Where it is found again depends on the sizes of both.
  void Insert(absl::string_view piece, std::span<const int32_t> ids);

 private:
  struct LongSlot {
    uint64_t hash = 0;
    uint32_t key_at = 0;     // in keys_
    uint32_t ids_at = 0;     // in ids_
    uint32_t key_bytes = 0;  // 0: empty
    uint32_t num_ids = 0;
  };

  void InsertLong(absl::string_view piece, std::span<const int32_t> ids);

  Short short_{size_t{32} << 20};
  Wide wide_{size_t{16} << 20};
  std::vector<LongSlot> long_slots_{128};
  std::string keys_;
  std::vector<int32_t> ids_;
};

}  // namespace mt
