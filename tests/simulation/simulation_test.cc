// Proof that the coordinator's and the daemons' logic keep their promises under faults: a hundred seeds, one hundred nodes.
// A failing seed is printed as a line that replays it.
#include <gtest/gtest.h>

#include <cstdlib>
#include <iostream>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "common/log.h"
#include "tests/simulation/sim_cluster.h"

namespace mt {
namespace {

uint64_t only_seed = 0;
bool verbose = false;
std::string program;

void RunSeeds(const std::string& test, int seeds, const std::function<SimOptions(uint64_t)>& make) {
  SimCluster::Statistics total;
  int64_t steps = 0;
  for (uint64_t seed = only_seed ? only_seed : 1; seed <= (only_seed ? only_seed : static_cast<uint64_t>(seeds)); ++seed) {
    SimOptions options = make(seed);
    options.seed = seed;
    options.verbose = verbose;
    SimCluster cluster(options);
    const std::vector<std::string> violations = cluster.Run();
    for (const std::string& what : violations) ADD_FAILURE() << "seed " << seed << " " << what;
    if (!violations.empty()) {
      std::cout << "replay: " << program << " --gtest_filter=" << test << " --seed=" << seed << "\n";
    }
    steps += cluster.steps();
    const auto& s = cluster.statistics;
    total.rank_kills += s.rank_kills;
    total.hangs += s.hangs;
    total.daemon_kills += s.daemon_kills;
    total.machine_crashes += s.machine_crashes;
    total.partitions += s.partitions;
    total.coordinator_deaths += s.coordinator_deaths;
    total.full_disks += s.full_disks;
    total.corruptions += s.corruptions;
    total.succeeded += s.succeeded;
    total.failed += s.failed;
    total.cancelled += s.cancelled;
    total.restarts += s.restarts;
  }
  std::cout << test << ": " << steps << " tasks; faults: " << total.rank_kills << " rank kills, " << total.hangs << " hangs, "
            << total.daemon_kills << " daemon kills, " << total.machine_crashes << " machine crashes, " << total.partitions
            << " partitions, " << total.coordinator_deaths << " coordinator deaths, " << total.full_disks << " full disks, "
            << total.corruptions << " corrupt files; jobs: " << total.succeeded << " succeeded, " << total.failed << " failed (poisoned), "
            << total.cancelled << " cancelled, " << total.restarts << " restarts\n";
}

TEST(SimulationTest, EverythingAtOnce) {
  RunSeeds("SimulationTest.EverythingAtOnce", 80, [](uint64_t) { return SimOptions(); });
}

TEST(SimulationTest, CoordinatorFaultsAloneRestartNothing) {
  RunSeeds("SimulationTest.CoordinatorFaultsAloneRestartNothing", 20, [](uint64_t) {
    SimOptions options;
    options.node_faults = false;
    options.people = false;
    return options;
  });
}

TEST(SimulationTest, SameSeedSameRun) {
  SimOptions options;
  options.seed = 7;
  options.nodes = 10;
  options.jobs = 4;
  SimCluster first(options), second(options);
  EXPECT_EQ(first.Run(), second.Run());
  EXPECT_EQ(first.steps(), second.steps());
}

}  // namespace
}  // namespace mt

int main(int argc, char** argv) {
  mt::SetLogLevel(static_cast<mt::LogLevel>(99));
  mt::program = argv[0];
  testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (absl::StartsWith(argument, "--seed=")) (void)absl::SimpleAtoi(argument.substr(7), &mt::only_seed);
    if (argument == "--verbose") {
      mt::verbose = true;
      mt::SetLogLevel(mt::LogLevel::kInfo);
    }
  }
  return RUN_ALL_TESTS();
}
