#include "client/temporary_folder.h"

#include <cstdlib>

#include "common/env.h"

namespace mt::client {

absl::StatusOr<std::unique_ptr<TemporaryFolder>> TemporaryFolder::Create(
    const std::string& prefix) {
  const char* base = std::getenv("TMPDIR");
  std::string name = JoinPath(base == nullptr || *base == '\0' ? "/tmp" : base, prefix + "-XXXXXX");
  if (mkdtemp(name.data()) == nullptr)
    return absl::InternalError(absl::StrCat("cannot make a temporary folder ", name));
  return std::unique_ptr<TemporaryFolder>(new TemporaryFolder(name));
}

TemporaryFolder::~TemporaryFolder() { (void)Env::Real()->RemoveTree(path_); }

}  // namespace mt::client
