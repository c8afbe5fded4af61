// Byte-pair encoding of one piece of text, exactly: of all neighbours that the list of merges knows, those of the lowest rank are
// joined first, the leftmost of equals before the others, until none is left (Sennrich et al. 2016, as Hugging Face tokenizers and
// tiktoken do it).
//
// Short pieces, nearly all, are merged in arrays by scanning for the lowest rank. A long one takes a heap: n letters cost
// O(n log n), whatever they are, and about 40 bytes of memory each.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "common/status.h"
#include "worker/data/tokenize/huge_array.h"

namespace mt {

struct BpeMerge {
  int32_t left = 0;
  int32_t right = 0;
  int32_t result = 0;
  uint32_t rank = 0;  // lower ones first; may be shared by merges with the same result
};

struct BpeVocabulary {
  // By id: the text that a token is made of; empty for ids that no text can give.
  std::vector<std::string> tokens;
  std::vector<BpeMerge> merges;  // of two with the same pair, the last one counts
  // What merging starts from: bytes, or (false) characters.
  bool byte_level = true;
  // A piece that is a token is that token, whatever the merges say.
  bool ignore_merges = false;
  // For characters that are no tokens: the tokens of their bytes (-1: none), if all of them exist; else `unknown`, once for a row of
  // such characters if `fuse_unknown`; else nothing.
  std::array<int32_t, 256> byte_fallback = NoFallback();
  int32_t unknown = -1;
  bool fuse_unknown = false;

  static std::array<int32_t, 256> NoFallback() {
    std::array<int32_t, 256> none;
    none.fill(-1);
    return none;
  }
};

// Immutable and thread-safe.
class BpeModel {
 public:
  // One thread's memory for Encode.
  struct Scratch {
    std::vector<int32_t> symbols, next, previous, result;
    std::vector<uint32_t> rank;
    std::vector<uint64_t> heap;
  };

  // The ids of `vocabulary` lie in [0, 2^28); the caller has checked that its merges name tokens.
  explicit BpeModel(BpeVocabulary vocabulary);
  BpeModel(const BpeModel&) = delete;
  BpeModel& operator=(const BpeModel&) = delete;

  // Appends the ids of `piece`, which has fewer than 2^32 bytes.
  void Encode(absl::string_view piece, Scratch* scratch, std::vector<int32_t>* ids) const;

  // No merge joins what stands before an occurrence of `separator` (a character) to it, unless that is `separator` too: a text may
  // be cut there.
  bool SeparatesAlways(absl::string_view separator) const;

 private:
  // A joined pair; pairs are found by open addressing.
  struct Pair {
    uint64_t key;  // kNoPair: empty
    uint32_t rank;
    int32_t result;
  };
  static constexpr uint64_t kNoPair = 0;
  static constexpr uint32_t kNoRank = ~uint32_t{0};

  void AddPair(const BpeMerge& merge);
  const Pair* FindPair(int32_t left, int32_t right) const;
  void Symbols(absl::string_view piece, std::vector<int32_t>* symbols) const;
  size_t MergeShort(int32_t* symbols, size_t n) const;
  void MergeLong(Scratch* scratch) const;

  BpeVocabulary vocabulary_;
  absl::flat_hash_map<absl::string_view, int32_t> ids_;  // of vocabulary_.tokens; if needed
  std::array<int32_t, 256> bytes_;                       // of tokens of one byte; -1: none
  absl::flat_hash_map<uint32_t, int32_t> characters_;    // by their bytes
  // Most neighbours are no pair: for two of them, a bit tells, from a table that stays in the second cache.
  HugeArray<uint64_t> may_be_pair_;
  HugeArray<Pair> pairs_;
  uint64_t pair_mask_;
};

}  // namespace mt
