#include "worker/data/tokenize/sentencepiece_tokenizer.h"

#include <dlfcn.h>
#include <unistd.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/hash.h"
#include "worker/data/tokenize/plain_encoder.h"
#include "worker/data/tokenize/sentencepiece_model.h"
#include "worker/data/tokenize/sentencepiece_plugin.h"
#include "worker/data/tokenize/tokenizer_errors.h"

namespace mt {
namespace {

// The sanitizers' run-time refuses RTLD_DEEPBIND.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
constexpr bool kSanitized = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
constexpr bool kSanitized = false;
#endif

// The folder of the running program.
std::string ProgramFolder() {
  std::array<char, 4096> path;
  const ssize_t length = readlink("/proc/self/exe", path.data(), path.size());
  const std::string program(path.data(), length > 0 ? length : 0);
  return program.substr(0, program.rfind('/'));
}

// Loads libmt_sentencepiece.so once, from beside the program (or where a build or an installation
// keeps it); it stays loaded.
absl::StatusOr<const MtSentencePieceApi*> SentencePieceLibrary() {
  static const absl::StatusOr<const MtSentencePieceApi*> api =
      []() -> absl::StatusOr<const MtSentencePieceApi*> {
    int flags = RTLD_NOW | RTLD_LOCAL;
    if (!kSanitized) flags |= RTLD_DEEPBIND;
    std::string tried;
    for (absl::string_view place : {"/", "/../bin/", "/../lib/mt/"}) {
      const std::string path = absl::StrCat(ProgramFolder(), place, "libmt_sentencepiece.so");
      if (access(path.c_str(), F_OK) != 0) {
        absl::StrAppend(&tried, tried.empty() ? "" : ", ", path);
        continue;
      }
      void* library = dlopen(path.c_str(), flags);
      if (library == nullptr) {
        return absl::FailedPreconditionError(
            absl::StrCat("cannot load ", path, ": ", dlerror(),
                         "; install libsentencepiece0, or use the byte tokenizer"));
      }
      const auto entry =
          reinterpret_cast<const MtSentencePieceApi* (*)()>(dlsym(library, "mt_sentencepiece_api"));
      if (entry == nullptr)
        return absl::FailedPreconditionError(
            absl::StrCat(path, " is not mt's SentencePiece library"));
      return entry();
    }
    return absl::FailedPreconditionError(absl::StrCat(
        "libmt_sentencepiece.so was not found (tried ", tried, "); it belongs beside the program"));
  }();
  return api;
}

class SentencePieceTokenizer : public Tokenizer {
 public:
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& path,
                                                         absl::string_view serialized) {
    const auto no_model = [&](absl::string_view why) {
      return absl::InvalidArgumentError(absl::StrCat("data.tokenizer: ", path,
                                                     " is not a SentencePiece model (", why,
                                                     "); train one with spm_train, or use `byte`"));
    };
    const auto symbols = SentencePieceSymbols(serialized);
    if (!symbols.ok()) return no_model(symbols.status().message());
    MT_ASSIGN_OR_RETURN(const MtSentencePieceApi* api, SentencePieceLibrary());
    std::array<char, 512> error;
    void* model = api->open(serialized.data(), serialized.size(), error.data(), error.size());
    if (model == nullptr) return no_model(error.data());
    auto tokenizer = std::unique_ptr<SentencePieceTokenizer>(
        new SentencePieceTokenizer(api, model, path, Xxh3Hex(serialized)));
    for (const SentencePieceSymbol& symbol : *symbols) {
      tokenizer->ids_.emplace(symbol.text, symbol.id);
      if (symbol.control) tokenizer->controls_.emplace(symbol.id, symbol.text);
    }
    return tokenizer;
  }
  ~SentencePieceTokenizer() override { api_->close(model_); }

  std::unique_ptr<TokenEncoder> NewEncoder(SpecialText) const override {
    return std::make_unique<PlainEncoder<SentencePieceTokenizer>>(this);
  }
  absl::Status EncodeText(absl::string_view text, std::vector<int32_t>* ids) const {
    std::array<char, 512> error;
    const auto append = [](void* context, const int32_t* pieces, size_t n) {
      auto* out = static_cast<std::vector<int32_t>*>(context);
      out->insert(out->end(), pieces, pieces + n);
    };
    if (api_->encode(model_, text.data(), text.size(), append, ids, error.data(), error.size()) ==
        0)
      return absl::OkStatus();
    return absl::InternalError(absl::StrCat("tokenizer ", spec_, ": ", error.data()));
  }
  // With kSpecial, each run of pieces between control pieces is a text of its own.
  absl::StatusOr<std::string> Decode(std::span<const int32_t> ids,
                                     SpecialText special) const override {
    for (const int32_t id : ids) {
      if (id < 0 || id >= vocab_size_) return NoSuchId(spec_, id, vocab_size_);
    }
    std::string text;
    size_t begin = 0;
    for (size_t i = 0; special == SpecialText::kSpecial && i < ids.size(); ++i) {
      const auto control = controls_.find(ids[i]);
      if (control == controls_.end()) continue;
      MT_RETURN_IF_ERROR(DecodeText(ids.subspan(begin, i - begin), &text));
      text += control->second;
      begin = i + 1;
    }
    MT_RETURN_IF_ERROR(DecodeText(ids.subspan(begin), &text));
    return text;
  }
  int32_t vocab_size() const override { return vocab_size_; }
  int32_t eod() const override { return api_->eos(model_); }
  int32_t special_id(absl::string_view text) const override {
    const auto found = ids_.find(text);
    return found == ids_.end() ? -1 : found->second;
  }
  const std::string& spec() const override { return spec_; }
  const std::string& digest() const override { return digest_; }

 private:
  SentencePieceTokenizer(const MtSentencePieceApi* api, void* model, std::string spec,
                         std::string digest)
      : api_(api),
        model_(model),
        spec_(std::move(spec)),
        digest_(std::move(digest)),
        vocab_size_(api->size(model)) {}

  // Appends.
  absl::Status DecodeText(std::span<const int32_t> ids, std::string* text) const {
    if (ids.empty()) return absl::OkStatus();
    std::array<char, 512> error;
    const auto append = [](void* context, const char* bytes, size_t n) {
      static_cast<std::string*>(context)->append(bytes, n);
    };
    if (api_->decode(model_, ids.data(), ids.size(), append, text, error.data(), error.size()) == 0)
      return absl::OkStatus();
    return absl::InternalError(absl::StrCat("tokenizer ", spec_, ": ", error.data()));
  }

  const MtSentencePieceApi* api_;
  void* model_;  // owned
  std::string spec_;
  std::string digest_;
  int32_t vocab_size_;
  absl::flat_hash_map<std::string, int32_t> ids_;       // of control and user-defined pieces
  absl::flat_hash_map<int32_t, std::string> controls_;  // by id
};

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> NewSentencePieceTokenizer(const std::string& path,
                                                                     absl::string_view serialized) {
  return SentencePieceTokenizer::Load(path, serialized);
}

}  // namespace mt
