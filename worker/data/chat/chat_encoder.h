// `mtctl data build --chat`: conversations through a template into documents with a loss on what the assistant says.
#pragma once

#include <memory>
#include <string>

#include "common/status.h"
#include "worker/data/build/record_encoder.h"
#include "worker/data/tokenize/tokenizer.h"

namespace mt {

struct ChatOptions {
  std::string template_name;  // one of ChatTemplateNames()
  enum class Loss {
    kAssistant,  // on assistants' contents and the token that ends their turn: PREFIX.loss
    kAll,        // on everything
  };
  Loss loss = Loss::kAssistant;
  // The end-of-document id behind each conversation that does not end with it already; it has no loss of its own with kAssistant.
  bool append_eod = true;
};

// "assistant" or "all". INVALID_ARGUMENT: something else.
absl::StatusOr<ChatOptions::Loss> ParseChatLoss(absl::string_view name);

// Records are JSON (conversation.h). A text between two special tokens is encoded as a whole, as transformers does; a token on the border of what
// the assistant says counts as the assistant's (token_borders.h). Encode refuses, besides what ParseConversation and the template refuse,
// a conversation in which nothing has a loss. `tokenizer` must outlive the factory.
//
// INVALID_ARGUMENT: no such template, or the vocabulary lacks a special token that the template needs, by name.
absl::StatusOr<std::unique_ptr<RecordEncoderFactory>> NewChatEncoderFactory(
    const Tokenizer* tokenizer, const ChatOptions& options);

}  // namespace mt
