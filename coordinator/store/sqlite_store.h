// StateStore in one SQLite file (WAL, synchronous=FULL): `<state directory>/coordinator.db`, beside the lock file
// `coordinator.lock` that keeps a second coordinator out and names the first.
#pragma once

#include <memory>
#include <string>

#include "common/clock.h"
#include "common/env.h"
#include "coordinator/store/state_store.h"

namespace mt {

// Creates the folder and the tables if need be. FAILED_PRECONDITION naming pid and path when another process holds the
// folder; FAILED_PRECONDITION when a newer version of mt wrote it; DATA_LOSS when the database is damaged.
// The epoch is at least the wall clock's seconds since 1970: a database that was restored from a backup has counted fewer
// starts than the daemons have seen, and they obey no coordinator of a smaller epoch.
absl::StatusOr<std::unique_ptr<StateStore>> OpenSqliteStore(Env* env,
                                                            const std::string& state_directory,
                                                            Clock* clock = Clock::Real());

}  // namespace mt
