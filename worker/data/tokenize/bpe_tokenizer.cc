#include "worker/data/tokenize/bpe_tokenizer.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "worker/data/tokenize/piece_cache.h"
#include "worker/data/tokenize/tokenizer_errors.h"

namespace mt {
namespace {

// So many pieces are looked up together: enough to hide the way to memory, few enough to stay in the first cache.
constexpr size_t kBlock = 64;
constexpr size_t kPieces = 512;  // that are cut at a time
constexpr size_t kMaxTextBytes = std::numeric_limits<int32_t>::max();
constexpr absl::string_view kMetaspace = "\u2581";

// Pieces end before a ▁ that follows another character.
class SpaceSeparator : public PreTokenizer {
 public:
  absl::Status Split(absl::string_view text, std::vector<Piece>* pieces) const override {
    uint32_t at = 0;
    return SplitSome(text, text.size(), &at, pieces);
  }
  absl::Status SplitSome(absl::string_view text, size_t max_pieces, uint32_t* at,
                         std::vector<Piece>* pieces) const override {
    for (size_t n = 0; n < max_pieces && *at < text.size(); ++n) {
      const uint32_t end = WordEnd(text, *at);
      pieces->push_back({*at, end});
      *at = end;
    }
    return absl::OkStatus();
  }
  absl::string_view name() const override { return "words"; }

 private:
  static uint32_t WordEnd(absl::string_view text, uint32_t begin) {
    size_t at = begin;
    while (absl::StartsWith(text.substr(at), kMetaspace)) at += kMetaspace.size();
    return static_cast<uint32_t>(std::min(text.find(kMetaspace, at), text.size()));
  }
};

class BpeTokenizer : public Tokenizer {
 public:
  explicit BpeTokenizer(BpeParts parts)
      : parts_(std::move(parts)), model_(std::move(parts_.vocabulary)) {
    // Words one by one are found in the cache, and are merged faster than a text in one piece.
    if (parts_.pre_tokenizer == nullptr && model_.SeparatesAlways(kMetaspace))
      parts_.pre_tokenizer = std::make_unique<SpaceSeparator>();
  }

  std::unique_ptr<TokenEncoder> NewEncoder(SpecialText special) const override;
  absl::StatusOr<std::string> Decode(std::span<const int32_t> ids,
                                     SpecialText special) const override {
    for (const int32_t id : ids) {
      if (id < 0 || id >= vocab_size()) return NoSuchId(parts_.spec, id, vocab_size());
    }
    return parts_.decoder.Decode(ids, special);
  }
  int32_t vocab_size() const override { return static_cast<int32_t>(parts_.decoder.texts.size()); }
  int32_t eod() const override { return parts_.eod; }
  std::vector<int32_t> stop_ids() const override {
    std::vector<int32_t> ids = Tokenizer::stop_ids();
    for (const int32_t id : parts_.stop_ids) {
      if (id >= 0 && id < vocab_size() && std::find(ids.begin(), ids.end(), id) == ids.end())
        ids.push_back(id);
    }
    return ids;
  }
  int32_t special_id(absl::string_view text) const override {
    const auto found = parts_.special_ids.find(text);
    return found == parts_.special_ids.end() ? -1 : found->second;
  }
  const std::string& spec() const override { return parts_.spec; }
  const std::string& digest() const override { return parts_.digest; }

  const BpeParts& parts() const { return parts_; }
  const BpeModel& model() const { return model_; }

 private:
  BpeParts parts_;  // without its vocabulary
  const BpeModel model_;
};

class BpeEncoder : public TokenEncoder {
 public:
  BpeEncoder(const BpeTokenizer* tokenizer, SpecialText special)
      : parts_(tokenizer->parts()), model_(tokenizer->model()), special_(special) {}

  absl::Status Encode(absl::string_view text, std::vector<int32_t>* ids) override {
    return EncodeText(text, true, ids);
  }
  absl::Status EncodeInside(absl::string_view text, std::vector<int32_t>* ids) override {
    return EncodeText(text, false, ids);
  }

 private:
  // `begins`: nothing stands before it.
  absl::Status EncodeText(absl::string_view text, bool begins, std::vector<int32_t>* ids) {
    if (text.size() > kMaxTextBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("a text of ", text.size(), " bytes; at most ", kMaxTextBytes,
                       " can be encoded at once: split the document"));
    }
    return ForEachSegment(parts_.raw_added, text, ids, [&](absl::string_view raw) {
      const bool first = begins && raw.data() == text.data();
      const absl::string_view normal = parts_.normalizer.Normalize(raw, &normalized_);
      return ForEachSegment(parts_.normalized_added, normal, ids, [&](absl::string_view segment) {
        return EncodeSegment(segment, first && segment.data() == normal.data(), ids);
      });
    });
  }

  // The ids of the added tokens in `text`, and `encode` for what is between them.
  template <typename EncodeBetween>
  absl::Status ForEachSegment(const AddedTokens& added, absl::string_view text,
                              std::vector<int32_t>* ids, const EncodeBetween& encode) {
    size_t at = 0;
    while (const auto match = added.Find(text, at, special_)) {
      if (match->begin > at) MT_RETURN_IF_ERROR(encode(text.substr(at, match->begin - at)));
      ids->push_back(match->id);
      at = match->end;
    }
    return at < text.size() ? encode(text.substr(at)) : absl::OkStatus();
  }

  // `first`: everything begins with it.
  absl::Status EncodeSegment(absl::string_view text, bool first, std::vector<int32_t>* ids) {
    text = WithSpaces(text, first);
    used_ = 0;
    if (parts_.pre_tokenizer == nullptr) EncodePiece(text);
    for (uint32_t at = 0; parts_.pre_tokenizer != nullptr && at < text.size();) {
      pieces_.clear();
      MT_RETURN_IF_ERROR(parts_.pre_tokenizer->SplitSome(text, kPieces, &at, &pieces_));
      for (std::span<const Piece> rest = pieces_; !rest.empty();) {
        const std::span<const Piece> block = rest.first(std::min(kBlock, rest.size()));
        EncodeBlock(text, block);
        rest = rest.subspan(block.size());
      }
      ids->insert(ids->end(), out_.begin(), out_.begin() + static_cast<ptrdiff_t>(used_));
      used_ = 0;
    }
    ids->insert(ids->end(), out_.begin(), out_.begin() + static_cast<ptrdiff_t>(used_));
    return absl::OkStatus();
  }

  absl::string_view WithSpaces(absl::string_view text, bool first) {
    const bool prefix = parts_.prefix_space == PrefixSpace::kAlways ||
                        (parts_.prefix_space == PrefixSpace::kFirst && first);
    const absl::string_view space = parts_.space.empty() ? " " : absl::string_view(parts_.space);
    if (parts_.space.empty()) {
      if (!prefix || absl::StartsWith(text, space)) return text;
      spaced_.clear();
    } else {
      spaced_ = absl::StrReplaceAll(text, {{" ", space}});
      if (!prefix || absl::StartsWith(spaced_, space)) return spaced_;
      text = spaced_;
    }
    spaced_ = absl::StrCat(space, text);
    return spaced_;
  }

  // A piece, and where its cache has it.
  struct Probe {
    union {
      PieceCache::Short::Key short_key;
      PieceCache::Wide::Key wide_key;
    };
    uint64_t hash;
  };

  // Asks memory for all pieces of the block, then looks at each.
  void EncodeBlock(absl::string_view text, std::span<const Piece> block) {
    const PieceCache::Short& short_pieces = cache_.short_pieces();
    const PieceCache::Wide& wide_pieces = cache_.wide_pieces();
    Probe probes[kBlock];
    for (size_t i = 0; i < block.size(); ++i) {
      const auto [begin, end] = block[i];
      const size_t bytes = end - begin, readable = text.size() - begin;
      if (bytes <= PieceCache::Short::kMostBytes) {
        probes[i].short_key = PieceCache::Short::KeyOf(text.data() + begin, bytes, readable);
        probes[i].hash = PieceCache::Short::Hash(probes[i].short_key);
        short_pieces.Prefetch(probes[i].hash);
      } else if (bytes <= PieceCache::Wide::kMostBytes) {
        probes[i].wide_key = PieceCache::Wide::KeyOf(text.data() + begin, bytes, readable);
        probes[i].hash = PieceCache::Wide::Hash(probes[i].wide_key);
        wide_pieces.Prefetch(probes[i].hash);
      }
    }
    Reserve(block.size() * PieceCache::Wide::kMostIds);
    for (size_t i = 0; i < block.size(); ++i) {
      const auto [begin, end] = block[i];
      if (end - begin <= PieceCache::Short::kMostBytes) {
        if (Take(short_pieces.Find(probes[i].short_key, probes[i].hash))) continue;
      } else if (end - begin <= PieceCache::Wide::kMostBytes) {
        if (Take(wide_pieces.Find(probes[i].wide_key, probes[i].hash))) continue;
      }
      EncodePiece(text.substr(begin, end - begin));
      Reserve((block.size() - i) * PieceCache::Wide::kMostIds);
    }
  }

  // All ids of a slot are copied, of which so many count; the next ones overwrite the others.
  template <typename Slot>
  bool Take(const Slot* slot) {
    if (slot == nullptr) return false;
    std::memcpy(out_.data() + used_, slot->ids, sizeof(slot->ids));
    used_ += slot->num_ids;
    return true;
  }

  // Room for so many ids more.
  void Reserve(size_t ids) {
    if (out_.size() < used_ + ids) out_.resize(2 * (used_ + ids));
  }

  void Append(std::span<const int32_t> ids) {
    Reserve(ids.size());
    std::copy(ids.begin(), ids.end(), out_.data() + used_);
    used_ += ids.size();
  }

  // What is in none of the tables by its size, or is new.
  void EncodePiece(absl::string_view piece) {
    if (piece.empty()) return;
    if (piece.size() <= PieceCache::Short::kMostBytes) {  // with more ids than fit there?
      const auto key = PieceCache::Wide::KeyOf(piece.data(), piece.size(), piece.size());
      Reserve(PieceCache::Wide::kMostIds);
      if (Take(cache_.wide_pieces().Find(key, PieceCache::Wide::Hash(key)))) return;
    }
    if (const std::span<const int32_t> known = cache_.FindLong(piece); !known.empty())
      return Append(known);
    scratch_ids_.clear();
    model_.Encode(piece, &scratch_, &scratch_ids_);
    cache_.Insert(piece, scratch_ids_);
    Append(scratch_ids_);
  }

  const BpeParts& parts_;
  const BpeModel& model_;
  const SpecialText special_;
  PieceCache cache_;
  BpeModel::Scratch scratch_;
  std::vector<int32_t> scratch_ids_;
  std::vector<Piece> pieces_;
  // The ids of the pieces that were cut last: used_ of them, and room behind.
  std::vector<int32_t> out_;
  size_t used_ = 0;
  std::string normalized_;
  std::string spaced_;
};

std::unique_ptr<TokenEncoder> BpeTokenizer::NewEncoder(SpecialText special) const {
  return std::make_unique<BpeEncoder>(this, special);
}

}  // namespace

std::unique_ptr<Tokenizer> NewBpeTokenizer(BpeParts parts) {
  return std::make_unique<BpeTokenizer>(std::move(parts));
}

}  // namespace mt
