#include "worker/data/build/record_encoder.h"

namespace mt {
namespace {

class TextRecordEncoder : public RecordEncoder {
 public:
  TextRecordEncoder(const Tokenizer* tokenizer, bool append_eod)
      : encoder_(tokenizer->NewEncoder()), eod_(append_eod ? tokenizer->eod() : -1) {}
  absl::Status Encode(absl::string_view record, EncodedDocument* document) override {
    document->Clear();
    MT_RETURN_IF_ERROR(encoder_->Encode(record, &document->tokens));
    if (!document->tokens.empty() && eod_ >= 0) document->tokens.push_back(eod_);
    return absl::OkStatus();
  }

 private:
  const std::unique_ptr<TokenEncoder> encoder_;
  const int32_t eod_;
};

class TextEncoderFactory : public RecordEncoderFactory {
 public:
  TextEncoderFactory(const Tokenizer* tokenizer, bool append_eod)
      : tokenizer_(*tokenizer), append_eod_(append_eod) {}
  std::unique_ptr<RecordEncoder> NewEncoder() const override {
    return std::make_unique<TextRecordEncoder>(&tokenizer_, append_eod_);
  }
  bool wants_json() const override { return false; }
  bool appends_eod() const override { return append_eod_; }
  bool makes_loss() const override { return false; }
  std::string description() const override { return append_eod_ ? "text, eod" : "text"; }
  const Tokenizer& tokenizer() const override { return tokenizer_; }

 private:
  const Tokenizer& tokenizer_;
  const bool append_eod_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RecordEncoderFactory>> NewTextEncoderFactory(
    const Tokenizer* tokenizer, bool append_eod) {
  if (append_eod && tokenizer->eod() < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer ", tokenizer->spec(),
                     " has no end-of-document id (</s>); add --no-append-eod or use another"));
  }
  return std::make_unique<TextEncoderFactory>(tokenizer, append_eod);
}

}  // namespace mt
