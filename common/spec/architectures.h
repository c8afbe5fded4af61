// A model's spec made whole: what the user wrote, over a published model's sizes (presets.h), over what the models of an
// architecture have in common. Blocks never see an architecture; they see the traits that come out here.
#pragma once

#include "common/status.h"
#include "mt/v1/spec.pb.h"

namespace mt {

// What every model of `architecture` has, and nothing that a size decides: biases of Qwen2, sinks of gpt-oss.
v1::ModelSpec TraitsOf(v1::Architecture architecture);

// Sets every field of `model` that is not set and that has a default; model.vocab has none here. What it inherits and has
// switched off is left out: over Mixtral `moe: {experts: 0}` leaves no top_k. Resolving twice changes nothing.
// INVALID_ARGUMENT: an unknown preset, with the nearest one.
absl::Status ResolveModel(v1::ModelSpec* model);

}  // namespace mt
