// YAML to JobSpec, strictly: what is not understood is refused with its place and the nearest thing
// that would be, so that a typing error never trains a different model. Keys are the field names of
// proto/mt/v1/spec.proto, found by reflection.
//
// The rules: one document of at most 1 MiB; mappings nested at most 32 deep, at most 64 aliases,
// each key once; enums in lower case without their prefix (`cosine`); durations `30s`, `5m`, `2h`,
// `1m30s`; numbers may have `_` separators; text in quotes is never a number; a key with no value
// is refused, and so is a zero where zero could only mean "default".
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/env.h"
#include "common/status.h"
#include "mt/v1/spec.pb.h"

namespace mt {

// Defaults are not filled in. INVALID_ARGUMENT: "job.yaml:3:9: model.layer: unknown key; did you
// mean `layers`?". `overrides` are `a.b=value` (from --set), applied in order after the text under
// the same rules.
absl::StatusOr<v1::JobSpec> ParseJobSpec(absl::string_view text, absl::string_view file_name,
                                         const std::vector<std::string>& overrides = {});
// NOT_FOUND names the file.
absl::StatusOr<v1::JobSpec> ReadJobSpec(Env* env, const std::string& path,
                                        const std::vector<std::string>& overrides = {});

// "30s", "1m30s", "500ms", "2h". INVALID_ARGUMENT otherwise. Negative ones are refused.
absl::StatusOr<absl::Duration> ParseSpecDuration(absl::string_view text);

// Levenshtein distance; and the candidate nearest to `word`, or "" if none is near enough to be
// what was meant.
int EditDistance(absl::string_view a, absl::string_view b);
std::string NearestWord(absl::string_view word, const std::vector<std::string>& candidates);

}  // namespace mt
