// libsentencepiece behind a C interface, in a shared library of its own (libmt_sentencepiece.so).
//
// Debian's libsentencepiece exports the symbols of an old protobuf that it carries inside. In a
// process that also uses libprotobuf (gRPC does) the two would be mixed: whichever is found first
// serves both, and the program dies in the first model it reads. So this library is loaded with
// RTLD_LOCAL, which keeps its symbols from us, and RTLD_DEEPBIND, which keeps ours from it.
//
// Thread-safe after open. Functions that can fail return 0 on success, else write a message of at
// most `error_bytes` (closed by a zero) to `error`. `emit` is called once, and only on success.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct MtSentencePieceApi {
  void* (*open)(const char* serialized, size_t bytes, char* error,
                size_t error_bytes);  // null: failed
  void (*close)(void* model);
  int32_t (*size)(const void* model);
  int32_t (*eos)(const void* model);  // -1: none
  int (*encode)(const void* model, const char* text, size_t bytes,
                void (*emit)(void* context, const int32_t* ids, size_t n), void* context,
                char* error, size_t error_bytes);
  int (*decode)(const void* model, const int32_t* ids, size_t n,
                void (*emit)(void* context, const char* text, size_t bytes), void* context,
                char* error, size_t error_bytes);
};

// The library's only symbol.
const MtSentencePieceApi* mt_sentencepiece_api();
}
