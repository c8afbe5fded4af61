// A file that remembers which algorithm of a library was chosen for a product, so that a restart neither measures again nor, by a
// different choice, computes other bits.
//
// One line per entry, "mt-gemm 1|ENVIRONMENT|KEY|ALGORITHM|CHECKSUM": the environment is everything an algorithm depends on beside
// the problem (device, driver, library version); the algorithm is 128 hexadecimal digits; the checksum is FNV-1a of what stands
// before it. Lines of other environments are kept, lines that do not read are dropped when the file is next written. It is
// replaced as a whole (temporary file, fsync, rename).
//
// Several processes may share the file: whoever stores a key first decides for all (a lock file beside it), so that the ranks of
// a node use one algorithm and find it again after a restart.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

namespace mt::cuda {

using GemmAlgorithm = std::array<uint64_t, 8>;  // cublasLtMatmulAlgo_t::data

// Not thread-safe.
class GemmCache {
 public:
  // Reads the file; one that is absent or damaged gives no entries.
  GemmCache(std::string path, std::string environment);

  std::optional<GemmAlgorithm> Find(const std::string& key) const;
  // Learns what other processes have stored since.
  void ReadAgain();
  // Adds an entry unless the file has come to hold one for this key; returns the one that counts. An entry equal to `unfit`, which
  // the caller has found and could not use, is replaced. If the file cannot be written, `*error` says why and the entry counts for
  // this process alone.
  GemmAlgorithm Store(const std::string& key, const GemmAlgorithm& algorithm,
                      const std::optional<GemmAlgorithm>& unfit, std::string* error);

 private:
  using Entries = std::map<std::string, GemmAlgorithm>;  // by "ENVIRONMENT|KEY"
  Entries Read() const;
  std::string Write(const Entries& entries) const;  // empty, or what failed
  std::string NameOf(const std::string& key) const { return environment_ + "|" + key; }

  std::string path_;
  std::string environment_;
  Entries entries_;
};

}  // namespace mt::cuda
