#include "worker/data/chat/chat_encoder.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_join.h"
#include "worker/data/chat/chat_template.h"

namespace mt {
namespace {

// What encoders share. Immutable.
struct Shared {
  const Tokenizer* tokenizer = nullptr;
  const ChatTemplate* chat = nullptr;
  ChatOptions options;
};

// Text between two special tokens: its bytes, and where its pieces end.
struct Run {
  std::string text;
  struct Part {
    size_t end;
    bool loss;
  };
  std::vector<Part> parts;

  void Add(const ChatPiece& piece) {
    text += piece.text;
    parts.push_back({text.size(), piece.loss});
  }
  void Clear() {
    text.clear();
    parts.clear();
  }
  // Of any of the bytes [begin, end).
  bool LossOf(size_t begin, size_t end) const {
    size_t part_begin = 0;
    for (const Part& part : parts) {
      if (part.loss && part_begin < end && begin < part.end) return true;
      part_begin = part.end;
    }
    return false;
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
    MT_RETURN_IF_ERROR(encoder_->Encode(run_.text, &document->tokens));
    // Tokens follow each other as their bytes do; behind the last border they are all alike.
    size_t border = 0;
    for (size_t i = 0; i + 1 < run_.parts.size(); ++i)
      if (run_.parts[i].loss != run_.parts[i + 1].loss) border = run_.parts[i].end;
    size_t begin = 0;
    for (size_t i = first; i < document->tokens.size() && begin < border; ++i) {
      MT_ASSIGN_OR_RETURN(const std::string bytes,
                          shared_.tokenizer->Decode(std::span(&document->tokens[i], 1)));
      document->loss.push_back(run_.LossOf(begin, begin + bytes.size()) ? 1 : 0);
      begin += bytes.size();
    }
    document->loss.resize(document->tokens.size(), run_.parts.back().loss ? 1 : 0);
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
