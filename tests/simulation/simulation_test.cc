// Proof that the coordinator's and the daemons' logic keep their promises under faults: a hundred seeds, one hundred nodes.
// A failing seed is printed as a line that replays it.
#include <gtest/gtest.h>

#include <iostream>
#include <mutex>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "common/log.h"
#include "tests/simulation/sim_cluster.h"

namespace mt {
namespace {

uint64_t only_seed = 0;
bool verbose = false;
std::string program;

void Add(SimCluster::Statistics& total, const SimCluster::Statistics& s) {
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
  total.data_from_coordinator += s.data_from_coordinator;
  total.data_from_nodes += s.data_from_nodes;
}

// Each seed is a world of its own, so the seeds share the machine's cores; one seed runs in one thread.
void RunSeeds(const std::string& test, uint64_t seeds, const SimOptions& given) {
  std::mutex mutex;
  SimCluster::Statistics s;
  int64_t tasks = 0;
  uint64_t next = only_seed ? only_seed : 1;
  const uint64_t last = only_seed ? only_seed : seeds;
  auto work = [&] {
    while (true) {
      SimOptions options = given;
      {
        std::lock_guard lock(mutex);
        if (next > last) return;
        options.seed = next++;
      }
      options.verbose = verbose;
      SimCluster cluster(options);
      const std::vector<std::string> violations = cluster.Run();
      std::lock_guard lock(mutex);
      for (const std::string& what : violations)
        ADD_FAILURE() << "seed " << options.seed << " " << what;
      if (!violations.empty()) {
        std::cout << "replay: " << program << " --gtest_filter=" << test
                  << " --seed=" << options.seed << std::endl;
      }
      tasks += cluster.steps();
      Add(s, cluster.statistics);
    }
  };
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < std::max(1u, std::thread::hardware_concurrency()); ++i)
    threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  std::cout << test << ": " << tasks << " tasks; faults: " << s.rank_kills << " rank kills, "
            << s.hangs << " hangs, " << s.daemon_kills << " daemon kills, " << s.machine_crashes
            << " machine crashes, " << s.partitions << " partitions, " << s.coordinator_deaths
            << " coordinator deaths, " << s.full_disks << " full disks, " << s.corruptions
            << " corrupt files; jobs: " << s.succeeded << " succeeded, " << s.failed
            << " failed (poisoned), " << s.cancelled << " cancelled, " << s.restarts
            << " restarts; pieces of data: " << s.data_from_coordinator << " from the coordinator, "
            << s.data_from_nodes << " from nodes\n";
}

TEST(SimulationTest, EverythingAtOnce) {
  RunSeeds("SimulationTest.EverythingAtOnce", 80, SimOptions());
}

TEST(SimulationTest, CoordinatorFaultsAloneRestartNothing) {
  SimOptions options;
  options.node_faults = false;
  options.people = false;
  RunSeeds("SimulationTest.CoordinatorFaultsAloneRestartNothing", 20, options);
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
    if (absl::StartsWith(argument, "--seed="))
      (void)absl::SimpleAtoi(argument.substr(7), &mt::only_seed);
    if (argument == "--verbose") {
      mt::verbose = true;
      mt::SetLogLevel(mt::LogLevel::kInfo);
    }
  }
  return RUN_ALL_TESTS();
}
