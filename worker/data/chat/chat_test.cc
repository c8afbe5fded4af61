#include <nlohmann/json.hpp>

#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/data/chat/chat_encoder.h"
#include "worker/data/chat/chat_template.h"
#include "worker/data/chat/python_strip.h"
#include "worker/data/chat/token_borders.h"

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

std::unique_ptr<Tokenizer> NewGoldenTokenizer(absl::string_view file) {
  return NewTokenizer(Env::Real(), absl::StrCat(kGolden, "/", file)).value();
}

const Tokenizer& GoldenTokenizer() {
  static const Tokenizer* const kTokenizer = NewGoldenTokenizer("tokenizer.json").release();
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

// `expected`: of each conversation.
void ExpectIdsAndLosses(const Tokenizer& tokenizer, const std::string& chat, const json& expected) {
  int compared = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (!expected[i].contains("ids")) continue;
    const std::string conversation = Golden()["conversations"][i].dump();
    const EncodedDocument document =
        Encode(tokenizer, {.template_name = chat, .append_eod = false}, conversation).value();
    EXPECT_EQ(document.tokens, expected[i]["ids"].get<std::vector<int32_t>>()) << conversation;
    EXPECT_EQ(document.loss, expected[i]["loss"].get<std::vector<uint8_t>>()) << conversation;
    ++compared;
  }
  EXPECT_GE(compared, 11);
}

TEST_P(ChatGoldenTest, IdsAndLossesAreThoseOfTransformers) {
  ExpectIdsAndLosses(GoldenTokenizer(), GetParam(), Golden()["templates"][GetParam()]);
}

// Where decoding drops spaces, normal forms change lengths, and unknown characters have no bytes.
TEST(Chat, IdsAndLossesAreThoseOfTransformersWithSpacedVocabularies) {
  for (const auto& [name, templates] : Golden()["spaced"].items()) {
    const auto tokenizer = NewGoldenTokenizer(name + ".json");
    for (const auto& [chat, expected] : templates.items()) {
      SCOPED_TRACE(name + ", " + chat);
      ExpectIdsAndLosses(*tokenizer, chat, expected);
    }
  }
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

// Bytes behind a space that decoding drops. As in SentencePiece, of a character that is cut each byte becomes U+FFFD.
class CuttingTokenizer : public Tokenizer {
 public:
  std::unique_ptr<TokenEncoder> NewEncoder(SpecialText) const override {
    class Encoder : public TokenEncoder {
      absl::Status Encode(absl::string_view text, std::vector<int32_t>* ids) override {
        ids->push_back(' ');
        for (const char c : text) ids->push_back(static_cast<uint8_t>(c));
        return absl::OkStatus();
      }
    };
    return std::make_unique<Encoder>();
  }
  absl::StatusOr<std::string> Decode(std::span<const int32_t> ids, SpecialText) const override {
    num_decoded += ids.size();
    std::string text;
    for (size_t i = ids.empty() ? 0 : 1; i < ids.size();) {
      const size_t bytes = ids[i] < 0x80 ? 1 : ids[i] < 0xE0 ? 2 : ids[i] < 0xF0 ? 3 : 4;
      if (i + bytes > ids.size()) text += "\uFFFD";
      for (size_t b = 0; i + bytes <= ids.size() && b < bytes; ++b)
        text += static_cast<char>(ids[i + b]);
      i += i + bytes > ids.size() ? 1 : bytes;
    }
    return text;
  }
  int32_t vocab_size() const override { return 256; }
  int32_t eod() const override { return -1; }
  int32_t special_id(absl::string_view) const override { return -1; }
  const std::string& spec() const override { return name_; }
  const std::string& digest() const override { return name_; }

  mutable size_t num_decoded = 0;

 private:
  const std::string name_ = "cutting";
};

std::pair<size_t, size_t> TokensOf(const Tokenizer& tokenizer, const std::string& text,
                                   size_t begin, size_t end) {
  const auto encoder = tokenizer.NewEncoder();
  std::vector<int32_t> ids;
  EXPECT_TRUE(encoder->Encode(text, &ids).ok());
  return TokenBorders::Of(tokenizer, encoder.get(), false, text, ids)
      .value()
      .TokensOf(begin, end)
      .value();
}

TEST(TokenBorders, ACutCharacterIsWhole) {
  const CuttingTokenizer tokenizer;
  const std::string text = "e: 🎹é！";  // at 3, 7, 9; the last ends at 12 and begins as U+FFFD does
  EXPECT_EQ(TokensOf(tokenizer, text, 3, 12), std::pair(size_t{4}, size_t{13}));
  EXPECT_EQ(TokensOf(tokenizer, text, 3, 7), std::pair(size_t{4}, size_t{8}));
  EXPECT_EQ(TokensOf(tokenizer, text, 7, 9), std::pair(size_t{8}, size_t{10}));
  EXPECT_EQ(TokensOf(tokenizer, text, 9, 12), std::pair(size_t{10}, size_t{13}));
  EXPECT_EQ(TokensOf(tokenizer, text, 0, 3), std::pair(size_t{0}, size_t{4}));
}

TEST(TokenBorders, LongTextsAreNotDecodedOverAndOver) {
  const CuttingTokenizer tokenizer;
  const std::string text(100'000, 'x');
  EXPECT_EQ(TokensOf(tokenizer, text, 99'990, 99'999), std::pair(size_t{99'991}, size_t{100'000}));
  EXPECT_LE(tokenizer.num_decoded, 4u * text.size());  // once to begin with, and each end
  tokenizer.num_decoded = 0;
  EXPECT_EQ(TokensOf(tokenizer, text, 10, text.size()), std::pair(size_t{11}, size_t{100'001}));
  EXPECT_LE(tokenizer.num_decoded, text.size() + 10'000);
}

// What TokensOf promises, from the decodings of all beginnings.
std::pair<size_t, size_t> TokensByHand(const Tokenizer& tokenizer, const std::string& text,
                                       size_t begin, size_t end) {
  const auto decoded = [&](const std::string& of) {
    std::vector<int32_t> ids;
    EXPECT_TRUE(tokenizer.Encode(of, &ids).ok());
    return tokenizer.Decode(ids, SpecialText::kSpecial).value();
  };
  const auto common = [](const std::string& a, const std::string& b) {
    size_t n = 0;
    while (n < a.size() && n < b.size() && a[n] == b[n]) ++n;
    return n;
  };
  std::vector<int32_t> ids;
  EXPECT_TRUE(tokenizer.Encode(text, &ids).ok());
  const std::string all = decoded(text);
  const size_t first = common(all, decoded(text.substr(0, begin)));
  const size_t last = common(all, decoded(text.substr(0, end)));
  std::pair<size_t, size_t> tokens(0, ids.size());
  bool reached = false;
  for (size_t n = 0; n <= ids.size(); ++n) {
    const std::string part =
        tokenizer.Decode(std::span(ids).first(n), SpecialText::kSpecial).value();
    const size_t right = common(all, part);
    if (begin > 0 && right == part.size() && right <= first) tokens.first = n;
    if (end < text.size() && !reached && right >= last) tokens.second = n;
    reached = reached || right >= last;
  }
  return {tokens.first, std::max(tokens.first, tokens.second)};
}

TEST(TokenBorders, PartsAreDecodedAsTheWholeIs) {
  std::mt19937 random(1);
  const std::vector<std::string> words = {" ", "  ", "the", " one", "\n", "é",  "e\u0301",
                                          "☃", "☃☃", "🎹",   "世界", "42", ".x", "<think>"};
  std::vector<std::unique_ptr<Tokenizer>> tokenizers;
  for (const char* file : {"tokenizer.json", "prepend.json", "metaspace.json"})
    tokenizers.push_back(NewGoldenTokenizer(file));
  tokenizers.push_back(std::make_unique<CuttingTokenizer>());
  for (int i = 0; i < 500; ++i) {
    std::string parts[3];
    for (std::string& part : parts)
      for (size_t n = 1 + random() % 40; n > 0; --n) part += words[random() % words.size()];
    const std::string text = parts[0] + parts[1] + parts[2];
    const size_t begin = parts[0].size(), end = begin + parts[1].size();
    for (const auto& tokenizer : tokenizers) {
      EXPECT_EQ(TokensOf(*tokenizer, text, begin, end), TokensByHand(*tokenizer, text, begin, end))
          << tokenizer->spec() << ": `" << parts[0] << "`" << parts[1] << "`" << parts[2] << "`";
      EXPECT_EQ(TokensOf(*tokenizer, text, begin, text.size()),
                TokensByHand(*tokenizer, text, begin, text.size()));
    }
  }
}

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
