#include "worker/data/sample/fim.h"

#include <algorithm>

#include "kernels/abi/philox.h"

namespace mt {
namespace {

constexpr size_t kSentinels = 3;
// Keeps these numbers apart from those of weights and dropout, which share the seed.
constexpr uint64_t kStream = uint64_t{0x66696d} << 40;  // "fim"

// What is decided for one document of a sample.
struct Cut {
  bool permute = false;
  bool suffix_first = false;
  uint64_t low = 0;  // of 2^64ths of the document
  uint64_t high = 0;
};

Cut CutOf(const FimOptions& options, int64_t sample, uint64_t document) {
  const uint64_t stream = kStream ^ static_cast<uint64_t>(sample);
  const mt_philox_block choice = mt_philox(options.seed, 2 * document, stream);
  Cut cut;
  cut.permute = mt_uniform_from_words(choice.word[0], choice.word[1]) < options.rate;
  if (!cut.permute) return cut;
  cut.suffix_first = mt_uniform_from_words(choice.word[2], choice.word[3]) < options.spm_rate;
  const mt_philox_block place = mt_philox(options.seed, 2 * document + 1, stream);
  cut.low = uint64_t{place.word[1]} << 32 | place.word[0];
  cut.high = uint64_t{place.word[3]} << 32 | place.word[2];
  if (cut.low > cut.high) std::swap(cut.low, cut.high);
  return cut;
}

// One of 0..n, each equally likely.
size_t Place(uint64_t fraction, size_t n) {
  return static_cast<size_t>((static_cast<unsigned __int128>(fraction) * (n + 1)) >> 64);
}

class Output {
 public:
  explicit Output(std::span<int32_t> to) : to_(to) {}
  size_t room() const { return to_.size() - done_; }
  size_t done() const { return done_; }
  void Put(int32_t token) { to_[done_++] = token; }
  void Put(std::span<const int32_t> tokens) {
    std::copy(tokens.begin(), tokens.end(), to_.begin() + static_cast<ptrdiff_t>(done_));
    done_ += tokens.size();
  }

 private:
  const std::span<int32_t> to_;
  size_t done_ = 0;
};

void PutDocument(const FimOptions& options, const Cut& cut, std::span<const int32_t> document,
                 Output* out) {
  if (!cut.permute || document.empty() || out->room() <= kSentinels) {
    out->Put(document.first(std::min(document.size(), out->room())));
    return;
  }
  document = document.first(std::min(document.size(), out->room() - kSentinels));
  const size_t low = Place(cut.low, document.size());
  const size_t high = Place(cut.high, document.size());
  out->Put(options.prefix);
  if (!cut.suffix_first) out->Put(document.first(low));
  out->Put(options.suffix);
  out->Put(document.subspan(high));
  out->Put(options.middle);
  if (cut.suffix_first) out->Put(document.first(low));
  out->Put(document.subspan(low, high - low));
}

}  // namespace

size_t PermuteFim(const FimOptions& options, int64_t sample, std::span<const int32_t> from,
                  std::span<int32_t> to) {
  Output out(to);
  for (uint64_t document = 0; !from.empty() && out.room() > 0; ++document) {
    const auto end =
        options.eod < 0 ? from.end() : std::find(from.begin(), from.end(), options.eod);
    const auto length = static_cast<size_t>(end - from.begin());
    PutDocument(options, CutOf(options, sample, document), from.first(length), &out);
    from = from.subspan(length);
    if (from.empty()) break;
    if (out.room() > 0) out.Put(options.eod);
    from = from.subspan(1);
  }
  return out.done();
}

}  // namespace mt
