// Conversations through every chat template: broken ones are refused; of the others the tokens spell
// what the template says and nothing that a message says becomes a special token, and exactly the
// tokens that touch what the assistant says have a loss. Also with a vocabulary that decodes to
// something else than the text, where at least what is an answer's beyond doubt has its loss.
#include "tests/fuzz/fuzz.h"
#include "worker/data/chat/chat_encoder.h"
#include "worker/data/chat/chat_template.h"

namespace mt {
namespace {

const Tokenizer* Golden(const char* file) {
  return NewTokenizer(Env::Real(), absl::StrCat(MT_SOURCE_DIR, "/tests/golden/chat/", file))
      .value()
      .release();
}

const Tokenizer& TestTokenizer() {
  static const Tokenizer* const kTokenizer = Golden("tokenizer.json");
  return *kTokenizer;
}

const Tokenizer& MetaspaceTokenizer() {
  static const Tokenizer* const kTokenizer = Golden("metaspace.json");
  return *kTokenizer;
}

struct Rendered {
  std::string text;
  std::string loss;  // of each byte, 0 or 1
  size_t num_specials = 0;
};

Rendered RenderedBy(const ChatTemplate& chat, const std::vector<ChatMessage>& messages) {
  std::vector<ChatPiece> pieces;
  MT_CHECK_OK(chat.render(messages, &pieces));
  Rendered rendered;
  for (const ChatPiece& piece : pieces) {
    const bool is_eod = piece.kind == ChatPiece::Kind::kEndOfDocument;
    rendered.text += is_eod ? "<|endoftext|>" : piece.text;
    rendered.loss.resize(rendered.text.size(), piece.loss ? 1 : 0);
    // <think> is an added token here, and no special one: it decodes to its text.
    if (is_eod || piece.kind == ChatPiece::Kind::kSpecial) ++rendered.num_specials;
  }
  return rendered;
}

void Check(const ChatTemplate& chat, const std::string& record) {
  const auto factory = NewChatEncoderFactory(
      &TestTokenizer(), {.template_name = std::string(chat.name), .append_eod = false});
  MT_CHECK_OK(factory.status());
  EncodedDocument document;
  const absl::Status status = (*factory)->NewEncoder()->Encode(record, &document);
  if (!status.ok()) {
    MT_CHECK(absl::IsInvalidArgument(status)) << status;
    return;
  }
  MT_CHECK(document.loss.size() == document.tokens.size());
  const Rendered expected = RenderedBy(chat, ParseConversation(record).value());
  size_t begin = 0, num_specials = 0;
  for (size_t i = 0; i < document.tokens.size(); ++i) {
    const std::span<const int32_t> id(&document.tokens[i], 1);
    if (TestTokenizer().Decode(id).value().empty()) ++num_specials;
    const std::string bytes = TestTokenizer().Decode(id, SpecialText::kSpecial).value();
    MT_CHECK(expected.text.compare(begin, bytes.size(), bytes) == 0) << begin;
    const bool loss = expected.loss.substr(begin, bytes.size()).find('\1') != std::string::npos;
    MT_CHECK(document.loss[i] == (loss ? 1 : 0)) << begin;
    begin += bytes.size();
  }
  MT_CHECK(begin == expected.text.size());
  MT_CHECK(num_specials == expected.num_specials);
}

// The ids are those of the texts between special tokens; a token has a loss only if its text has one somewhere,
// and all have where all of the text has.
void CheckSpaced(const ChatTemplate& chat, const std::string& record) {
  const Tokenizer& tokenizer = MetaspaceTokenizer();
  const auto factory = NewChatEncoderFactory(
      &tokenizer, {.template_name = std::string(chat.name), .append_eod = false});
  MT_CHECK_OK(factory.status());
  EncodedDocument document;
  if (!(*factory)->NewEncoder()->Encode(record, &document).ok()) return;
  MT_CHECK(document.loss.size() == document.tokens.size());
  std::vector<ChatPiece> pieces;
  MT_CHECK_OK(chat.render(ParseConversation(record).value(), &pieces));
  const auto encoder = tokenizer.NewEncoder();
  size_t at = 0;
  for (size_t i = 0; i < pieces.size();) {
    std::string text;
    bool any = false, all = true;
    std::vector<int32_t> ids;
    const auto add = [&](const ChatPiece& piece) {
      any = any || piece.loss;
      all = all && piece.loss;
    };
    const auto id_of = [&](const ChatPiece& piece) {
      if (piece.kind == ChatPiece::Kind::kText) return -1;
      if (piece.kind == ChatPiece::Kind::kEndOfDocument) return tokenizer.eod();
      return tokenizer.special_id(piece.text);
    };
    if (const int32_t id = id_of(pieces[i]); id >= 0) {
      add(pieces[i++]);
      ids.push_back(id);
    } else {
      for (; i < pieces.size() && id_of(pieces[i]) < 0; ++i) {
        add(pieces[i]);
        text += pieces[i].text;
      }
      MT_CHECK_OK(at == 0 ? encoder->Encode(text, &ids) : encoder->EncodeInside(text, &ids));
    }
    bool behind = false;
    for (const int32_t id : ids) {
      MT_CHECK(at < document.tokens.size() && document.tokens[at] == id) << at;
      const bool loss = document.loss[at++] != 0;
      MT_CHECK(loss ? any : !all) << at;
      MT_CHECK(loss || !behind) << at;  // in no template an answer is followed by other text
      behind = behind || loss;
    }
  }
  MT_CHECK(at == document.tokens.size());
}

}  // namespace
}  // namespace mt

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string record = mt::FuzzInput(data, size).Rest();
  for (const mt::ChatTemplate& chat : mt::ChatTemplates()) {
    mt::Check(chat, record);
    mt::CheckSpaced(chat, record);
  }
  return 0;
}
