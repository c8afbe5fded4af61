// Fill-in-the-middle: a document is cut at two places into prefix, middle and suffix, and the middle is moved to the end, so that a
// model of what comes next learns to fill gaps (Bavarian et al. 2022, arXiv 2207.14255; Megatron-LM's --fim-data).
//
//   prefix-suffix-middle   <prefix> PREFIX <suffix> SUFFIX <middle> MIDDLE
//   suffix-prefix-middle   <prefix> <suffix> SUFFIX <middle> PREFIX MIDDLE     (variant 2 of the paper's section 3)
//
// It is done to samples rather than to datasets (the paper's "context level"), so that each epoch cuts elsewhere. Unlike Megatron's,
// what becomes of a sample is a pure function of the options and its number: Megatron draws from one generator per process, which
// no resumed run and no other layout draws from in the same order. And the cuts are between tokens, where Megatron decodes, cuts
// between characters and encodes again: ranks carry no tokenizer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace mt {

struct FimOptions {
  double rate = 0;        // of documents that are permuted, 0..1
  double spm_rate = 0.5;  // of those in suffix-prefix-middle order, 0..1
  int32_t prefix = -1;    // ids of the sentinels
  int32_t middle = -1;
  int32_t suffix = -1;
  int32_t eod = -1;   // ends a document and stays where it is; -1: a sample is one document
  uint64_t seed = 0;  // the data's
};

// Writes the tokens of sample `sample` of the run to `to`, permuted document by document, and returns how many it wrote:
// min(to.size(), from.size() + 3 for each permuted document). So a full sample stays full, and what its sentinels push out is lost
// at its end, from the document that the sample's end cuts anyway. That loss comes before the permutation: a document that is
// permuted always has its three parts, and one for which no four places are left is not permuted. `from` and `to` do not overlap.
// Thread-safe; allocates nothing; O(from.size()).
//
// The caller leaves out validation data, and datasets with losses of their own (PREFIX.loss): those say which tokens follow which.
size_t PermuteFim(const FimOptions& options, int64_t sample, std::span<const int32_t> from,
                  std::span<int32_t> to);

}  // namespace mt
