// The first byte chooses the kind of file and how it is cut into chunks; the rest is the file. Line numbers of bad lines rise, and
// all bytes are read.
#include "common/testing/mem_env.h"
#include "tests/fuzz/fuzz.h"
#include "worker/data/text/text_source.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  mt::FuzzInput input(data, size);
  const uint8_t kind = input.Take<uint8_t>();
  mt::TextSourceOptions options;
  options.max_document_bytes = 4096;
  if ((kind & 2) != 0) options.document_separator = (kind & 4) != 0 ? "" : "--";
  const std::string path = (kind & 1) != 0 ? "/in.jsonl" : "/in.txt";
  mt::MemEnv env;
  auto file = env.NewWritableFile(path, mt::Env::WriteMode::kTruncate).value();
  MT_CHECK_OK(file->Append(input.Rest()));
  int64_t line = 0;
  auto source = mt::TextSource::Open(
                    &env, path, options,
                    [&](const mt::BadLine& bad) {
                      MT_CHECK(bad.line > line && !bad.reason.empty());
                      line = bad.line;
                      return absl::OkStatus();
                    },
                    1 + (kind >> 3) * 7)
                    .value();
  std::string document;
  while (true) {
    const absl::StatusOr<bool> more = source->Next(&document);
    if (!more.ok()) {
      MT_CHECK(absl::IsResourceExhausted(more.status())) << more.status().ToString();
      return 0;
    }
    if (!*more) break;
    MT_CHECK(!document.empty() && document.size() <= options.max_document_bytes);
  }
  MT_CHECK(source->bytes_read() == input.Rest().size());
  return 0;
}
