#include "worker/data/chat/conversation.h"

#include <array>
#include <nlohmann/json.hpp>
#include <utility>

namespace mt {
namespace {

using nlohmann::json;

template <typename... Parts>
absl::Status Bad(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

// At most the beginning of what someone wrote. Not what is nested: the library would go through it recursively.
std::string Quoted(const json& value) {
  if (value.is_structured()) return absl::StrCat("(", value.type_name(), ")");
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > 40) text = text.substr(0, 40) + "...";
  return text;
}

absl::StatusOr<std::string> RoleOf(const json& message) {
  static constexpr std::array<std::pair<absl::string_view, absl::string_view>, 9> kRoles = {
      {{"system", "system"},
       {"developer", "system"},
       {"user", "user"},
       {"human", "user"},
       {"assistant", "assistant"},
       {"gpt", "assistant"},
       {"model", "assistant"},
       {"chatgpt", "assistant"},
       {"bot", "assistant"}}};
  const auto role = message.contains("role") ? message.find("role") : message.find("from");
  if (role == message.end()) return Bad("has neither \"role\" nor \"from\"");
  if (!role->is_string()) return Bad("its role ", Quoted(*role), " is not a string");
  for (const auto& [name, meaning] : kRoles)
    if (*role == std::string(name)) return std::string(meaning);
  return Bad(
      "role ", Quoted(*role),
      " is not known: system, user and assistant are (tools have no place in the templates)");
}

absl::StatusOr<std::string> ContentOf(const json& message) {
  const auto content =
      message.contains("content") ? message.find("content") : message.find("value");
  if (content == message.end()) return Bad("has neither \"content\" nor \"value\"");
  if (content->is_string()) return content->get<std::string>();
  if (!content->is_array()) return Bad("its content ", Quoted(*content), " is not text");
  std::string text;
  for (const json& part : *content) {
    const bool is_text = part.is_object() && part.contains("type") && part["type"] == "text" &&
                         part.contains("text") && part["text"].is_string();
    if (!is_text) {
      return Bad("part ", Quoted(part), " of its content is not text, and only text is trained on");
    }
    text += part["text"].get_ref<const std::string&>();
  }
  return text;
}

absl::StatusOr<ChatMessage> MessageOf(const json& value) {
  if (!value.is_object()) return Bad(Quoted(value), " is not an object");
  if (value.contains("tool_calls") && !value["tool_calls"].empty())
    return Bad("has tool_calls, which have no place in the templates");
  ChatMessage message;
  MT_ASSIGN_OR_RETURN(message.role, RoleOf(value));
  MT_ASSIGN_OR_RETURN(message.content, ContentOf(value));
  for (const char* key : {"reasoning_content", "thinking"}) {
    const auto reasoning = value.find(key);
    if (reasoning == value.end() || reasoning->is_null()) continue;
    if (!reasoning->is_string()) return Bad("its ", key, " is not a string");
    message.reasoning = reasoning->get<std::string>();
  }
  if (const auto weight = value.find("weight"); weight != value.end() && !weight->is_null()) {
    if (*weight != 0 && *weight != 1)
      return Bad("its weight ", Quoted(*weight), " is neither 0 nor 1");
    message.has_loss = *weight == 1;
  }
  return message;
}

}  // namespace

absl::StatusOr<std::vector<ChatMessage>> ParseConversation(absl::string_view text) {
  const json value = json::parse(text.begin(), text.end(), nullptr, false);
  if (value.is_discarded()) return Bad("the conversation is not JSON");
  if (!value.is_array()) {
    return Bad("the conversation ", Quoted(value), " is not a list of messages");
  }
  if (value.empty()) return Bad("the conversation has no messages");
  std::vector<ChatMessage> messages;
  for (const json& element : value) {
    absl::StatusOr<ChatMessage> message = MessageOf(element);
    if (!message.ok())
      return Annotate(message.status(), absl::StrCat("message ", messages.size() + 1));
    messages.push_back(*std::move(message));
  }
  return messages;
}

}  // namespace mt
