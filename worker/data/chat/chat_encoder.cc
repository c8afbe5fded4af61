#include "worker/data/chat/chat_encoder.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_join.h"
#include "worker/data/chat/chat_template.h"
#include "worker/data/chat/token_borders.h"

namespace mt {
namespace {

// What encoders share. Immutable.
struct Shared {
  const Tokenizer* tokenizer = nullptr;
  const ChatTemplate* chat = nullptr;
  ChatOptions options;
};

// Text between two special tokens.
struct Run {
  std::string text;
  struct Part {
    size_t begin, end;  // in text
    bool loss;
  };
  std::vector<Part> parts;  // without gaps; neighbours differ in their loss

  void Add(const ChatPiece& piece) {
    const size_t begin = text.size();
    text += piece.text;
    if (!parts.empty() && parts.back().loss == piece.loss) {
      parts.back().end = text.size();
    } else {
      parts.push_back({begin, text.size(), piece.loss});
    }
  }
  void Clear() {
    text.clear();
    parts.clear();
  }
};

class ChatEncoder : public RecordEncoder {
 public:
  explicit ChatEncoder(const Shared& shared)
      : shared_(shared), encoder_(shared.tokenizer->NewEncoder(SpecialText::kOrdinary)) {}

  absl::Status Encode(absl::string_view record, EncodedDocument* document) override {
    MT_ASSIGN_OR_RETURN(const std::vector<ChatMessage> messages, ParseConversation(record));
    pieces_.clear();
    MT_RETURN_IF_ERROR(shared_.chat->render(messages, &pieces_));
    const bool somewhere =
        shared_.options.loss == ChatOptions::Loss::kAll ||
        std::any_of(pieces_.begin(), pieces_.end(), [](const ChatPiece& p) { return p.loss; });
    if (!somewhere) {
      return absl::InvalidArgumentError(
          "nothing in the conversation has a loss: it has no assistant message with a weight");
    }
    document->Clear();
    run_.Clear();
    for (const ChatPiece& piece : pieces_) {
      const int32_t id = IdOf(piece);
      if (id < 0) {
        run_.Add(piece);
        continue;
      }
      MT_RETURN_IF_ERROR(EncodeRun(document));
      Put(id, piece.loss, document);
    }
    MT_RETURN_IF_ERROR(EncodeRun(document));
    const int32_t eod = shared_.tokenizer->eod();
    if (shared_.options.append_eod && (document->tokens.empty() || document->tokens.back() != eod))
      Put(eod, false, document);
    if (shared_.options.loss == ChatOptions::Loss::kAll) document->loss.clear();
    return absl::OkStatus();
  }

 private:
  // -1: is text.
  int32_t IdOf(const ChatPiece& piece) {
    if (piece.kind == ChatPiece::Kind::kText) return -1;
    if (piece.kind == ChatPiece::Kind::kEndOfDocument) return shared_.tokenizer->eod();
    const auto [at, is_new] = special_ids_.try_emplace(piece.text, -1);
    if (is_new) at->second = shared_.tokenizer->special_id(piece.text);
    return at->second;
  }

  static void Put(int32_t id, bool loss, EncodedDocument* document) {
    document->tokens.push_back(id);
    document->loss.push_back(loss ? 1 : 0);
  }

  absl::Status EncodeRun(EncodedDocument* document) {
    if (run_.text.empty()) return absl::OkStatus();
    const size_t first = document->tokens.size();
    const bool inside = first > 0;
    MT_RETURN_IF_ERROR(inside ? encoder_->EncodeInside(run_.text, &document->tokens)
                              : encoder_->Encode(run_.text, &document->tokens));
    if (run_.parts.size() == 1) {
      document->loss.resize(document->tokens.size(), run_.parts[0].loss ? 1 : 0);
    } else {
      document->loss.resize(document->tokens.size(), 0);
      MT_ASSIGN_OR_RETURN(
          const TokenBorders borders,
          TokenBorders::Of(*shared_.tokenizer, encoder_.get(), inside, run_.text,
                           std::span<const int32_t>(document->tokens).subspan(first)));
      for (const Run::Part& part : run_.parts) {
        if (!part.loss) continue;
        MT_ASSIGN_OR_RETURN(const auto tokens, borders.TokensOf(part.begin, part.end));
        for (size_t i = tokens.first; i < tokens.second; ++i) document->loss[first + i] = 1;
      }
    }
    run_.Clear();
    return absl::OkStatus();
  }

  const Shared& shared_;
  const std::unique_ptr<TokenEncoder> encoder_;
  std::map<std::string, int32_t> special_ids_;
  std::vector<ChatPiece> pieces_;
  Run run_;
};

class ChatEncoderFactory : public RecordEncoderFactory {
 public:
  explicit ChatEncoderFactory(Shared shared) : shared_(std::move(shared)) {}
  std::unique_ptr<RecordEncoder> NewEncoder() const override {
    return std::make_unique<ChatEncoder>(shared_);
  }
  bool wants_json() const override { return true; }
  bool makes_loss() const override { return shared_.options.loss == ChatOptions::Loss::kAssistant; }
  bool appends_eod() const override { return shared_.options.append_eod; }
  std::string description() const override {
    return absl::StrCat("chat ", shared_.chat->name, ", loss ", makes_loss() ? "assistant" : "all",
                        appends_eod() ? ", eod" : "");
  }
  const Tokenizer& tokenizer() const override { return *shared_.tokenizer; }

 private:
  const Shared shared_;
};

}  // namespace

absl::StatusOr<ChatOptions::Loss> ParseChatLoss(absl::string_view name) {
  if (name == "assistant") return ChatOptions::Loss::kAssistant;
  if (name == "all") return ChatOptions::Loss::kAll;
  return absl::InvalidArgumentError(absl::StrCat("the loss of a chat cannot be on `", name,
                                                 "`; it is on `assistant` or on `all`"));
}

absl::StatusOr<std::unique_ptr<RecordEncoderFactory>> NewChatEncoderFactory(
    const Tokenizer* tokenizer, const ChatOptions& options) {
  Shared shared{.tokenizer = tokenizer, .options = options};
  MT_ASSIGN_OR_RETURN(shared.chat, FindChatTemplate(options.template_name));
  std::vector<absl::string_view> missing;
  for (absl::string_view special : shared.chat->specials)
    if (tokenizer->special_id(special) < 0) missing.push_back(special);
  if (!missing.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("chat template ", shared.chat->name, " needs ", absl::StrJoin(missing, ", "),
                     ", which tokenizer ", tokenizer->spec(), " has not; use the tokenizer of ",
                     shared.chat->models, ", or another template (`plain` works with any)"));
  }
  if (tokenizer->eod() < 0 && (options.append_eod || shared.chat->needs_eod)) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer ", tokenizer->spec(), " has no end-of-document id",
                     shared.chat->needs_eod
                         ? ", which the template puts behind each answer; use another template"
                         : "; add --no-append-eod or use another"));
  }
  return std::make_unique<ChatEncoderFactory>(std::move(shared));
}

}  // namespace mt
