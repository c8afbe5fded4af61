// Why did an attempt fail? When one rank dies the others follow with errors of their communicators, and what arrives first
// is an accident of timing. So the culprit is named when all ranks are accounted for.
#pragma once

#include "coordinator/store/records.pb.h"

namespace mt {

// True if this rank's end (or silence) makes the attempt a failed one.
bool IsFailure(const store::RankRecord& rank);
// hang before signal and exit, before node_lost, before communicator; among equals the earliest.
// Null if no rank failed. The report's cause, rank, node, message and last lines are filled in.
v1::FailureReport NameCulprit(const store::AttemptRecord& attempt);
// One line about how a rank ended, for events.
std::string DescribeEnd(const store::RankRecord& rank);
std::string CauseOf(const store::RankRecord& rank);

}  // namespace mt
