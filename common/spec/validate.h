// All that can be told about a job spec without a cluster.
#pragma once

#include <string>
#include <vector>

#include "common/status.h"
#include "mt/v1/spec.pb.h"

namespace mt {

// One line per problem, "key = value: what is wrong; what would work". `spec` is resolved
// (FillDefaults). Empty = fine.
std::vector<std::string> SpecProblems(const v1::JobSpec& spec);
// The same as INVALID_ARGUMENT.
absl::Status ValidateSpec(const v1::JobSpec& spec);

// What is allowed and may still not be meant, one line each.
std::vector<std::string> SpecNotes(const v1::JobSpec& spec);

// The divisors of every one of `numbers` nearest to `wanted`, at most `count`, ascending: remedies
// for "does not divide".
std::vector<int64_t> NearestCommonDivisors(const std::vector<int64_t>& numbers, int64_t wanted,
                                           int count = 3);

}  // namespace mt
