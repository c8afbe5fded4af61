#include "client/local_programs.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/env.h"
#include "common/spec/print.h"

extern char** environ;

namespace mt::client {
namespace {

std::vector<char*> Arguments(const std::vector<std::string>& command) {
  std::vector<char*> argv;
  for (const std::string& argument : command) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  return argv;
}

absl::Status SpawnError(const std::vector<std::string>& command, int error) {
  return absl::InternalError(absl::StrCat("cannot start ", command[0], ": ", std::strerror(error)));
}

int ExitCodeOfWait(int status) {
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

absl::StatusOr<std::string> FindProgram(const std::string& name) {
  std::error_code error;
  std::vector<std::string> tried;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  std::vector<std::string> folders;
  if (!error) folders.push_back(self.parent_path().string());
  if (const char* path = std::getenv("PATH"); path != nullptr) {
    for (const auto& folder : absl::StrSplit(path, ':', absl::SkipEmpty()))
      folders.emplace_back(folder);
  }
  for (const std::string& folder : folders) {
    const std::string candidate = JoinPath(folder, name);
    if (access(candidate.c_str(), X_OK) == 0) return candidate;
  }
  return absl::NotFoundError(absl::StrCat(name, " is neither beside mtctl (",
                                          folders.empty() ? "?" : folders[0],
                                          ") nor on PATH; build or install it"));
}

absl::StatusOr<int> SpawnDaemon(const std::vector<std::string>& command,
                                const std::string& log_path) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 1, log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND,
                                   0600);
  posix_spawn_file_actions_adddup2(&actions, 1, 2);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID);
  std::vector<char*> argv = Arguments(command);
  pid_t pid = 0;
  const int error =
      posix_spawn(&pid, command[0].c_str(), &actions, &attributes, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) return SpawnError(command, error);
  return pid;
}

bool HasExited(int pid, int* code) {
  int status = 0;
  if (waitpid(pid, &status, WNOHANG) != pid) return false;
  *code = ExitCodeOfWait(status);
  return true;
}

bool IsRunning(int64_t pid, const std::string& name) {
  if (pid <= 1) return false;
  std::error_code error;
  const auto program = std::filesystem::read_symlink(absl::StrCat("/proc/", pid, "/exe"), error);
  // A binary that was rebuilt meanwhile has " (deleted)" after its name.
  return !error && absl::StartsWith(program.filename().string(), name);
}

absl::StatusOr<int> Run(const std::vector<std::string>& command) {
  std::vector<char*> argv = Arguments(command);
  pid_t pid = 0;
  if (const int error =
          posix_spawn(&pid, command[0].c_str(), nullptr, nullptr, argv.data(), environ);
      error != 0) {
    return SpawnError(command, error);
  }
  int status = 0;
  while (waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR)
      return absl::InternalError(
          absl::StrCat("waiting for ", command[0], ": ", std::strerror(errno)));
  }
  return ExitCodeOfWait(status);
}

absl::StatusOr<std::string> Capture(const std::vector<std::string>& command) {
  constexpr size_t kMaxOutput = 16 << 20;
  int out[2];
  if (pipe2(out, O_CLOEXEC) != 0) return SpawnError(command, errno);
  // stderr goes to an unlinked file, so that a chatty child never blocks on a pipe that nobody reads.
  char name[] = "/tmp/mtctl-stderr-XXXXXX";
  const int err = mkostemp(name, O_CLOEXEC);
  if (err >= 0) unlink(name);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, out[1], 1);
  if (err >= 0) posix_spawn_file_actions_adddup2(&actions, err, 2);
  std::vector<char*> argv = Arguments(command);
  pid_t pid = 0;
  const int error = posix_spawn(&pid, command[0].c_str(), &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(out[1]);
  std::string text, errors;
  if (error == 0) {
    char buffer[65536];
    for (ssize_t size;
         (size = read(out[0], buffer, sizeof buffer)) > 0 || (size < 0 && errno == EINTR);) {
      if (size > 0 && text.size() < kMaxOutput) text.append(buffer, size);
    }
  }
  close(out[0]);
  int status = 0;
  if (error == 0) {
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
    if (err >= 0) {
      char buffer[4096];
      const ssize_t size = pread(err, buffer, sizeof buffer, 0);
      if (size > 0) errors.assign(buffer, size);
    }
  }
  if (err >= 0) close(err);
  if (error != 0) return SpawnError(command, error);
  if (status != 0) {
    return absl::InternalError(absl::StrCat(command[0], " ended with code ", ExitCodeOfWait(status),
                                            ": ", absl::StripAsciiWhitespace(errors)));
  }
  return text;
}

std::string TailOf(const std::string& path, int lines, uint64_t from) {
  absl::StatusOr<std::string> text = ReadFile(Env::Real(), path, 256 << 20);
  if (!text.ok()) return "";
  text->erase(0, from);
  std::vector<std::string> all = absl::StrSplit(absl::StripTrailingAsciiWhitespace(*text), '\n');
  if (static_cast<int>(all.size()) > lines) all.erase(all.begin(), all.end() - lines);
  return absl::StrJoin(all, "\n");
}

absl::StatusOr<MachineKernels> ResolveKernels(const v1::JobSpec& spec) {
  MT_ASSIGN_OR_RETURN(const std::string worker, FindProgram("mt-worker"));
  const v1::ParallelSpec& p = spec.parallel();
  const int ranks = std::max(1, p.tensor() * p.pipeline() * p.data());
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  const int threads = spec.runtime().threads_per_rank() > 0 ? spec.runtime().threads_per_rank()
                                                            : std::max(1, cores / ranks);
  std::vector<std::string> command = {
      worker, "kernels", absl::StrCat("--threads=", threads),
      absl::StrCat("--precision=",
                   EnumToText(*v1::TrainingSpec::Precision_descriptor()->FindValueByNumber(
                       spec.training().precision())))};
  if (!spec.runtime().backend().empty())
    command.push_back(absl::StrCat("--backend=", spec.runtime().backend()));
  for (const auto& [operation, backend] : spec.runtime().operations()) {
    command.push_back(absl::StrCat("--operation=", operation, "=", backend));
  }
  const absl::StatusOr<std::string> text = Capture(command);
  if (!text.ok()) return absl::FailedPreconditionError(text.status().message());
  const Json json = Json::parse(*text, nullptr, false);
  if (!json.is_object() || !json.contains("operations") || !json.contains("peak_flops") ||
      !json["peak_flops"].is_number()) {
    return absl::InternalError(
        absl::StrCat(worker, " kernels: its answer is not understood; is it of another version?"));
  }
  return MachineKernels{.operations = json["operations"],
                        .peak_flops = json["peak_flops"].get<double>()};
}

}  // namespace mt::client
