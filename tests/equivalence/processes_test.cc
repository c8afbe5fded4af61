// Every layout with ranks as real processes, meeting in shared memory and over Gloo, equals one rank. The parent forks one
// process per rank before it has any thread or backend, serves their rendezvous over socket pairs, and compares what they
// send back.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>

#include "tests/equivalence/harness.h"

namespace mt::equivalence {
namespace {

// ---- frames between parent and child: u32 length, then the bytes

bool WriteFrame(int fd, const std::string& frame) {
  const uint32_t size = static_cast<uint32_t>(frame.size());
  std::string all(reinterpret_cast<const char*>(&size), sizeof(size));
  all += frame;
  for (size_t done = 0; done < all.size();) {
    const ssize_t n = send(fd, all.data() + done, all.size() - done, MSG_NOSIGNAL);
    if (n <= 0) return false;
    done += static_cast<size_t>(n);
  }
  return true;
}

bool ReadFrame(int fd, std::string* frame) {
  uint32_t size = 0;
  if (recv(fd, &size, sizeof(size), MSG_WAITALL) != sizeof(size)) return false;
  frame->resize(size);
  return size == 0 || recv(fd, frame->data(), size, MSG_WAITALL) == static_cast<ssize_t>(size);
}

// Appends or takes plain values and strings.
struct Packer {
  std::string bytes;
  template <typename T>
  void Put(const T* values, size_t count) {
    const uint64_t n = count;
    bytes.append(reinterpret_cast<const char*>(&n), sizeof(n));
    bytes.append(reinterpret_cast<const char*>(values), count * sizeof(T));
  }
};
struct Unpacker {
  const std::string& bytes;
  size_t at = 0;
  template <typename Container>
  Container Take() {
    uint64_t n = 0;
    std::memcpy(&n, bytes.data() + at, sizeof(n));
    at += sizeof(n);
    Container values(n, typename Container::value_type{});
    std::memcpy(values.data(), bytes.data() + at, n * sizeof(typename Container::value_type));
    at += n * sizeof(typename Container::value_type);
    return values;
  }
};

void PackState(const LogicalState& state, Packer* packer) {
  const uint64_t count = state.size();
  packer->Put(&count, 1);
  for (const auto& [name, tensor] : state) {
    packer->Put(name.data(), name.size());
    packer->Put(tensor.shape.data(), tensor.shape.size());
    packer->Put(&tensor.dtype, 1);
    packer->Put(tensor.bytes.data(), tensor.bytes.size());
    packer->Put(tensor.times_written.data(), tensor.times_written.size());
  }
}

LogicalState UnpackState(Unpacker* unpacker) {
  LogicalState state;
  for (uint64_t left = unpacker->Take<std::vector<uint64_t>>()[0]; left > 0; --left) {
    LogicalTensor& tensor = state[unpacker->Take<std::string>()];
    tensor.shape = unpacker->Take<std::vector<int64_t>>();
    tensor.dtype = unpacker->Take<std::vector<mt_dtype>>()[0];
    tensor.bytes = unpacker->Take<std::vector<char>>();
    tensor.times_written = unpacker->Take<std::vector<char>>();
  }
  return state;
}

// ---- rendezvous: children ask, the parent keeps the values

class SocketRendezvous : public Rendezvous {
 public:
  explicit SocketRendezvous(int fd) : fd_(fd) {}
  absl::Status Put(const std::string& key, const std::string& value) override {
    Packer packer{"P"};
    packer.Put(key.data(), key.size());
    packer.Put(value.data(), value.size());
    return WriteFrame(fd_, packer.bytes) ? absl::OkStatus()
                                         : absl::UnavailableError("the parent is gone");
  }
  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) override {
    std::string reply;
    if (!WriteFrame(fd_, "G" + key) || !ReadFrame(fd_, &reply))
      return absl::UnavailableError("the parent is gone");
    if (reply[0] == 'V') return reply.substr(1);
    return absl::DeadlineExceededError(absl::StrCat("no ", key));
  }

 private:
  const int fd_;
};

struct Board {
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::string, std::string> values;
};

// Answers one child until it sends its result.
absl::StatusOr<Outcome> Serve(int fd, Board* board) {
  std::string frame;
  while (ReadFrame(fd, &frame)) {
    if (frame[0] == 'P') {
      Unpacker unpacker{frame, 1};
      const std::string key = unpacker.Take<std::string>();
      const std::lock_guard lock(board->mutex);
      board->values[key] = unpacker.Take<std::string>();
      board->changed.notify_all();
    } else if (frame[0] == 'G') {
      const std::string key = frame.substr(1);
      std::unique_lock lock(board->mutex);
      const bool there = board->changed.wait_for(lock, std::chrono::seconds(30),
                                                 [&] { return board->values.contains(key); });
      const std::string reply = there ? "V" + board->values[key] : "T";
      lock.unlock();
      if (!WriteFrame(fd, reply)) break;
    } else if (frame[0] == 'E') {
      return absl::InternalError(frame.substr(1));
    } else {
      Unpacker unpacker{frame, 1};
      Outcome outcome;
      outcome.losses = unpacker.Take<std::vector<double>>();
      outcome.gradient_norms = unpacker.Take<std::vector<double>>();
      outcome.gradients = UnpackState(&unpacker);
      outcome.state = UnpackState(&unpacker);
      return outcome;
    }
  }
  return absl::UnavailableError("the rank process ended without a result");
}

[[noreturn]] void RunChild(const RunOptions& options, const Mesh& mesh,
                           const std::string& transport, int rank, int fd) {
  SocketRendezvous rendezvous(fd);
  GroupsOptions groups_options{.mesh = &mesh,
                               .rank = rank,
                               .transport = transport,
                               .job_id = absl::StrCat("equivalence-", getppid()),
                               .timeout = absl::Seconds(30)};
  for (int r = 0; r < mesh.world(); ++r) {
    v1::RankSlot slot;
    slot.set_rank(r);
    slot.set_node("one");
    slot.set_data_address("127.0.0.1");
    groups_options.rank_table.push_back(slot);
  }
  absl::StatusOr<Outcome> outcome = absl::UnknownError("");
  {
    // Groups are left before the process ends: members wait for each other, so that none takes data with it that a slower
    // one has yet to read.
    RankGroups groups;
    if (const absl::Status built = BuildGroups(groups_options, &rendezvous, &groups); built.ok()) {
      outcome = RunRank(options, rank, &groups);
      if (!outcome.ok()) groups.Abort(outcome.status().message());
    } else {
      outcome = built;
    }
  }
  if (outcome.ok()) {
    Packer packer{"R"};
    packer.Put(outcome->losses.data(), outcome->losses.size());
    packer.Put(outcome->gradient_norms.data(), outcome->gradient_norms.size());
    PackState(outcome->gradients, &packer);
    PackState(outcome->state, &packer);
    WriteFrame(fd, packer.bytes);
  } else {
    WriteFrame(fd, absl::StrCat("E", outcome.status().ToString()));
  }
  _exit(0);
}

absl::StatusOr<Outcome> RunProcesses(const RunOptions& options, const std::string& transport) {
  const Mesh mesh =
      *Mesh::Create(options.layout.tensor, options.layout.data, options.layout.pipeline);
  std::vector<int> sockets;
  std::vector<pid_t> children;
  for (int rank = 0; rank < mesh.world(); ++rank) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0)
      return absl::InternalError("socketpair failed");
    const pid_t child = fork();
    if (child == 0) {
      for (const int other : sockets) close(other);
      close(pair[0]);
      RunChild(options, mesh, transport, rank, pair[1]);
    }
    close(pair[1]);
    sockets.push_back(pair[0]);
    children.push_back(child);
  }
  Board board;
  std::vector<absl::StatusOr<Outcome>> outcomes(sockets.size(), absl::UnknownError(""));
  std::vector<std::thread> servers;
  for (size_t rank = 0; rank < sockets.size(); ++rank) {
    servers.emplace_back([&, rank] { outcomes[rank] = Serve(sockets[rank], &board); });
  }
  for (std::thread& server : servers) server.join();
  for (const int fd : sockets) close(fd);
  for (const pid_t child : children) waitpid(child, nullptr, 0);
  return MergeRanks(std::move(outcomes));
}

struct Precision {
  const char* backend;
  v1::TrainingSpec::Precision precision;
  int64_t steps;
  double tolerance;
};
void PrintTo(const Precision& precision, std::ostream* out) { *out << precision.backend; }
constexpr Precision kFloat64 = {"reference", v1::TrainingSpec::PRECISION_FP64, 20, 1e-9};
constexpr Precision kFloat32 = {"cpu", v1::TrainingSpec::PRECISION_FP32, 5, 1e-5};

class ProcessesTest : public testing::TestWithParam<std::tuple<Precision, Layout>> {};

TEST_P(ProcessesTest, SharedMemoryAndGlooEqualOneRank) {
  const auto& [precision, layout] = GetParam();
  RunOptions options{.spec = SmallJob(), .backend = precision.backend, .steps = precision.steps};
  options.spec.mutable_training()->set_precision(precision.precision);
  options.spec.mutable_model()->set_tie_embeddings(layout.pipeline > 1);
  const absl::StatusOr<Outcome> expected = RunProcesses(options, "auto");
  ASSERT_TRUE(expected.ok()) << expected.status();
  options.layout = layout;
  const absl::StatusOr<Outcome> shared = RunProcesses(options, "shm");
  ASSERT_TRUE(shared.ok()) << shared.status();
  EXPECT_EQ(CheckEquivalent(*shared, *expected, precision.tolerance), absl::OkStatus());
  const absl::StatusOr<Outcome> gloo = RunProcesses(options, "gloo");
  ASSERT_TRUE(gloo.ok()) << gloo.status();
  EXPECT_EQ(CheckEquivalent(*gloo, *expected, precision.tolerance), absl::OkStatus());
  // Sums are taken in rank order, whatever carries them.
  EXPECT_EQ(shared->losses, gloo->losses);
}

INSTANTIATE_TEST_SUITE_P(Layouts, ProcessesTest,
                         testing::Combine(testing::Values(kFloat64, kFloat32),
                                          testing::ValuesIn(AllLayouts())),
                         [](const auto& info) {
                           return absl::StrCat(std::get<0>(info.param).backend, "_",
                                               std::get<1>(info.param).Name());
                         });

}  // namespace
}  // namespace mt::equivalence
