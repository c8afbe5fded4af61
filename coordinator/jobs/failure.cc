#include "coordinator/jobs/failure.h"

#include "absl/strings/str_cat.h"
#include "common/proto_time.h"

namespace mt {
namespace {

int Severity(const std::string& cause) {
  if (cause == "hang") return 0;
  if (cause == "checkpoint") return 1;
  if (cause == "signal" || cause == "exit" || cause == "start" || cause == "data") return 2;
  if (cause == "node_lost") return 3;
  return 4;  // communicator: a consequence
}

bool IsEnded(const store::RankRecord& rank) {
  return rank.state() == store::RankRecord::STATE_EXITED ||
         rank.state() == store::RankRecord::STATE_LOST;
}

}  // namespace

bool IsFailure(const store::RankRecord& rank) {
  if (rank.has_hung()) return true;
  if (rank.state() == store::RankRecord::STATE_LOST) return true;
  if (rank.state() != store::RankRecord::STATE_EXITED) return false;
  return !rank.exit().finished() && !rank.exit().paused();
}

std::string CauseOf(const store::RankRecord& rank) {
  if (rank.has_hung()) return "hang";
  if (rank.state() == store::RankRecord::STATE_LOST) return "node_lost";
  const v1::RankExited& exit = rank.exit();
  const std::string& code = exit.status_code();
  if (!exit.cause().empty()) return exit.cause();
  // A daemon that was started again reports so the ranks that ended with its predecessor.
  if (code == "ABORTED") return "node_lost";
  if (exit.signal() != 0) return "signal";
  if (!exit.blame_rank().empty()) return "communicator";
  if (code == "DATA_LOSS") return "checkpoint";
  if (code == "UNAVAILABLE" || code == "DEADLINE_EXCEEDED") return "communicator";
  return "exit";
}

std::string DescribeEnd(const store::RankRecord& rank) {
  const v1::RankExited& exit = rank.exit();
  std::string text =
      absl::StrCat("rank ", rank.placement().rank(), " on ", rank.placement().node(), " ");
  if (rank.has_hung()) {
    absl::StrAppend(&text, "made no progress for ", rank.hung().silent().seconds(), " s in phase ",
                    rank.hung().phase(), " of step ", rank.hung().step(),
                    rank.hung().where().empty() ? "" : ", ", rank.hung().where());
  } else if (rank.state() == store::RankRecord::STATE_LOST) {
    absl::StrAppend(&text, "was lost with its node");
  } else if (exit.finished()) {
    absl::StrAppend(&text, "finished");
  } else if (exit.paused()) {
    absl::StrAppend(&text, "paused");
  } else if (exit.cause() == "data") {
    absl::StrAppend(&text, "was not started");
  } else if (exit.signal() != 0) {
    absl::StrAppend(&text, "was killed by signal ", exit.signal());
  } else {
    absl::StrAppend(&text, "ended with exit code ", exit.exit_code());
  }
  if (!exit.status_code().empty() || !exit.message().empty())
    absl::StrAppend(&text, ": ", exit.status_code(), " ", exit.message());
  return text;
}

v1::FailureReport NameCulprit(const store::AttemptRecord& attempt) {
  const store::RankRecord* culprit = nullptr;
  auto key = [](const store::RankRecord& rank) {
    const absl::Time time =
        rank.has_exit_time() ? ToTime(rank.exit_time()) : absl::InfiniteFuture();
    return std::tuple(Severity(CauseOf(rank)), time, rank.placement().rank());
  };
  for (const store::RankRecord& rank : attempt.ranks()) {
    if (!IsFailure(rank) || !(IsEnded(rank) || rank.has_hung())) continue;
    if (rank.exit().stopped() && !rank.has_hung()) continue;  // we ended it: a consequence
    if (culprit == nullptr || key(rank) < key(*culprit)) culprit = &rank;
  }
  v1::FailureReport report;
  report.set_attempt(attempt.generation());
  report.set_rank(-1);
  if (culprit == nullptr) return report;
  report.set_rank(culprit->placement().rank());
  report.set_node(culprit->placement().node());
  report.set_cause(CauseOf(*culprit));
  report.set_message(DescribeEnd(*culprit));
  report.set_exit_code(culprit->exit().exit_code());
  report.set_signal(culprit->exit().signal());
  *report.mutable_last_lines() = culprit->exit().last_lines();
  report.set_step(culprit->has_hung() ? culprit->hung().step() : culprit->exit().step());
  if (culprit->has_exit_time()) *report.mutable_time() = culprit->exit_time();
  return report;
}

}  // namespace mt
