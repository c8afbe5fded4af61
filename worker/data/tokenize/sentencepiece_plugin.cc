#include "worker/data/tokenize/sentencepiece_plugin.h"

#include <sentencepiece_processor.h>

#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace {

using sentencepiece::SentencePieceProcessor;

static_assert(sizeof(int) == sizeof(int32_t));

const SentencePieceProcessor& Model(const void* model) {
  return *static_cast<const SentencePieceProcessor*>(model);
}

// Runs `work`, which returns sentencepiece's status; no exception leaves this library.
template <typename Work>
int Guarded(char* error, size_t error_bytes, const Work& work) {
  std::string message;
  try {
    const sentencepiece::util::Status status = work();
    if (status.ok()) return 0;
    message = status.ToString();
  } catch (const std::exception& exception) {
    message = exception.what();
  }
  std::snprintf(error, error_bytes, "%s", message.c_str());
  return 1;
}

void* Open(const char* serialized, size_t bytes, char* error, size_t error_bytes) {
  auto model = std::make_unique<SentencePieceProcessor>();
  const int failed = Guarded(error, error_bytes, [&] {
    return model->LoadFromSerializedProto(std::string_view(serialized, bytes));
  });
  return failed != 0 ? nullptr : model.release();
}

void Close(void* model) { delete static_cast<SentencePieceProcessor*>(model); }

int32_t Size(const void* model) { return Model(model).GetPieceSize(); }

int32_t Eos(const void* model) { return Model(model).eos_id(); }

int Encode(const void* model, const char* text, size_t bytes,
           void (*emit)(void*, const int32_t*, size_t), void* context, char* error,
           size_t error_bytes) {
  std::vector<int> ids;
  const int failed = Guarded(
      error, error_bytes, [&] { return Model(model).Encode(std::string_view(text, bytes), &ids); });
  if (failed == 0) emit(context, ids.data(), ids.size());
  return failed;
}

int Decode(const void* model, const int32_t* ids, size_t n,
           void (*emit)(void*, const char*, size_t), void* context, char* error,
           size_t error_bytes) {
  std::string text;
  const int failed = Guarded(error, error_bytes, [&] {
    return Model(model).Decode(std::vector<int>(ids, ids + n), &text);
  });
  if (failed == 0) emit(context, text.data(), text.size());
  return failed;
}

constexpr MtSentencePieceApi kApi = {Open, Close, Size, Eos, Encode, Decode};

}  // namespace

extern "C" __attribute__((visibility("default"))) const MtSentencePieceApi* mt_sentencepiece_api() {
  return &kApi;
}
