// The worker bundle (deploy/bundle.sh): a folder with mt-worker, its libraries and backends, that
// runs on any machine with glibc. MANIFEST lists `<sha256>  <file>` for every file, as sha256sum
// does; the bundle's digest is the SHA-256 of MANIFEST, so one digest names every byte.
#pragma once

#include <string>
#include <vector>

#include "common/env.h"
#include "common/status.h"

namespace mt {

struct Bundle {
  std::string folder;
  std::string digest;              // 64 hex digits
  std::vector<std::string> files;  // names in the folder; MANIFEST is not among them
};

// NOT_FOUND: there is no bundle (the message says how to build it); INVALID_ARGUMENT: MANIFEST is
// malformed or names a file outside the folder; DATA_LOSS: a file is missing or differs from
// MANIFEST.
absl::StatusOr<Bundle> LoadBundle(Env* env, const std::string& folder);

}  // namespace mt
