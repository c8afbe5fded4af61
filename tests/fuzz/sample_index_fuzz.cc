// Any lengths, sequence length, split and number of samples: refused, or an order that stays inside
// the data.
#include <vector>

#include "tests/fuzz/fuzz.h"
#include "worker/data/sample/sample_index.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  mt::FuzzInput input(data, size);
  mt::SampleIndexOptions options;
  // Any values, but the order must fit a fuzzer's memory: few samples, or absurdly many.
  options.num_samples =
      input.Take<uint8_t>() % 8 == 0 ? input.Take<int64_t>() : input.Take<int16_t>();
  options.sequence_length =
      input.Take<uint8_t>() % 8 == 0 ? input.Take<int64_t>() : input.Take<int16_t>();
  options.seed = input.Take<uint32_t>();
  if (options.num_samples > 100'000 && options.num_samples < (int64_t{1} << 33)) return 0;
  std::vector<int32_t> lengths(input.Take<uint8_t>() % 32);
  for (int32_t& length : lengths) length = input.Take<uint16_t>();
  const auto ranges = mt::SplitSequences(input.Rest(), static_cast<int64_t>(lengths.size()));
  if (!ranges.ok()) return 0;
  int64_t end = 0;
  for (const mt::SequenceRange& range : *ranges) {
    MT_CHECK(range.begin == end && range.end >= range.begin &&
             range.end <= static_cast<int64_t>(lengths.size()));
    end = range.end;
  }
  options.sequences = (*ranges)[0];
  int64_t tokens = 0;
  for (int64_t i = options.sequences.begin; i < options.sequences.end; ++i) tokens += lengths[i];
  if (tokens > 0 && options.sequence_length > 0 && options.num_samples > 0 &&
      static_cast<__int128>(options.num_samples) * options.sequence_length / tokens > 100'000) {
    return 0;
  }
  for (const bool pack : {false, true}) {
    options.pack_documents = pack;
    options.threads = 1;
    const auto index =
        mt::BuildSampleIndex(mt::SequenceLengths(std::span<const int32_t>(lengths)), options);
    if (!index.ok()) continue;
    MT_CHECK(index->num_samples() >= options.num_samples);
    for (int64_t i = 0; i < index->num_samples(); ++i) {
      const mt::SampleStart at = index->sample_index[static_cast<size_t>(index->InWalk(i))];
      MT_CHECK(at.position < index->document_index.size());
      const int32_t document = index->document_index[at.position];
      MT_CHECK(at.offset >= 0 && at.offset <= lengths.at(static_cast<size_t>(document)));
    }
  }
  return 0;
}
