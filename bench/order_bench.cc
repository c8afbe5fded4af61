// Speed of the order of samples; bench/order_speed.py runs it beside Megatron's and compares what they make.
//   mt_order_bench LENGTHS T SAMPLES SEED THREADS OUT
// LENGTHS: a file of int32. Prints seconds: the walk (build_sample_idx of helpers.cpp), the whole order (document, sample and shuffle
// index), a blend of eight datasets with as many samples. Writes the three arrays to OUT.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <vector>

#include "worker/data/sample/blend.h"
#include "worker/data/sample/sample_index.h"

namespace {

template <typename Work>
double Seconds(const Work& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7) return 64;
  std::ifstream file(argv[1], std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  const mt::SequenceLengths lengths(bytes.data(), static_cast<int64_t>(bytes.size() / 4));
  const mt::SampleIndexOptions options = {.sequences = {0, lengths.size()},
                                          .sequence_length = std::atoll(argv[2]),
                                          .num_samples = std::atoll(argv[3]),
                                          .seed = static_cast<uint32_t>(std::atoll(argv[4])),
                                          .threads = std::atoi(argv[5])};
  absl::StatusOr<mt::SampleIndex> index = absl::UnknownError("not built");
  const double order = Seconds([&] { index = mt::BuildSampleIndex(lengths, options); });
  if (!index.ok()) {
    std::fprintf(stderr, "%s\n", index.status().ToString().c_str());
    return 1;
  }
  std::vector<mt::SampleStart> starts(index->sample_index.size());
  const double walk = Seconds([&] {
    mt::WalkSamples(lengths, index->document_index, options.sequence_length, options.threads,
                    starts);
  });
  const std::vector<double> weights = {0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.05, 0.05};
  const double blend =
      Seconds([&] { static_cast<void>(mt::BuildBlendIndex(weights, index->num_samples())); });
  std::ofstream out(argv[6], std::ios::binary);
  for (size_t i = 0; i < index->arrays.size(); ++i)
    out.write(index->arrays.bytes(i).data(), static_cast<int64_t>(index->arrays.bytes(i).size()));
  std::printf("{\"walk\": %.4f, \"order\": %.4f, \"blend\": %.4f}\n", walk, order, blend);
  return 0;
}
