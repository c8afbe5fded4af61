// Conversations as fine-tuning data has them, one JSON value each. docs/guide/data.md describes them for users.
//
//   [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]        OpenAI, Hugging Face: `messages`
//   [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]                 ShareGPT: `conversations`
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/status.h"

namespace mt {

struct ChatMessage {
  std::string role;  // "system", "user" or "assistant"
  std::string content;
  std::optional<std::string> reasoning;  // "reasoning_content" or "thinking" of an assistant
  bool has_loss = true;                  // false: "weight": 0
};

// The conversation in `json`, at least one message. Other names of the roles (ShareGPT's, "developer", "model") become these three; a content
// that is a list of text parts is their concatenation. INVALID_ARGUMENT: anything else, tools among it, with the reason and the
// number of the message, counted from 1.
absl::StatusOr<std::vector<ChatMessage>> ParseConversation(absl::string_view json);

}  // namespace mt
