#include "worker/data/tokenize/bpe_model.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/numeric/bits.h"
#include "worker/data/tokenize/utf8.h"

namespace mt {
namespace {

// Up to here, scanning an array for the lowest rank is cheaper than keeping a heap.
constexpr size_t kShortPiece = 64;

// Never 0.
uint64_t PairKey(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left) + 1} << 32 | static_cast<uint32_t>(right);
}

uint64_t Scatter(uint64_t key) {
  const unsigned __int128 product = static_cast<unsigned __int128>(key) * 0x9e3779b97f4a7c15u;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

// A character of at most four bytes as a number; bytes that are not UTF-8 stand alone and cannot be mistaken for one that is.
uint32_t Packed(absl::string_view character) {
  uint32_t packed = 0;
  std::memcpy(&packed, character.data(), character.size());
  return packed;
}

// The number of bytes of the character at `at`: one if they are not UTF-8.
size_t CharacterBytes(absl::string_view text, size_t at) {
  char32_t character;
  return std::max<size_t>(1, DecodeUtf8(text, at, &character));
}

}  // namespace

BpeModel::BpeModel(BpeVocabulary vocabulary)
    : vocabulary_(std::move(vocabulary)),
      may_be_pair_(absl::bit_ceil(vocabulary_.merges.size() / 4 + 1)),  // 16 bits or more for each
      pairs_(absl::bit_ceil(vocabulary_.merges.size() * 2 + 1)),
      pair_mask_(pairs_.size() - 1) {
  bytes_.fill(-1);
  for (size_t id = 0; id < vocabulary_.tokens.size(); ++id) {
    const absl::string_view token = vocabulary_.tokens[id];
    if (token.empty()) continue;
    if (vocabulary_.ignore_merges) ids_.emplace(token, static_cast<int32_t>(id));
    if (token.size() == 1 && (vocabulary_.byte_level || static_cast<signed char>(token[0]) >= 0))
      bytes_[static_cast<unsigned char>(token[0])] = static_cast<int32_t>(id);
    if (!vocabulary_.byte_level && token.size() <= 4 && CharacterBytes(token, 0) == token.size())
      characters_.emplace(Packed(token), static_cast<int32_t>(id));
  }
  for (const BpeMerge& merge : vocabulary_.merges) AddPair(merge);
}

void BpeModel::AddPair(const BpeMerge& merge) {
  const uint64_t key = PairKey(merge.left, merge.right);
  const uint64_t hash = Scatter(key);
  may_be_pair_[(hash >> 38) & (may_be_pair_.size() - 1)] |= uint64_t{1} << (hash >> 32 & 63);
  uint64_t slot = hash & pair_mask_;
  while (pairs_[slot].key != kNoPair && pairs_[slot].key != key) slot = (slot + 1) & pair_mask_;
  pairs_[slot] = {key, merge.rank, merge.result};
}

inline const BpeModel::Pair* BpeModel::FindPair(int32_t left, int32_t right) const {
  const uint64_t key = PairKey(left, right);
  const uint64_t hash = Scatter(key);
  const uint64_t bits = may_be_pair_[(hash >> 38) & (may_be_pair_.size() - 1)];
  if ((bits >> (hash >> 32 & 63) & 1) == 0) return nullptr;
  uint64_t slot = hash & pair_mask_;
  while (true) {
    const Pair& pair = pairs_[slot];
    if (pair.key == key) return &pair;
    if (pair.key == kNoPair) return nullptr;
    slot = (slot + 1) & pair_mask_;
  }
}

bool BpeModel::SeparatesAlways(absl::string_view separator) const {
  if (vocabulary_.byte_level || vocabulary_.ignore_merges) return false;
  if (!characters_.contains(Packed(separator))) return false;
  return std::none_of(
      vocabulary_.merges.begin(), vocabulary_.merges.end(), [&](const BpeMerge& merge) {
        const std::string& token = vocabulary_.tokens[merge.result];
        bool other = false;  // another character came before
        for (size_t at = 0; at < token.size();) {
          const size_t bytes = CharacterBytes(token, at);
          const bool separates = absl::string_view(token).substr(at, bytes) == separator;
          if (separates && other) return true;
          other = !separates;
          at += bytes;
        }
        return false;
      });
}

// HF's BPE::merge_word, up to the merging.
void BpeModel::Symbols(absl::string_view piece, std::vector<int32_t>* symbols) const {
  symbols->clear();
  if (vocabulary_.byte_level) {
    for (const char c : piece) {
      const int32_t id = bytes_[static_cast<unsigned char>(c)];
      if (id >= 0) symbols->push_back(id);
    }
    return;
  }
  bool pending = false;  // an unknown that later ones may join
  const auto flush = [&] {
    if (pending) symbols->push_back(vocabulary_.unknown);
    pending = false;
  };
  for (size_t at = 0; at < piece.size();) {
    const size_t bytes = CharacterBytes(piece, at);
    const absl::string_view character = piece.substr(at, bytes);
    at += bytes;
    const auto known = characters_.find(Packed(character));
    if (known != characters_.end()) {
      flush();
      symbols->push_back(known->second);
      continue;
    }
    const auto fallback = [&](char c) {
      return vocabulary_.byte_fallback[static_cast<unsigned char>(c)];
    };
    if (std::all_of(character.begin(), character.end(), [&](char c) { return fallback(c) >= 0; })) {
      for (const char c : character) symbols->push_back(fallback(c));
      continue;
    }
    if (vocabulary_.unknown < 0) continue;
    if (!vocabulary_.fuse_unknown) flush();
    pending = true;
  }
  flush();
}

// Returns how many symbols are left.
size_t BpeModel::MergeShort(int32_t* symbols, size_t n) const {
  uint32_t rank[kShortPiece];  // of the pair (i, i + 1)
  int32_t result[kShortPiece];
  const auto look = [&](size_t i) {
    const Pair* pair = FindPair(symbols[i], symbols[i + 1]);
    rank[i] = pair == nullptr ? kNoRank : pair->rank;
    result[i] = pair == nullptr ? -1 : pair->result;
  };
  for (size_t i = 0; i + 1 < n; ++i) look(i);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i) {
      if (rank[i] < rank[best]) best = i;
    }
    if (rank[best] == kNoRank) break;
    symbols[best] = result[best];
    const size_t behind = n - best - 2;  // symbols behind the two
    std::memmove(symbols + best + 1, symbols + best + 2, behind * sizeof(*symbols));
    std::memmove(rank + best, rank + best + 1, behind * sizeof(*rank));
    std::memmove(result + best, result + best + 1, behind * sizeof(*result));
    --n;
    if (best > 0) look(best - 1);
    if (best + 1 < n) look(best);
  }
  return n;
}

// The symbols are a linked list over their first positions; the heap has rank and position of every pair that is or was there, and
// rank[] tells which still are: a pair that changed has another rank, or none.
void BpeModel::MergeLong(Scratch* scratch) const {
  std::vector<int32_t>&symbols = scratch->symbols, &next = scratch->next;
  std::vector<int32_t>&previous = scratch->previous, &result = scratch->result;
  std::vector<uint32_t>& rank = scratch->rank;
  std::vector<uint64_t>& heap = scratch->heap;
  const uint32_t n = static_cast<uint32_t>(symbols.size());
  next.resize(n);
  previous.resize(n);
  result.resize(n);
  rank.assign(n, kNoRank);
  heap.clear();
  const auto look = [&](uint32_t i) {
    const uint32_t j = static_cast<uint32_t>(next[i]);
    const Pair* pair = j == n ? nullptr : FindPair(symbols[i], symbols[j]);
    rank[i] = pair == nullptr ? kNoRank : pair->rank;
    if (pair == nullptr) return false;
    result[i] = pair->result;
    heap.push_back(uint64_t{pair->rank} << 32 | i);
    return true;
  };
  for (uint32_t i = 0; i < n; ++i) {
    next[i] = static_cast<int32_t>(i + 1);
    previous[i] = static_cast<int32_t>(i) - 1;
    look(i);
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  const auto look_again = [&](uint32_t i) {
    if (look(i)) std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const uint64_t top = heap.back();
    heap.pop_back();
    const uint32_t i = static_cast<uint32_t>(top);
    if (rank[i] != static_cast<uint32_t>(top >> 32)) continue;
    const uint32_t gone = static_cast<uint32_t>(next[i]);
    symbols[i] = result[i];
    rank[gone] = kNoRank;
    symbols[gone] = -1;
    next[i] = next[gone];
    if (static_cast<uint32_t>(next[i]) < n) previous[next[i]] = static_cast<int32_t>(i);
    look_again(i);
    if (previous[i] >= 0) look_again(static_cast<uint32_t>(previous[i]));
  }
  std::erase(symbols, -1);
}

void BpeModel::Encode(absl::string_view piece, Scratch* scratch, std::vector<int32_t>* ids) const {
  if (vocabulary_.ignore_merges) {
    const auto known = ids_.find(piece);
    if (known != ids_.end()) {
      ids->push_back(known->second);
      return;
    }
  }
  std::vector<int32_t>& symbols = scratch->symbols;
  Symbols(piece, &symbols);
  if (symbols.size() <= kShortPiece) {
    symbols.resize(MergeShort(symbols.data(), symbols.size()));
  } else {
    MergeLong(scratch);
  }
  ids->insert(ids->end(), symbols.begin(), symbols.end());
}

}  // namespace mt
