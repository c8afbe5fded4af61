#include "client/dataset_names.h"

#include <filesystem>
#include <map>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace mt::client {
namespace {

// What `name` has of `endings` at its end; empty: none of them.
absl::string_view EndingOf(absl::string_view name,
                           std::initializer_list<absl::string_view> endings) {
  for (absl::string_view ending : endings)
    if (absl::EndsWith(name, ending)) return ending;
  return "";
}

std::string Without(const std::string& name, absl::string_view ending) {
  return name.substr(0, name.size() - ending.size());
}

// One spelling for a/b, ./a/b and a//b.
std::string Normal(const std::string& path) {
  return std::filesystem::path(path).lexically_normal().string();
}

}  // namespace

std::string DatasetPrefix(std::string name) {
  return Without(name, EndingOf(name, {".bin", ".idx"}));
}

absl::StatusOr<std::string> OutputPrefix(const std::string& name) {
  std::string prefix = DatasetPrefix(name);
  const std::string last = prefix.substr(prefix.rfind('/') + 1);
  if (!last.empty() && last != "." && last != "..") return prefix;
  return absl::InvalidArgumentError(
      absl::StrCat("the output `", name, "` is no prefix; write FOLDER/NAME"));
}

absl::StatusOr<std::vector<std::string>> DatasetsNamed(const std::vector<std::string>& names) {
  std::set<std::string> whole;  // that a name means by itself
  for (const std::string& name : names) whole.insert(Normal(DatasetPrefix(name)));
  std::vector<std::string> prefixes;
  std::map<std::string, std::set<absl::string_view>> endings;  // by which each was named
  for (const std::string& name : names) {
    const absl::string_view beside =
        EndingOf(name, {".loss", ".manifest.json", ".bad.jsonl", ".lock"});
    if (!beside.empty() && whole.contains(Normal(Without(name, beside)))) continue;
    const std::string prefix = DatasetPrefix(name);
    std::set<absl::string_view>& known = endings[Normal(prefix)];
    if (known.empty()) prefixes.push_back(prefix);
    if (!known.insert(EndingOf(name, {".bin", ".idx"})).second) {
      return absl::InvalidArgumentError(absl::StrCat(
          name,
          " is named twice; name each dataset once (to train on one more often, give it a "
          "weight in data.train)"));
    }
  }
  return prefixes;
}

}  // namespace mt::client
