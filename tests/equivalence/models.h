// Small models with every trait that the engine has, for proofs that hold whatever a model is made of: layouts equal one rank,
// gradients equal finite differences, recomputation and resuming change no bit.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "mt/v1/spec.pb.h"
#include "tests/equivalence/harness.h"

namespace mt::equivalence {

struct SmallModel {
  std::string name;  // "mla_mtp"
  v1::ModelSpec model;
};

// For gtest's messages.
inline void PrintTo(const SmallModel& model, std::ostream* out) { *out << model.name; }

std::vector<SmallModel> AllModels();

// The gradients less those that are nothing but rounding: where keys are not rotated, a bias of theirs adds the same to all of a
// query's scores, and softmax does not see it.
void DropRounding(const SmallModel& model, LogicalState* gradients);

// SmallJob with another model.
v1::JobSpec SmallJobOf(const SmallModel& model);

}  // namespace mt::equivalence
