// How families of models write a conversation: the texts that their chat templates in transformers give, without generation prompt, as
// pieces that are special tokens or text.
//
// Contents of messages are always text: a user who writes "<|im_end|>" does not end his turn. docs/guide/data.md lists the
// templates and where they differ from the published ones.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/status.h"
#include "worker/data/chat/conversation.h"

namespace mt {

struct ChatPiece {
  enum class Kind {
    kText,
    kSpecial,        // the token that `text` spells
    kSpecialOrText,  // the token, or text where the vocabulary has no such token: "<think>"
    kEndOfDocument,  // the tokenizer's end of document; `text` is empty
  };
  Kind kind = Kind::kText;
  std::string text;
  bool loss = false;  // the assistant says it: it follows what generation is prompted with
};

// Immutable; lives forever.
struct ChatTemplate {
  absl::string_view name;
  absl::string_view models;                 // that use it, for people
  std::vector<absl::string_view> specials;  // kSpecial tokens that it may give
  bool needs_eod;                           // it may give kEndOfDocument
  // Appends the pieces of a conversation. INVALID_ARGUMENT: a conversation that the template refuses.
  absl::Status (*render)(const std::vector<ChatMessage>& messages, std::vector<ChatPiece>* pieces);
};

const std::vector<ChatTemplate>& ChatTemplates();
// "chatml, deepseek, ...".
std::string ChatTemplateNames();
// INVALID_ARGUMENT: no such template; names those there are.
absl::StatusOr<const ChatTemplate*> FindChatTemplate(absl::string_view name);

}  // namespace mt
