// Published models by name, exactly as published: what `model: llama3-8b` stands for.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/status.h"
#include "mt/v1/spec.pb.h"

namespace mt {

// In the order of the table: by family, then by size.
std::vector<std::string> PresetNames();

// hf:FOLDER stands where a preset may: the model is what the folder's config.json says (SpecFiles::model_of).
bool IsFolderPreset(absl::string_view name);

// What the table says of a model; ResolveModel makes it whole. INVALID_ARGUMENT with the nearest name if there is none such.
absl::StatusOr<v1::ModelSpec> PresetModel(absl::string_view name);

}  // namespace mt
