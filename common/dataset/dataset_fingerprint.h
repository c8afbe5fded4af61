// What tells two copies of a dataset apart without reading all of it: nodes that each have a copy of their own say their
// fingerprints before ranks meet, and a node whose copy is another one is named.
//
// Seen: any change of PREFIX.idx, of a file's size, or of a token in the blocks that are read. Not seen: a changed token between
// blocks; `mtctl data verify` reads everything.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/env.h"
#include "common/status.h"
#include "mt/v1/spec.pb.h"

namespace mt {

// Blocks that are read of PREFIX.bin and of PREFIX.loss, the first at its beginning and the last at its end; a file that is not
// larger than all of them is read whole.
constexpr int kFingerprintBlocks = 64;
constexpr uint64_t kFingerprintBlockBytes = 64 << 10;

// Text that two copies of a dataset have in common: per file its suffix, bytes and XXH3-128, as
// "idx:82:0123...cdef bin:20:4567...89ab", and " loss:..." if there is a PREFIX.loss; where two differ, DifferenceOf says. Reads
// PREFIX.idx and at most 8 MiB. NOT_FOUND: .idx or .bin is missing. Thread-safe.
absl::StatusOr<std::string> DatasetFingerprint(Env* env, const std::string& prefix);

// In words for a person: "PREFIX.bin has 20 bytes here and 22 there", or "" if they are equal.
std::string DifferenceOf(const std::string& prefix, const std::string& here,
                         const std::string& there);

// The files of a dataset that training reads, those that exist: PREFIX.idx, PREFIX.bin, PREFIX.loss.
std::vector<std::string> DatasetFilesOf(Env* env, const std::string& prefix);

// Prefixes that a job with this spec opens, each once, in the spec's order. `validation` of a job that never evaluates and `test` are
// not among them.
std::vector<std::string> DatasetPrefixesOf(const v1::JobSpec& spec);

}  // namespace mt
