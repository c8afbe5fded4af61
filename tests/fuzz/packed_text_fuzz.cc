// The first byte chooses the format and how much is read at a time; the rest is a .gz or .zst file. It unpacks to an end or to an
// error that names the file, and however much is asked for at a time, the same comes out.
#include "common/testing/mem_env.h"
#include "tests/fuzz/fuzz.h"
#include "worker/data/text/byte_source.h"

namespace {

constexpr size_t kEnough = 8 << 20;

struct Contents {
  std::string bytes;
  absl::StatusCode code = absl::StatusCode::kOk;
};

Contents Unpack(mt::Env* env, mt::Compression compression, size_t step) {
  Contents contents;
  auto source = mt::OpenByteSource(env, "/in", compression).value();
  std::string buffer(step, '\0');
  while (contents.bytes.size() < kEnough) {
    const absl::StatusOr<size_t> bytes = source->Read(step, buffer.data());
    if (!bytes.ok()) {
      contents.code = bytes.status().code();
      MT_CHECK(absl::IsDataLoss(bytes.status()) || absl::IsResourceExhausted(bytes.status()))
          << bytes.status().ToString();
      MT_CHECK(absl::string_view(bytes.status().message()).find("/in") == 0);
      break;
    }
    contents.bytes.append(buffer, 0, *bytes);
    if (*bytes < step) {
      MT_CHECK(source->Read(step, buffer.data()).value_or(1) == 0);
      break;
    }
  }
  if (contents.bytes.size() > kEnough) contents.bytes.resize(kEnough);
  return contents;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  mt::FuzzInput input(data, size);
  const uint8_t kind = input.Take<uint8_t>();
  mt::MemEnv env;
  auto file = env.NewWritableFile("/in", mt::Env::WriteMode::kTruncate).value();
  MT_CHECK_OK(file->Append(input.Rest()));
  const mt::Compression compression =
      (kind & 1) != 0 ? mt::Compression::kGzip : mt::Compression::kZstd;
  const Contents whole = Unpack(&env, compression, 1 << 20);
  const Contents parts = Unpack(&env, compression, 1 + kind * 16);
  if (whole.bytes.size() >= kEnough || parts.bytes.size() >= kEnough) return 0;
  // What came before an error may be cut off elsewhere; what comes without one may not.
  MT_CHECK(whole.code == parts.code);
  if (whole.code == absl::StatusCode::kOk) MT_CHECK(whole.bytes == parts.bytes);
  return 0;
}
