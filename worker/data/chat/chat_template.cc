#include "worker/data/chat/chat_template.h"

#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "worker/data/chat/python_strip.h"

namespace mt {
namespace {

using Kind = ChatPiece::Kind;
using Messages = std::vector<ChatMessage>;

// The pieces of one message, with or without a loss.
class Writer {
 public:
  explicit Writer(std::vector<ChatPiece>* pieces) : pieces_(pieces) {}
  Writer& Loss(bool loss) {
    loss_ = loss;
    return *this;
  }
  Writer& Special(absl::string_view token) { return Put(Kind::kSpecial, token); }
  Writer& SpecialOrText(absl::string_view token) { return Put(Kind::kSpecialOrText, token); }
  Writer& EndOfDocument() { return Put(Kind::kEndOfDocument, ""); }
  Writer& Text(absl::string_view text) { return text.empty() ? *this : Put(Kind::kText, text); }

 private:
  Writer& Put(Kind kind, absl::string_view text) {
    pieces_->push_back({kind, std::string(text), loss_});
    return *this;
  }
  std::vector<ChatPiece>* const pieces_;
  bool loss_ = false;
};

bool IsAssistant(const ChatMessage& message) { return message.role == "assistant"; }

// Takes the first message away if it is the system's.
std::optional<std::string> TakeSystem(Messages* messages) {
  if (messages->front().role != "system") return std::nullopt;
  std::string system = std::move(messages->front().content);
  messages->erase(messages->begin());
  return system;
}

// Qwen, ChatML: every turn looks the same.
void ImTurn(Writer& out, absl::string_view role, absl::string_view content, bool loss) {
  out.Loss(false).Special("<|im_start|>").Text(absl::StrCat(role, "\n"));
  out.Loss(loss).Text(content).Special("<|im_end|>");
  out.Loss(false).Text("\n");
}

absl::Status ChatMl(const Messages& messages, std::vector<ChatPiece>* pieces) {
  Writer out(pieces);
  for (const ChatMessage& message : messages)
    ImTurn(out, message.role, message.content, IsAssistant(message) && message.has_loss);
  return absl::OkStatus();
}

absl::Status Qwen(const Messages& messages, std::vector<ChatPiece>* pieces) {
  if (messages.front().role != "system") {
    Writer out(pieces);
    ImTurn(out, "system", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
           false);
  }
  return ChatMl(messages, pieces);
}

// An assistant's content without the thoughts in front of it, which are returned: "<think>", thoughts, "</think>", answer. As the template
// does it in Jinja: split at each "</think>", the first and the last part count.
std::string TakeThoughts(std::string* content) {
  constexpr absl::string_view kOpen = "<think>";
  constexpr absl::string_view kClose = "</think>";
  const size_t first = content->find(kClose.data());
  if (first == std::string::npos) return "";
  std::string thoughts = content->substr(0, first);
  thoughts.erase(thoughts.find_last_not_of('\n') + 1);
  if (const size_t open = thoughts.rfind(kOpen.data()); open != std::string::npos)
    thoughts.erase(0, open + kOpen.size());
  thoughts.erase(0, thoughts.find_first_not_of('\n'));
  content->erase(0, content->rfind(kClose.data()) + kClose.size());
  content->erase(0, content->find_first_not_of('\n'));
  return thoughts;
}

// Thoughts of turns before the last question are left out, as they are in inference.
absl::Status Qwen3(const Messages& messages, std::vector<ChatPiece>* pieces) {
  Writer out(pieces);
  size_t last_query = messages.size() - 1;
  for (size_t i = messages.size(); i-- > 0;) {
    if (messages[i].role != "user") continue;
    if (absl::StartsWith(messages[i].content, "<tool_response>") &&
        absl::EndsWith(messages[i].content, "</tool_response>")) {
      continue;
    }
    last_query = i;
    break;
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    if (!IsAssistant(message)) {
      ImTurn(out, message.role, message.content, false);
      continue;
    }
    std::string content = message.content;
    std::string thoughts =
        message.reasoning.has_value() ? *message.reasoning : TakeThoughts(&content);
    if (i <= last_query || (i + 1 < messages.size() && thoughts.empty())) {
      ImTurn(out, message.role, content, message.has_loss);
      continue;
    }
    out.Loss(false).Special("<|im_start|>").Text("assistant\n");
    out.Loss(message.has_loss).SpecialOrText("<think>").Text("\n");
    out.Text(StripCharacter(thoughts, '\n')).Text("\n").SpecialOrText("</think>").Text("\n\n");
    content.erase(0, content.find_first_not_of('\n'));
    out.Text(content).Special("<|im_end|>").Loss(false).Text("\n");
  }
  return absl::OkStatus();
}

void HeaderTurn(Writer& out, absl::string_view role, absl::string_view content, bool loss) {
  out.Loss(false)
      .Special("<|start_header_id|>")
      .Text(role)
      .Special("<|end_header_id|>")
      .Text("\n\n");
  out.Loss(loss).Text(PythonStrip(content)).Special("<|eot_id|>").Loss(false);
}

absl::Status Llama3(const Messages& messages, std::vector<ChatPiece>* pieces) {
  Writer out(pieces);
  out.Special("<|begin_of_text|>");
  for (const ChatMessage& message : messages)
    HeaderTurn(out, message.role, message.content, IsAssistant(message) && message.has_loss);
  return absl::OkStatus();
}

absl::Status Llama31(const Messages& messages, std::vector<ChatPiece>* pieces) {
  Messages rest = messages;
  const std::string system = TakeSystem(&rest).value_or("");
  Writer out(pieces);
  out.Special("<|begin_of_text|>");
  // The date is the template's own default: data must not depend on the day it is made.
  out.Special("<|start_header_id|>").Text("system").Special("<|end_header_id|>");
  out.Text("\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n");
  out.Text(PythonStrip(system)).Special("<|eot_id|>");
  for (const ChatMessage& message : rest)
    HeaderTurn(out, message.role, message.content, IsAssistant(message) && message.has_loss);
  return absl::OkStatus();
}

absl::Status CheckTurns(const Messages& messages, absl::string_view name) {
  for (size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].role == (i % 2 == 0 ? "user" : "assistant")) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "template ", name,
        " wants user and assistant in turn after an optional system message, but turn ", i + 1,
        " is the ", messages[i].role, "'s"));
  }
  return absl::OkStatus();
}

// mistral-common puts what the system says before the last question.
absl::Status Mistral(const Messages& messages, std::vector<ChatPiece>* pieces) {
  Messages turns = messages;
  if (std::optional<std::string> system = TakeSystem(&turns);
      system.has_value() && !turns.empty()) {
    std::string& last = turns[(turns.size() - 1) / 2 * 2].content;
    last = absl::StrCat(*system, "\n\n", last);
  }
  MT_RETURN_IF_ERROR(CheckTurns(turns, "mistral"));
  Writer out(pieces);
  out.Special("<s>");
  for (const ChatMessage& message : turns) {
    if (IsAssistant(message)) {
      out.Text(" ").Loss(message.has_loss).Text(message.content).Special("</s>").Loss(false);
    } else {
      out.Special("[INST]").Text(" ").Text(message.content).Special("[/INST]");
    }
  }
  return absl::OkStatus();
}

absl::Status Mistral7(const Messages& messages, std::vector<ChatPiece>* pieces) {
  Writer out(pieces);
  out.Special("<s>");
  for (const ChatMessage& message : messages) {
    if (IsAssistant(message)) {
      out.Loss(message.has_loss).Text(message.content).Special("</s>").Loss(false);
    } else if (message.role == "system") {
      out.Special("[SYSTEM_PROMPT]").Text(message.content).Special("[/SYSTEM_PROMPT]");
    } else {
      out.Special("[INST]").Text(message.content).Special("[/INST]");
    }
  }
  return absl::OkStatus();
}

constexpr absl::string_view kDeepSeekBegin = "<｜begin▁of▁sentence｜>";
constexpr absl::string_view kDeepSeekEnd = "<｜end▁of▁sentence｜>";
constexpr absl::string_view kDeepSeekUser = "<｜User｜>";
constexpr absl::string_view kDeepSeekAssistant = "<｜Assistant｜>";

// All that the system says comes first, wherever it stands.
absl::Status DeepSeek(const Messages& messages, std::vector<ChatPiece>* pieces) {
  Writer out(pieces);
  out.Special(kDeepSeekBegin);
  bool first = true;
  for (const ChatMessage& message : messages) {
    if (message.role != "system") continue;
    out.Text(first ? "" : "\n\n").Text(message.content);
    first = false;
  }
  for (const ChatMessage& message : messages) {
    if (message.role == "user") out.Special(kDeepSeekUser).Text(message.content);
    if (!IsAssistant(message)) continue;
    out.Special(kDeepSeekAssistant).Loss(message.has_loss).Text(message.content);
    out.Special(kDeepSeekEnd).Loss(false);
  }
  return absl::OkStatus();
}

absl::Status DeepSeek2(const Messages& messages, std::vector<ChatPiece>* pieces) {
  Writer out(pieces);
  out.Special(kDeepSeekBegin);
  for (const ChatMessage& message : messages) {
    if (IsAssistant(message)) {
      out.Text("Assistant: ").Loss(message.has_loss).Text(message.content);
      out.Special(kDeepSeekEnd).Loss(false);
    } else {
      out.Text(message.role == "user" ? "User: " : "").Text(message.content).Text("\n\n");
    }
  }
  return absl::OkStatus();
}

// gpt-oss without its system message, whose date would make data depend on the day it is made. Thoughts are kept in the last turn only, as in
// the published template.
absl::Status Harmony(const Messages& messages, std::vector<ChatPiece>* pieces) {
  Messages turns = messages;
  Writer out(pieces);
  if (const std::optional<std::string> system = TakeSystem(&turns); system.has_value()) {
    out.Special("<|start|>").Text("developer").Special("<|message|>").Text("# Instructions\n\n");
    out.Text(*system).Text("\n\n").Special("<|end|>");
  }
  for (size_t i = 0; i < turns.size(); ++i) {
    const ChatMessage& message = turns[i];
    const bool last = i + 1 == turns.size();
    if (message.role == "system") {
      return absl::InvalidArgumentError(
          "template harmony takes a system message only as the first one");
    }
    out.Special("<|start|>").Text(message.role);
    if (!IsAssistant(message)) {
      out.Special("<|message|>").Text(message.content).Special("<|end|>");
      continue;
    }
    out.Loss(message.has_loss);
    if (last && message.reasoning.has_value()) {
      out.Special("<|channel|>").Text("analysis").Special("<|message|>").Text(*message.reasoning);
      out.Special("<|end|>").Special("<|start|>").Text("assistant");
    }
    out.Special("<|channel|>").Text("final").Special("<|message|>").Text(message.content);
    out.Special(last ? "<|return|>" : "<|end|>").Loss(false);
  }
  return absl::OkStatus();
}

// For any vocabulary.
absl::Status Plain(const Messages& messages, std::vector<ChatPiece>* pieces) {
  Writer out(pieces);
  for (const ChatMessage& message : messages) {
    if (IsAssistant(message)) {
      out.Text("Assistant: ").Loss(message.has_loss).Text(message.content);
      out.EndOfDocument().Loss(false);
    } else {
      out.Text(message.role == "user" ? "User: " : "System: ").Text(message.content).Text("\n\n");
    }
  }
  return absl::OkStatus();
}

}  // namespace

const std::vector<ChatTemplate>& ChatTemplates() {
  static const auto* const kTemplates = new std::vector<ChatTemplate>{
      {"chatml", "many; Qwen 3 of July 2025", {"<|im_start|>", "<|im_end|>"}, false, ChatMl},
      {"deepseek",
       "DeepSeek V3",
       {kDeepSeekBegin, kDeepSeekUser, kDeepSeekAssistant, kDeepSeekEnd},
       false,
       DeepSeek},
      {"deepseek-v2", "DeepSeek V2, LLM", {kDeepSeekBegin, kDeepSeekEnd}, false, DeepSeek2},
      {"harmony",
       "gpt-oss, without its system message",
       {"<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>"},
       false,
       Harmony},
      {"llama3",
       "Llama 3",
       {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
       false,
       Llama3},
      {"llama3.1",
       "Llama 3.1, 3.3",
       {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
       false,
       Llama31},
      {"mistral",
       "Mistral 7B v0.3, Mixtral 8x22B",
       {"<s>", "</s>", "[INST]", "[/INST]"},
       false,
       Mistral},
      {"mistral-v7",
       "Mistral Small 3, Large 2411",
       {"<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"},
       false,
       Mistral7},
      {"plain", "any vocabulary with an end of document", {}, true, Plain},
      {"qwen", "Qwen 2.5", {"<|im_start|>", "<|im_end|>"}, false, Qwen},
      {"qwen3", "Qwen 3, with thoughts", {"<|im_start|>", "<|im_end|>"}, false, Qwen3},
  };
  return *kTemplates;
}

std::string ChatTemplateNames() {
  std::vector<absl::string_view> names;
  for (const ChatTemplate& known : ChatTemplates()) names.push_back(known.name);
  return absl::StrJoin(names, ", ");
}

absl::StatusOr<const ChatTemplate*> FindChatTemplate(absl::string_view name) {
  for (const ChatTemplate& known : ChatTemplates())
    if (known.name == name) return &known;
  return absl::InvalidArgumentError(
      absl::StrCat("there is no chat template `", name, "`; there are ", ChatTemplateNames()));
}

}  // namespace mt
