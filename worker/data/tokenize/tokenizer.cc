#include "worker/data/tokenize/tokenizer.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "common/hash.h"
#include "common/log.h"
#include "worker/data/tokenize/bpe_tokenizer.h"
#include "worker/data/tokenize/plain_encoder.h"
#include "worker/data/tokenize/sentencepiece_tokenizer.h"
#include "worker/data/tokenize/tiktoken_file.h"
#include "worker/data/tokenize/tokenizer_config.h"
#include "worker/data/tokenize/tokenizer_errors.h"
#include "worker/data/tokenize/tokenizer_json.h"

namespace mt {
namespace {

class ByteTokenizer : public Tokenizer {
 public:
  static constexpr int32_t kEndOfDocument = 256;

  std::unique_ptr<TokenEncoder> NewEncoder(SpecialText) const override {
    return std::make_unique<PlainEncoder<ByteTokenizer>>(this);
  }
  absl::Status EncodeText(absl::string_view text, std::vector<int32_t>* ids) const {
    const size_t before = ids->size();
    ids->resize(before + text.size());
    for (size_t i = 0; i < text.size(); ++i)
      (*ids)[before + i] = static_cast<unsigned char>(text[i]);
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> Decode(std::span<const int32_t> ids, SpecialText) const override {
    std::string text;
    for (const int32_t id : ids) {
      if (id < 0 || id > kEndOfDocument) return NoSuchId(spec_, id, vocab_size());
      if (id != kEndOfDocument) text.push_back(static_cast<char>(id));
    }
    return text;
  }
  int32_t vocab_size() const override { return kEndOfDocument + 1; }
  int32_t eod() const override { return kEndOfDocument; }
  int32_t special_id(absl::string_view) const override { return -1; }
  const std::string& spec() const override { return spec_; }
  const std::string& digest() const override { return spec_; }

 private:
  const std::string spec_ = "byte";
};

constexpr uint64_t kMaxFileBytes = uint64_t{512} << 20;

// The file that `spec` names: of a folder, the one that defines its tokenizer.
absl::StatusOr<std::string> DefiningFile(Env* env, const std::string& spec) {
  for (const char* name : {"tokenizer.json", "tokenizer.model"}) {
    const std::string path = JoinPath(spec, name);
    if (Exists(env, path)) return path;
  }
  const absl::StatusOr<FileInfo> info = env->Stat(spec);
  if (info.ok() && info->is_directory) {
    return absl::InvalidArgumentError(
        absl::StrCat("data.tokenizer: the folder ", spec,
                     " has neither a tokenizer.json nor a tokenizer.model; name the file"));
  }
  if (absl::IsNotFound(info.status()) && !absl::StrContains(spec, '/') &&
      !absl::StrContains(spec, '.')) {
    return absl::InvalidArgumentError(absl::StrCat(
        "data.tokenizer: \"", spec,
        "\" is neither `byte` nor the path of a tokenizer.json, a SentencePiece .model or a "
        "tiktoken file"));
  }
  return spec;
}

// What tokenizer.json and tiktoken files leave open: names, and where documents end.
std::unique_ptr<Tokenizer> Finish(const std::string& spec, absl::string_view contents,
                                  const TokenizerConfig& config, BpeParts parts) {
  parts.spec = spec;
  parts.eod = EndOfDocument(config, parts.special_ids);
  parts.stop_ids = config.stop_ids;
  parts.digest = Xxh3Hex(absl::StrCat(Xxh3Hex(contents), " eod ", parts.eod));
  return NewBpeTokenizer(std::move(parts));
}

// Of the file at `path`, whatever it is.
absl::StatusOr<std::unique_ptr<Tokenizer>> Load(Env* env, const std::string& spec,
                                                const std::string& path) {
  absl::StatusOr<std::string> contents = ReadFile(env, path, kMaxFileBytes);
  const auto annotate = [](const absl::Status& status) {
    return Annotate(status, "data.tokenizer");
  };
  if (!contents.ok()) return annotate(contents.status());
  const bool json = absl::StartsWith(absl::StripLeadingAsciiWhitespace(*contents), "{");
  if (!json && !IsTiktokenFile(*contents)) return NewSentencePieceTokenizer(spec, *contents);
  const absl::StatusOr<TokenizerConfig> config = ReadTokenizerConfig(env, path);
  if (!config.ok()) return annotate(config.status());
  absl::StatusOr<BpeParts> parts =
      json ? ParseTokenizerJson(path, *contents) : ParseTiktokenFile(path, *contents);
  if (!parts.ok()) return annotate(parts.status());
  return Finish(spec, *contents, *config, *std::move(parts));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> NewTokenizer(Env* env, const std::string& spec) {
  if (spec == "byte") return std::make_unique<ByteTokenizer>();
  MT_ASSIGN_OR_RETURN(const std::string path, DefiningFile(env, spec));
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Load(env, spec, path);
  // Models of Unigram have both files, of which only the second says what is needed.
  const std::string model = JoinPath(spec, "tokenizer.model");
  if (!absl::IsUnimplemented(tokenizer.status()) || path == model || !Exists(env, model))
    return tokenizer;
  MT_LOG(Info) << tokenizer.status().message() << "; taking " << model;
  return Load(env, spec, model);
}

}  // namespace mt
