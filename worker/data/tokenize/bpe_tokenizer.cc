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
    uint32_t begin = 0;
    for (size_t at = 0; (at = text.find(kMetaspace, at)) != absl::string_view::npos;
         at += kMetaspace.size()) {
      if (at == begin || absl::EndsWith(text.substr(begin, at - begin), kMetaspace)) continue;
      pieces->push_back({begin, static_cast<uint32_t>(at)});
      begin = static_cast<uint32_t>(at);
    }
    if (begin < text.size()) pieces->push_back({begin, static_cast<uint32_t>(text.size())});
    return absl::OkStatus();
  }
  absl::string_view name() const override { return "words"; }
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
    if (text.size() > kMaxTextBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("a text of ", text.size(), " bytes; at most ", kMaxTextBytes,
                       " can be encoded at once: split the document"));
    }
    return ForEachSegment(parts_.raw_added, text, ids, [&](absl::string_view raw) {
      const bool first = raw.data() == text.data();
      const absl::string_view normal = parts_.normalizer.Normalize(raw, &normalized_);
      return ForEachSegment(parts_.normalized_added, normal, ids, [&](absl::string_view segment) {
        return EncodeSegment(segment, first && segment.data() == normal.data(), ids);
      });
    });
  }

 private:
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

  // `first`: the whole text begins with it.
  absl::Status EncodeSegment(absl::string_view text, bool first, std::vector<int32_t>* ids) {
    text = WithSpaces(text, first);
    if (parts_.pre_tokenizer == nullptr) {
      EncodeLong(text, ids);
      return absl::OkStatus();
    }
    for (uint32_t at = 0; at < text.size();) {
      pieces_.clear();
      MT_RETURN_IF_ERROR(parts_.pre_tokenizer->SplitSome(text, kPieces, &at, &pieces_));
      for (std::span<const Piece> rest = pieces_; !rest.empty();) {
        const std::span<const Piece> block = rest.first(std::min(kBlock, rest.size()));
        EncodeBlock(text, block, ids);
        rest = rest.subspan(block.size());
      }
    }
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

  void EncodeBlock(absl::string_view text, std::span<const Piece> block,
                   std::vector<int32_t>* ids) {
    PieceCache::Key keys[kBlock];
    uint64_t hashes[kBlock];
    for (size_t i = 0; i < block.size(); ++i) {
      const auto [begin, end] = block[i];
      if (end - begin > PieceCache::kShortBytes) continue;
      keys[i] = PieceCache::KeyOf(text.data() + begin, end - begin, text.size() - begin);
      hashes[i] = PieceCache::Hash(keys[i]);
      cache_.Prefetch(hashes[i]);
    }
    // Every slot's ids are copied whole; what is too much is overwritten, or cut off in the end.
    size_t used = ids->size();
    const auto make_room = [&] { ids->resize(used + kBlock * PieceCache::kShortIds); };
    make_room();
    for (size_t i = 0; i < block.size(); ++i) {
      const auto [begin, end] = block[i];
      if (end - begin <= PieceCache::kShortBytes) {
        if (const PieceCache::Slot* slot = cache_.Find(keys[i], hashes[i])) {
          std::memcpy(ids->data() + used, slot->ids, sizeof(slot->ids));
          used += slot->num_ids;
          continue;
        }
      }
      ids->resize(used);
      EncodeLong(text.substr(begin, end - begin), ids);
      used = ids->size();
      make_room();
    }
    ids->resize(used);
  }

  void EncodeLong(absl::string_view piece, std::vector<int32_t>* ids) {
    if (piece.empty() || cache_.FindLong(piece, ids)) return;
    const size_t before = ids->size();
    model_.Encode(piece, &scratch_, ids);
    cache_.Insert(piece, std::span(*ids).subspan(before));
  }

  const BpeParts& parts_;
  const BpeModel& model_;
  const SpecialText special_;
  PieceCache cache_;
  BpeModel::Scratch scratch_;
  std::vector<Piece> pieces_;
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
