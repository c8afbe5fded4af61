// mt-worker: the daemon of a node and, as modes of the same program, the rank process and the text
// generator and the evaluation.
#include <cstdio>
#include <string>
#include <vector>

#include "common/exit_codes.h"
#include "common/worker_command.h"
#include "worker/daemon_main.h"
#include "worker/evaluate_main.h"
#include "worker/generate_main.h"
#include "worker/kernels_main.h"
#include "worker/train/rank_main.h"
#include "worker/unpack_libraries.h"

namespace {

constexpr char kUsage[] =
    "mt-worker: trains its part of a model; started by mt-coordinator\n"
    "  mt-worker daemon --node NAME --coordinator HOST:PORT|@FILE --state FOLDER [--slots N] "
    "[--interface IF]\n"
    "                   [--tls FOLDER | --insecure] [--bundle-digest HEX] [--listen ADDRESS]\n"
    "                   [--data-cache SIZE]\n"
    "  mt-worker rank      one rank of a job; the daemon starts it with a socket as descriptor 3\n"
    "  mt-worker generate --checkpoint=FOLDER --prompt=TEXT [--max-tokens=N] [--temperature=T] "
    "[--top-k=K] [--top-p=P] "
    "[--seed=S] "
    "[--backend=NAME]\n"
    "  mt-worker evaluate --checkpoint=FOLDER|hf:FOLDER [--data=PREFIX] [--batches=N] "
    "[--sequence-length=T] "
    "[--backend=NAME] [--json=1]\n"
    "  mt-worker kernels [--backend=NAME] [--operation=NAME=BACKEND] "
    "[--precision=fp32|fp64|bf16|fp8] "
    "[--threads=N]\n"
    "  mt-worker version\n";

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  const std::vector<std::string> rest(argv + std::min(argc, 2), argv + argc);
  if (mode == "daemon" || mode == "rank" || mode == "version") {
    if (const absl::Status status = mt::UnpackLibraries(mt::Env::Real()); !status.ok()) {
      std::fprintf(stderr, "mt-worker: %s\n", std::string(status.message()).c_str());
      return mt::kExitInternal;
    }
  }
  if (mode == "daemon") {
    absl::StatusOr<mt::WorkerCommand> command = mt::ParseWorkerCommand(rest);
    if (command.ok()) return mt::DaemonMain(std::move(*command));
    std::fprintf(stderr, "mt-worker: %s\n", std::string(command.status().message()).c_str());
    return mt::kExitUsage;
  }
  if (mode == "rank" && rest.empty()) return mt::RankMain(/*fd=*/3);
  if (mode == "generate") return mt::GenerateMain(rest);
  if (mode == "evaluate") return mt::EvaluateMain(rest);
  if (mode == "kernels") return mt::KernelsMain(rest);
  if (mode == "version" || mode == "--version") {
    std::printf("mt-worker %s\n", MT_VERSION);
    return mt::kExitOk;
  }
  const bool asked = mode == "help" || mode == "--help";
  std::fputs(kUsage, asked ? stdout : stderr);
  return asked ? mt::kExitOk : mt::kExitUsage;
}
