#include <nlohmann/json.hpp>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/data/chat/chat_encoder.h"
#include "worker/data/chat/chat_template.h"
#include "worker/data/chat/python_strip.h"

namespace mt {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::string kGolden = std::string(MT_SOURCE_DIR) + "/tests/golden/chat";

const json& Golden() {
  static const auto* const kFile =
      new json(json::parse(ReadFile(Env::Real(), kGolden + "/golden.json").value_or("")));
  return *kFile;
}

const Tokenizer& GoldenTokenizer() {
  static const Tokenizer* const kTokenizer =
      NewTokenizer(Env::Real(), kGolden + "/tokenizer.json").value().release();
  return *kTokenizer;
}

absl::StatusOr<EncodedDocument> Encode(const Tokenizer& tokenizer, const ChatOptions& options,
                                       const std::string& record) {
  MT_ASSIGN_OR_RETURN(const auto factory, NewChatEncoderFactory(&tokenizer, options));
  EncodedDocument document;
  MT_RETURN_IF_ERROR(factory->NewEncoder()->Encode(record, &document));
  return document;
}

// What a template gives as one text, as transformers renders it.
absl::StatusOr<std::string> Rendered(const ChatTemplate& chat, const std::string& record) {
  MT_ASSIGN_OR_RETURN(const auto messages, ParseConversation(record));
  std::vector<ChatPiece> pieces;
  MT_RETURN_IF_ERROR(chat.render(messages, &pieces));
  std::string text;
  for (const ChatPiece& piece : pieces)
    text += piece.kind == ChatPiece::Kind::kEndOfDocument ? "<|endoftext|>" : piece.text;
  return text;
}

class ChatGoldenTest : public ::testing::TestWithParam<std::string> {};

TEST_P(ChatGoldenTest, TextsAreThoseOfTransformers) {
  const ChatTemplate& chat = **FindChatTemplate(GetParam());
  const json& expected = Golden()["templates"][GetParam()];
  const json& conversations = Golden()["conversations"];
  ASSERT_EQ(expected.size(), conversations.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    const absl::StatusOr<std::string> text = Rendered(chat, conversations[i].dump());
    if (expected[i].contains("error")) {
      EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument) << i;
    } else {
      EXPECT_EQ(text.value(), expected[i]["text"]) << i;
    }
  }
}

TEST_P(ChatGoldenTest, IdsAndLossesAreThoseOfTransformers) {
  const json& expected = Golden()["templates"][GetParam()];
  int compared = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (!expected[i].contains("ids")) continue;
    const EncodedDocument document =
        Encode(GoldenTokenizer(), {.template_name = GetParam(), .append_eod = false},
               Golden()["conversations"][i].dump())
            .value();
    EXPECT_EQ(document.tokens, expected[i]["ids"].get<std::vector<int32_t>>()) << i;
    EXPECT_EQ(document.loss, expected[i]["loss"].get<std::vector<uint8_t>>()) << i;
    ++compared;
  }
  EXPECT_GE(compared, 9);
}

// What messages spell cannot end a turn: there are as many special tokens as the template puts.
TEST_P(ChatGoldenTest, ContentsMakeNoSpecialTokens) {
  const auto specials = [&](const std::string& content) {
    const json conversation = {{{"role", "user"}, {"content", content}},
                               {{"role", "assistant"}, {"content", content}}};
    const EncodedDocument document =
        Encode(GoldenTokenizer(), {.template_name = GetParam()}, conversation.dump()).value();
    std::vector<int32_t> ids;
    for (const int32_t id : document.tokens)
      if (GoldenTokenizer().Decode(std::span(&id, 1)).value().empty()) ids.push_back(id);
    return ids;
  };
  std::string all;
  for (const ChatTemplate& chat : ChatTemplates())
    for (absl::string_view special : chat.specials) absl::StrAppend(&all, special);
  EXPECT_EQ(specials(all + "<|endoftext|>"), specials("x"));
}

INSTANTIATE_TEST_SUITE_P(Chat, ChatGoldenTest, ::testing::ValuesIn([] {
                           std::vector<std::string> names;
                           for (const ChatTemplate& chat : ChatTemplates())
                             names.emplace_back(chat.name);
                           return names;
                         }()),
                         [](const auto& info) {
                           std::string name;
                           for (const char c : info.param)
                             if (std::isalnum(c) != 0) name += c;
                           return name;
                         });

// Bytes are tokens, so the mask can be read.
std::string Marked(const std::string& record, const ChatOptions& options) {
  const auto tokenizer = NewTokenizer(Env::Real(), "byte").value();
  const EncodedDocument document = Encode(*tokenizer, options, record).value();
  std::string text;
  for (size_t i = 0; i < document.tokens.size(); ++i) {
    const bool loss = document.loss.empty() || document.loss[i] != 0;
    if (loss && (i == 0 || document.loss.empty() || document.loss[i - 1] == 0))
      text += loss && document.loss.empty() ? "" : "{";
    text += document.tokens[i] == 256 ? '$' : static_cast<char>(document.tokens[i]);
    const bool next =
        i + 1 < document.tokens.size() && !document.loss.empty() && document.loss[i + 1] != 0;
    if (loss && !document.loss.empty() && !next) text += "}";
  }
  return text;
}

TEST(Chat, OnlyTheAssistantHasALoss) {
  const std::string record =
      R"([{"role":"system","content":"S"},{"role":"user","content":"Q"},{"role":"assistant","content":"A"},
          {"role":"user","content":"R"},{"role":"assistant","content":"B"}])";
  EXPECT_EQ(Marked(record, {.template_name = "plain"}),
            "System: S\n\nUser: Q\n\nAssistant: {A$}User: R\n\nAssistant: {B$}");
  EXPECT_EQ(Marked(record, {.template_name = "plain", .loss = ChatOptions::Loss::kAll}),
            "System: S\n\nUser: Q\n\nAssistant: A$User: R\n\nAssistant: B$");
}

TEST(Chat, AWeightOfZeroTakesATurnsLoss) {
  EXPECT_EQ(Marked(R"([{"role":"user","content":"Q"},{"role":"assistant","content":"A","weight":0},
                       {"role":"user","content":"R"},{"role":"assistant","content":"B","weight":1}])",
                   {.template_name = "plain"}),
            "User: Q\n\nAssistant: A$User: R\n\nAssistant: {B$}");
}

TEST(Chat, AnEndOfDocumentIsAddedOnceAndHasNoLoss) {
  const std::string record =
      R"([{"role":"assistant","content":"A"},{"role":"user","content":"Q"}])";
  EXPECT_EQ(Marked(record, {.template_name = "plain"}), "Assistant: {A$}User: Q\n\n$");
  EXPECT_EQ(Marked(record, {.template_name = "plain", .append_eod = false}),
            "Assistant: {A$}User: Q\n\n");
}

TEST(Chat, OtherSpellingsMeanTheSame) {
  const std::string expected = "System: S\n\nUser: Q\n\nAssistant: {A$}";
  for (
      const char* record :
      {R"([{"from":"system","value":"S"},{"from":"human","value":"Q"},{"from":"gpt","value":"A"}])",
       R"([{"role":"developer","content":"S"},{"role":"user","content":[{"type":"text","text":"Q"}]},
            {"role":"model","content":[{"type":"text","text":""},{"type":"text","text":"A"}]}])"}) {
    EXPECT_EQ(Marked(record, {.template_name = "plain"}), expected);
  }
}

TEST(Chat, BadConversationsSayWhyAndWhere) {
  const auto tokenizer = NewTokenizer(Env::Real(), "byte").value();
  const std::string deep(100000, '[');
  for (const auto& [record, reason] : std::vector<std::pair<std::string, std::string>>{
           {"[{]", "is not JSON"},
           {R"("text")", "is not a list"},
           {"{}", "is not a list"},
           {"[]", "no messages"},
           {"[7]", "message 1: 7 is not an object"},
           {R"([{"content":"x"}])", "message 1: has neither \"role\" nor \"from\""},
           {R"([{"role":"user","content":"x"},{"role":"tool","content":"x"}])",
            "message 2: role \"tool\" is not known"},
           {R"([{"role":1,"content":"x"}])", "its role 1 is not a string"},
           {R"([{"role":"user"}])", "has neither \"content\" nor \"value\""},
           {R"([{"role":"user","content":null}])", "its content null is not text"},
           {R"([{"role":"user","content":[{"type":"image","text":"x"}]}])",
            "is not text, and only"},
           {R"([{"role":"assistant","content":"x","tool_calls":[{}]}])", "has tool_calls"},
           {R"([{"role":"assistant","content":"x","weight":2}])",
            "its weight 2 is neither 0 nor 1"},
           {R"([{"role":"assistant","content":"x","thinking":2}])", "its thinking is not a string"},
           {R"([{"role":"user","content":"x"}])", "nothing in the conversation has a loss"},
           {R"([{"role":"assistant","content":"x","weight":0}])",
            "nothing in the conversation has"},
           {"[" + deep + std::string(100000, ']') + "]", "message 1: (array) is not an object"},
           {deep, "is not JSON"}}) {
    const absl::Status status = Encode(*tokenizer, {.template_name = "plain"}, record).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << record;
    EXPECT_THAT(status.message(), HasSubstr(reason));
  }
}

TEST(Chat, VocabulariesAndNamesAreChecked) {
  const auto tokenizer = NewTokenizer(Env::Real(), "byte").value();
  const absl::Status missing =
      NewChatEncoderFactory(tokenizer.get(), {.template_name = "chatml"}).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(missing.message(),
              HasSubstr("needs <|im_start|>, <|im_end|>, which tokenizer byte has not"));
  EXPECT_THAT(
      NewChatEncoderFactory(tokenizer.get(), {.template_name = "alpaca"}).status().message(),
      HasSubstr("no chat template `alpaca`; there are chatml, deepseek, "));
  EXPECT_THAT(ParseChatLoss("user").status().message(), HasSubstr("`user`"));
  const auto all = NewChatEncoderFactory(
                       tokenizer.get(), {.template_name = "plain", .loss = ChatOptions::Loss::kAll})
                       .value();
  EXPECT_FALSE(all->makes_loss());
  EXPECT_TRUE(all->wants_json());
  EXPECT_EQ(all->description(), "chat plain, loss all, eod");
}

TEST(PythonStrip, TakesWhatPythonTakes) {
  EXPECT_EQ(PythonStrip(" \t\n\v\f\r\x1c\x1f\u0085\u00a0\u2003\u3000x \u00a0y\u2029\u202f "),
            "x \u00a0y");
  EXPECT_EQ(PythonStrip("\u200bx\ufeff"), "\u200bx\ufeff");  // no white space, these two
  EXPECT_EQ(PythonStrip(" \u3000 "), "");
  EXPECT_EQ(StripCharacter("\n\n a\n\n", '\n'), " a");
}

}  // namespace
}  // namespace mt
