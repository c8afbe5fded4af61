// Which files a build reads, in which order, and what each one is.
#pragma once

#include <string>
#include <vector>

#include "common/env.h"
#include "common/status.h"
#include "worker/data/text/byte_source.h"

namespace mt {

enum class TextFormat { kTxt, kJsonl };

struct InputKind {
  TextFormat format = TextFormat::kTxt;
  Compression compression = Compression::kNone;
};

// By the name: .txt, .jsonl or .json (one object per line), each also with .gz or .zst behind it. INVALID_ARGUMENT: another name.
absl::StatusOr<InputKind> InputKindOf(const std::string& path);

// `inputs` in their order, each folder replaced by the files of such names below it, by name, folder by folder. In folders,
// names that begin with a dot, links to folders, and what `mtctl data` writes (*.manifest.json, *.bad.jsonl, *.journal.json) are
// passed over. INVALID_ARGUMENT: a file of another name, a pipe or a device, or a folder without any; NOT_FOUND, also for a link
// whose target is not there.
absl::StatusOr<std::vector<std::string>> ExpandInputs(Env* env,
                                                      const std::vector<std::string>& inputs);

// The paths in a list, one per line; blank lines, white space at the ends of lines and a byte order mark are left out.
absl::StatusOr<std::vector<std::string>> ReadInputList(Env* env, const std::string& path);

}  // namespace mt
