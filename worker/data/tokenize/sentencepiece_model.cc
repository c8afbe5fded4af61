#include "worker/data/tokenize/sentencepiece_model.h"

namespace mt {
namespace {

// Protocol buffers' wire format, so far as proto2 messages use it.
class WireReader {
 public:
  explicit WireReader(absl::string_view message) : rest_(message) {}

  // Moves to the next field; false at the end, or where the bytes are no message (then !ok()).
  bool Next() {
    if (rest_.empty() || !ok_) return false;
    const uint64_t tag = Varint();
    field_ = tag >> 3;
    switch (tag & 7) {
      case 0:
        number_ = Varint();
        break;
      case 1:
        Take(8);
        break;
      case 2:
        Take(Varint());
        break;
      case 5:
        Take(4);
        break;
      default:
        ok_ = false;
    }
    return ok_;
  }
  bool ok() const { return ok_; }
  uint64_t field() const { return field_; }
  uint64_t number() const { return number_; }
  absl::string_view bytes() const { return bytes_; }

 private:
  uint64_t Varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
      const auto byte = static_cast<unsigned char>(rest_.front());
      rest_.remove_prefix(1);
      value |= uint64_t{byte & 0x7fu} << shift;
      if (byte < 0x80) return value;
    }
    ok_ = false;
    return 0;
  }
  void Take(uint64_t size) {
    ok_ = ok_ && size <= rest_.size();
    if (!ok_) return;
    bytes_ = rest_.substr(0, size);
    rest_.remove_prefix(size);
  }

  absl::string_view rest_;
  bool ok_ = true;
  uint64_t field_ = 0;
  uint64_t number_ = 0;
  absl::string_view bytes_;
};

}  // namespace

absl::StatusOr<std::vector<SentencePieceSymbol>> SentencePieceSymbols(
    absl::string_view serialized) {
  // ModelProto.pieces = 1; SentencePiece.piece = 1, type = 3, whose values are:
  constexpr uint64_t kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4;
  std::vector<SentencePieceSymbol> symbols;
  int32_t id = 0;
  WireReader model(serialized);
  while (model.Next()) {
    if (model.field() != 1) continue;
    uint64_t type = kNormal;
    absl::string_view text;
    WireReader piece(model.bytes());
    while (piece.Next()) {
      if (piece.field() == 1) text = piece.bytes();
      if (piece.field() == 3) type = piece.number();
    }
    if (!piece.ok()) return absl::InvalidArgumentError(absl::StrCat("piece ", id, " is broken"));
    if (type == kUnknown || type == kControl || type == kUserDefined)
      symbols.push_back({std::string(text), id, type != kUserDefined});
    ++id;
  }
  if (!model.ok()) return absl::InvalidArgumentError("it is no message of protocol buffers");
  if (id == 0) return absl::InvalidArgumentError("it has no pieces");
  return symbols;
}

}  // namespace mt
