#include "coordinator/nodes/bundle.h"

#include <openssl/evp.h>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_split.h"

namespace mt {
namespace {

constexpr size_t kHexDigits = 64;

std::string Sha256Hex(absl::string_view data) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_Digest(data.data(), data.size(), digest, &size, EVP_sha256(), nullptr);
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<char*>(digest), size));
}

// One name in the folder, of plain characters: it is also given to sha256sum on the node.
bool IsPlainName(absl::string_view name) {
  if (name.empty() || name[0] == '-' || name[0] == '.') return false;
  for (const char c : name) {
    if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) &&
        !absl::StrContains("._-+", absl::string_view(&c, 1))) {
      return false;
    }
  }
  return true;
}

}  // namespace

absl::StatusOr<Bundle> LoadBundle(Env* env, const std::string& folder) {
  const std::string path = JoinPath(folder, "MANIFEST");
  const absl::StatusOr<std::string> manifest = ReadFile(env, path, 1 << 20);
  if (absl::IsNotFound(manifest.status())) {
    return absl::NotFoundError(
        absl::StrCat("no worker bundle in ", folder,
                     "; make it with deploy/bundle.sh, or name another by --bundle"));
  }
  MT_RETURN_IF_ERROR(manifest.status());
  Bundle bundle{folder, Sha256Hex(*manifest), {}};
  bool has_worker = false;
  for (const absl::string_view line : absl::StrSplit(*manifest, '\n', absl::SkipEmpty())) {
    const absl::string_view name = line.size() > kHexDigits + 2 ? line.substr(kHexDigits + 2) : "";
    if (!IsPlainName(name) || line.substr(kHexDigits, 2) != "  ") {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": \"", line,
          "\" is not `<sha256>  <file>`; make the bundle again with deploy/bundle.sh"));
    }
    const absl::StatusOr<std::string> contents = ReadFile(env, JoinPath(folder, name), 256 << 20);
    if (!contents.ok() || Sha256Hex(*contents) != line.substr(0, kHexDigits)) {
      return absl::DataLossError(absl::StrCat(JoinPath(folder, name),
                                              " is missing or differs from ", path,
                                              "; make the bundle again with deploy/bundle.sh"));
    }
    has_worker = has_worker || name == "mt-worker";
    bundle.files.emplace_back(name);
  }
  if (!has_worker)
    return absl::InvalidArgumentError(absl::StrCat(path, " does not list mt-worker"));
  return bundle;
}

}  // namespace mt
