#include "tests/simulation/sim_rank.h"

#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "common/check.h"
#include "common/hash.h"
#include "worker/checkpoint/loader.h"
#include "worker/checkpoint/manifest.h"

namespace mt {
namespace {

uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace

uint64_t InitialState(const std::string& job_name, int rank) {
  uint64_t state = Mix(rank);
  for (const char c : job_name) state = Mix(state ^ static_cast<unsigned char>(c));
  return state;
}

std::vector<uint64_t> NextStates(const std::vector<uint64_t>& states, int64_t step) {
  uint64_t sum = 0;
  for (const uint64_t state : states) sum += state;
  std::vector<uint64_t> next;
  for (const uint64_t state : states) next.push_back(Mix(state ^ Mix(sum + step)));
  return next;
}

std::vector<uint64_t> UndisturbedStates(const std::string& job_name, int world, int64_t steps) {
  std::vector<uint64_t> states;
  for (int rank = 0; rank < world; ++rank) states.push_back(InitialState(job_name, rank));
  for (int64_t step = 1; step <= steps; ++step) states = NextStates(states, step);
  return states;
}

std::string EncodeShard(uint64_t state, int64_t step, int rank) {
  return absl::StrFormat("%d %d %d %s", state, step, rank, std::string(state % 200, 'x'));
}

absl::StatusOr<uint64_t> DecodeShard(const std::string& contents, int64_t step, int rank) {
  const std::vector<std::string> parts = absl::StrSplit(contents, absl::MaxSplits(' ', 3));
  uint64_t state;
  int64_t its_step;
  int its_rank;
  if (parts.size() < 3 || !absl::SimpleAtoi(parts[0], &state) ||
      !absl::SimpleAtoi(parts[1], &its_step) || !absl::SimpleAtoi(parts[2], &its_rank) ||
      its_step != step || its_rank != rank) {
    return absl::DataLossError("a shard holds something else than its name says");
  }
  return state;
}

struct SimRank {
  RankLaunch launch;
  RankHandler* handler = nullptr;
  std::string node;
  SimEventLoop* loop = nullptr;
  Env* env = nullptr;
  bool alive = true, terminating = false, hung = false, ready = false;
  uint64_t state = 0;
  int64_t step = 0;
  int64_t log_offset = 0;

  const RankId& id() const { return launch.id; }
  int world() const { return launch.start.rank_table_size(); }
  void Say(v1::FromRank message) { handler->OnRankMessage(launch.id, std::move(message)); }
};

class SimRankHost : public RankHost {
 public:
  SimRankHost(SimRanks* ranks, std::string node, SimEventLoop* loop, Env* env)
      : ranks_(ranks), node_(std::move(node)), loop_(loop), env_(env) {}

  void SetHandler(RankHandler* handler) override { handler_ = handler; }

  absl::StatusOr<int32_t> Spawn(RankLaunch launch) override {
    if (!ranks_->ever_.insert(launch.id).second)
      ranks_->violations.push_back("spawned twice: " + launch.id.ToString());
    if (ranks_->on_spawn) ranks_->on_spawn(node_, launch);
    auto rank = std::make_shared<SimRank>();
    rank->handler = handler_;
    rank->node = node_;
    rank->loop = loop_;
    rank->env = env_;
    rank->launch = std::move(launch);
    SimRanks* ranks = ranks_;
    ranks->ranks_[rank->id()] = rank;
    ranks->LaterOn(rank, ranks->Between(0.2, 1.5), [ranks, rank] { ranks->Load(rank); });
    return ++ranks->last_pid_;
  }

  void Send(const RankId& id, v1::ToRank message) override {
    const auto it = ranks_->ranks_.find(id);
    if (it == ranks_->ranks_.end() || !it->second->alive) return;
    SimRanks* ranks = ranks_;
    ranks->LaterOn(it->second, absl::Milliseconds(1), [ranks, rank = it->second, message] {
      if (message.has_rendezvous_value()) ranks->Join(rank);
      if (message.has_checkpoint_now()) {
        ranks->gangs_[{rank->id().job_id, rank->id().generation}].pause = true;
      }
      if (message.has_file_ready()) {
        const v1::FileReady& ready = message.file_ready();
        if (ready.ok()) {
          ranks->Loaded(rank, ready.path(), false);
        } else {
          ranks->Fail(
              rank, absl::Status(static_cast<absl::StatusCode>(ready.code()), ready.message()), "");
        }
      }
    });
  }

  void Signal(const RankId& id, RankSignal signal) override {
    const auto it = ranks_->ranks_.find(id);
    if (it == ranks_->ranks_.end() || !it->second->alive) return;
    SimRanks* ranks = ranks_;
    const std::shared_ptr<SimRank> rank = it->second;
    rank->terminating = true;
    if (signal == RankSignal::kKill) {
      ranks->LaterOn(rank, absl::Milliseconds(20), [ranks, rank] { ranks->Exit(rank, -1, 9); });
    } else if (!rank->hung && ranks->random_->Uniform() > 0.1) {  // the others ignore it
      ranks->LaterOn(rank, ranks->Between(0.01, 2), [ranks, rank] { ranks->Exit(rank, -1, 15); });
    }
  }

  void Sweep(const RankId& id, int32_t pid) override {}  // they died with their daemon

 private:
  SimRanks* const ranks_;
  const std::string node_;
  SimEventLoop* const loop_;
  Env* const env_;
  RankHandler* handler_ = nullptr;
};

std::unique_ptr<RankHost> SimRanks::NewHost(const std::string& node, SimEventLoop* loop, Env* env) {
  return std::make_unique<SimRankHost>(this, node, loop, env);
}

void SimRanks::LaterOn(const std::shared_ptr<SimRank>& rank, absl::Duration delay,
                       std::function<void()> task) {
  if (!rank->alive) return;
  rank->loop->After(delay, [rank, task = std::move(task)] {
    if (rank->alive) task();
  });
}

void SimRanks::Progress(const std::shared_ptr<SimRank>& rank, const std::string& phase,
                        const std::string& where) {
  v1::FromRank message;
  message.mutable_progress()->set_phase(phase);
  message.mutable_progress()->set_step(rank->step);
  message.mutable_progress()->set_where(where);
  LaterOn(rank, absl::ZeroDuration(), [rank, message] { rank->Say(message); });
}

// The process is gone. Its peers notice when they next wait for it.
void SimRanks::Exit(const std::shared_ptr<SimRank>& rank, int code, int signal) {
  if (!rank->alive) return;
  rank->alive = false;
  const RankId id = rank->id();
  ranks_.erase(id);
  RankExit exit;
  exit.exit_code = code;
  exit.signal = signal;
  exit.last_lines = {"last words of " + id.ToString()};
  rank->loop->Post([handler = rank->handler, id, exit] { handler->OnRankExited(id, exit); });
  SimGang& gang = gangs_[{id.job_id, id.generation}];
  gang.joined.erase(id.rank);
  if (code == 0 && signal == 0) return;
  gang.broken = true;
  const auto peers = gang.joined;
  for (const auto& [number, peer] : peers) {
    LaterOn(peer, Between(0.05, 2), [this, peer, blame = id.rank] {
      if (!peer->hung)
        Fail(peer, absl::UnavailableError("connection closed by peer"), absl::StrCat(blame));
    });
  }
}

void SimRanks::Fail(const std::shared_ptr<SimRank>& rank, absl::Status status,
                    const std::string& blame) {
  v1::FromRank message;
  v1::Finished& finished = *message.mutable_finished();
  finished.set_ok(false);
  finished.set_status_code(absl::StatusCodeToString(status.code()));
  finished.set_message(std::string(status.message()));
  finished.set_blame_rank(blame);
  finished.set_step(rank->step);
  rank->Say(std::move(message));
  Exit(rank, 1, 0);
}

void SimRanks::Load(const std::shared_ptr<SimRank>& rank) {
  Progress(rank, "load", "");
  const v1::RankStart& start = rank->launch.start;
  const int number = rank->id().rank;
  if (!start.has_restore()) {
    rank->state = InitialState(start.spec().name(), number);
    LaterOn(rank, Between(0.05, 0.3), [this, rank] { Loaded(rank, "", false); });
    return;
  }
  const auto path = CheckpointFilePath(start.restore_root(), start.restore().job_id(),
                                       start.restore().step(), ShardFileName(number));
  MT_CHECK_OK(path.status());
  LaterOn(rank, Between(0.05, 0.3), [this, rank, path = *path] { Loaded(rank, path, true); });
}

void SimRanks::Loaded(const std::shared_ptr<SimRank>& rank, const std::string& path, bool may_ask) {
  const v1::RankStart& start = rank->launch.start;
  const int number = rank->id().rank;
  if (!path.empty()) {
    const std::string name = ShardFileName(number);
    absl::Status status = absl::NotFoundError("not in the manifest");
    for (const v1::CheckpointFile& file : start.restore().files()) {
      if (file.name() == name) status = VerifyFile(rank->env, path, file);
    }
    if (!status.ok()) {
      if (!may_ask || !start.restore().spec().checkpoint().path().empty()) {
        Fail(rank, absl::DataLossError(status.message()), "");
        return;
      }
      v1::FromRank message;
      message.mutable_need_file()->set_file(name);
      rank->Say(std::move(message));
      return;
    }
    const auto contents = ReadFile(rank->env, path);
    const auto state =
        contents.ok() ? DecodeShard(*contents, start.restore().step(), number) : contents.status();
    if (!state.ok()) {
      Fail(rank, absl::DataLossError(state.status().message()), "");
      return;
    }
    rank->state = *state;
    rank->step = start.restore().step();
  }
  Progress(rank, "communicator", "");
  v1::FromRank put, get;
  put.mutable_rendezvous_put()->set_key(absl::StrCat("address-", number));
  put.mutable_rendezvous_put()->set_value("x");
  get.mutable_rendezvous_get()->set_key(absl::StrCat("address-", (number + 1) % rank->world()));
  rank->Say(std::move(put));
  rank->Say(std::move(get));
}

void SimRanks::Join(const std::shared_ptr<SimRank>& rank) {
  const std::pair key(rank->id().job_id, rank->id().generation);
  SimGang& gang = gangs_[key];
  if (rank->ready) return;
  rank->ready = true;
  if (gang.broken) {
    Fail(rank, absl::UnavailableError("a peer is gone"), "");
    return;
  }
  if (gang.joined.empty()) gang.step = rank->step;
  if (gang.step != rank->step)
    violations.push_back(
        absl::StrCat("ranks of ", rank->id().ToString(), " meet at different steps"));
  gang.world = rank->world();
  gang.joined[rank->id().rank] = rank;
  v1::FromRank message;
  message.mutable_ready()->set_start_step(rank->step);
  rank->Say(std::move(message));
  Progress(rank, "step", "");
  if (static_cast<int>(gang.joined.size()) == gang.world && !gang.stepping) {
    gang.stepping = true;
    scheduler_->At(scheduler_->now() + Between(0.5, 1.5), [this, key] { Step(key); });
  }
}

// One optimizer step of all ranks, or nobody's.
void SimRanks::Step(const std::pair<std::string, int>& key) {
  SimGang& gang = gangs_[key];
  if (gang.broken || static_cast<int>(gang.joined.size()) < gang.world) return;
  for (const auto& [number, rank] : gang.joined) {
    if (!rank->hung) continue;
    for (const auto& [other, peer] : gang.joined) {
      if (!peer->hung) Progress(peer, "step", "waiting: all-reduce");
    }
    scheduler_->At(scheduler_->now() + absl::Seconds(1), [this, key] { Step(key); });
    return;
  }
  const v1::JobSpec spec = gang.joined.begin()->second->launch.start.spec();
  std::vector<uint64_t> states;
  for (const auto& [number, rank] : gang.joined) states.push_back(rank->state);
  const int64_t step = ++gang.step;
  states = NextStates(states, step);
  const bool poisoned = absl::StartsWith(spec.name(), kPoison) && step == 3;
  const bool last = step >= spec.training().steps();
  const bool paused = gang.pause && !last;
  const int64_t every = spec.checkpoint().every_steps();
  const auto members = gang.joined;
  for (const auto& [number, rank] : members) {
    rank->state = states[number];
    rank->step = step;
    Progress(rank, "step", "");
    LaterOn(rank, absl::ZeroDuration(), [this, rank, number, step, poisoned] {
      v1::FromRank message;
      if (number == 0) {
        message.mutable_step_report()->mutable_progress()->set_step(step);
        message.mutable_step_report()->mutable_progress()->set_step_seconds(1);
      } else {
        message.mutable_rank_report()->set_step(step);
      }
      rank->Say(std::move(message));
      const std::string line = absl::StrCat("rank ", number, " step ", step, "\n");
      rank->handler->OnRankOutput(rank->id(), line, false,
                                  std::exchange(rank->log_offset, rank->log_offset + line.size()));
      if (poisoned && number == 0) Exit(rank, 7, 0);
    });
    if (last || paused || (every > 0 && step % every == 0)) Checkpoint(rank, last, paused);
  }
  if (!last && !paused)
    scheduler_->At(scheduler_->now() + Between(0.5, 1.5), [this, key] { Step(key); });
}

// The bytes are those of this moment; they are written behind the training.
void SimRanks::Checkpoint(const std::shared_ptr<SimRank>& rank, bool last, bool paused) {
  const int64_t step = rank->step;
  const int number = rank->id().rank;
  const std::string contents = EncodeShard(rank->state, step, number);
  LaterOn(rank, Between(0.1, 1), [this, rank, step, number, contents, last, paused] {
    const v1::RankStart& start = rank->launch.start;
    const std::string folder = *CheckpointFolder(start.checkpoint_root(), start.job_id(), step);
    const std::string path = JoinPath(folder, ShardFileName(number));
    absl::Status status = rank->env->CreateDirectories(folder);
    if (status.ok()) status = WriteFileAtomically(rank->env, path, contents);
    v1::FromRank message;
    if (!status.ok()) {
      message.mutable_checkpoint_failed()->set_step(step);
      message.mutable_checkpoint_failed()->set_message(status.ToString());
      rank->Say(std::move(message));
      if (last || paused) Fail(rank, status, "");
      return;
    }
    v1::ShardWritten& shard = *message.mutable_shard_written();
    shard.set_step(step);
    shard.set_world_size(rank->world());
    v1::CheckpointFile& file = *shard.mutable_file();
    file.set_name(ShardFileName(number));
    file.set_size_bytes(static_cast<int64_t>(contents.size()));
    file.set_xxh3_128(Xxh3Hex(contents));
    v1::TensorSlice& slice = *file.add_slices();
    slice.set_tensor("state");
    slice.add_global_shape(rank->world());
    slice.add_offset(number);
    slice.add_shape(1);
    slice.set_entry("state");
    rank->Say(std::move(message));
    if (!last && !paused) return;
    v1::FromRank end;
    end.mutable_finished()->set_ok(true);
    end.mutable_finished()->set_paused(paused);
    end.mutable_finished()->set_step(step);
    rank->Say(std::move(end));
    // Peers no longer mind its end, and now and then its process does not come to one by itself.
    gangs_[{rank->id().job_id, rank->id().generation}].joined.erase(number);
    if (hang_at_end > 0 && random_->Uniform() < hang_at_end) {
      rank->hung = true;
      return;
    }
    LaterOn(rank, absl::Milliseconds(50), [this, rank] { Exit(rank, 0, 0); });
  });
}

void SimRanks::KillNode(const std::string& node) {
  for (const auto& rank : Running()) {
    if (rank->node != node) continue;
    // No callbacks: its daemon is gone too.
    rank->alive = false;
    ranks_.erase(rank->id());
    SimGang& gang = gangs_[{rank->id().job_id, rank->id().generation}];
    gang.joined.erase(rank->id().rank);
    gang.broken = true;
    const auto peers = gang.joined;
    for (const auto& [number, peer] : peers) {
      if (peer->node == node) continue;
      LaterOn(peer, Between(0.05, 2), [this, peer, blame = rank->id().rank] {
        if (!peer->hung)
          Fail(peer, absl::UnavailableError("connection closed by peer"), absl::StrCat(blame));
      });
    }
  }
}

std::vector<std::shared_ptr<SimRank>> SimRanks::Running() const {
  std::vector<std::shared_ptr<SimRank>> running;
  for (const auto& [id, rank] : ranks_) running.push_back(rank);
  return running;
}

bool SimRanks::KillRandomRank() {
  const auto running = Running();
  if (running.empty()) return false;
  const auto rank = running[random_->Next() % running.size()];
  LaterOn(rank, absl::ZeroDuration(), [this, rank] { Exit(rank, -1, 9); });
  return true;
}

bool SimRanks::HangRandomRank() {
  const auto running = Running();
  if (running.empty()) return false;
  running[random_->Next() % running.size()]->hung = true;
  return true;
}

std::vector<SimRanks::Alive> SimRanks::alive() const {
  std::vector<Alive> result;
  for (const auto& rank : Running()) result.push_back({rank->id(), rank->node, rank->terminating});
  return result;
}

}  // namespace mt
