// PREFIX.idx is the input after its first two bytes, which give the size of PREFIX.bin. What Open
// accepts can all be read.
#include <unistd.h>

#include <fstream>
#include <vector>

#include "tests/fuzz/fuzz.h"
#include "worker/data/indexed_dataset.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string prefix = "/dev/shm/mt-fuzz-dataset." + std::to_string(getpid());
  mt::FuzzInput input(data, size);
  const uint16_t bin_bytes = input.Take<uint16_t>();
  std::ofstream(prefix + ".idx", std::ios::binary | std::ios::trunc) << input.Rest();
  std::ofstream(prefix + ".bin", std::ios::binary | std::ios::trunc)
      << std::string(bin_bytes, '\x01');
  const auto dataset = mt::IndexedDataset::Open(mt::Env::Real(), prefix);
  if (dataset.ok()) {
    std::vector<int32_t> tokens;
    int64_t total = 0;
    for (int64_t sequence = 0; sequence < (*dataset)->num_sequences(); ++sequence) {
      tokens.resize((*dataset)->Length(sequence));
      total += static_cast<int64_t>(tokens.size());
      // An id too large for int32 (token type int64) is the one thing that is found only now.
      const absl::Status status = (*dataset)->Read(sequence, 0, tokens);
      MT_CHECK(status.ok() || absl::IsDataLoss(status)) << status.ToString();
    }
    MT_CHECK(total == (*dataset)->num_tokens());
    for (int64_t document = 0; document < (*dataset)->num_documents(); ++document) {
      MT_CHECK((*dataset)->DocumentStart(document) <= (*dataset)->DocumentStart(document + 1));
    }
  }
  unlink((prefix + ".idx").c_str());
  unlink((prefix + ".bin").c_str());
  return 0;
}
