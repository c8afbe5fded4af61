#include "common/worker_command.h"

#include "absl/strings/numbers.h"
#include "common/disk_size.h"

namespace mt {

std::vector<std::string> FormatWorkerCommand(const WorkerCommand& command) {
  std::vector<std::string> arguments = {"daemon",
                                        "--node",
                                        command.node,
                                        "--coordinator",
                                        command.coordinator,
                                        "--state",
                                        command.state_folder};
  const auto add = [&](const char* flag, const std::string& value) {
    if (!value.empty()) arguments.insert(arguments.end(), {flag, value});
  };
  add("--slots", command.slots == 0 ? "" : std::to_string(command.slots));
  add("--interface", command.interface);
  add("--tls", command.tls_folder);
  add("--bundle-digest", command.bundle_digest);
  add("--listen", command.listen);
  add("--data-cache",
      command.data_cache_bytes == 0 ? "" : std::to_string(command.data_cache_bytes));
  if (command.tls_folder.empty()) arguments.push_back("--insecure");
  return arguments;
}

absl::StatusOr<WorkerCommand> ParseWorkerCommand(const std::vector<std::string>& arguments) {
  WorkerCommand command;
  bool insecure = false;
  std::string slots, data_cache;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& flag = arguments[i];
    if (flag == "--insecure") {
      insecure = true;
      continue;
    }
    std::string* const value = flag == "--node"            ? &command.node
                               : flag == "--coordinator"   ? &command.coordinator
                               : flag == "--state"         ? &command.state_folder
                               : flag == "--slots"         ? &slots
                               : flag == "--interface"     ? &command.interface
                               : flag == "--tls"           ? &command.tls_folder
                               : flag == "--bundle-digest" ? &command.bundle_digest
                               : flag == "--listen"        ? &command.listen
                               : flag == "--data-cache"    ? &data_cache
                                                           : nullptr;
    if (value == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("unknown flag \"", flag,
                       "\"; a daemon takes --node, --coordinator, --state, --slots, --interface, "
                       "--tls or --insecure, "
                       "--bundle-digest, --listen and --data-cache"));
    }
    if (++i == arguments.size())
      return absl::InvalidArgumentError(absl::StrCat(flag, " needs a value"));
    *value = arguments[i];
  }
  if (!slots.empty() &&
      (!absl::SimpleAtoi(slots, &command.slots) || command.slots < 1 || command.slots > 1024)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--slots is \"", slots, "\"; write a whole number from 1 to 1024"));
  }
  if (!data_cache.empty()) {
    const auto bytes = ParseDiskSize(data_cache);
    if (!bytes.ok())
      return absl::InvalidArgumentError(absl::StrCat("--data-cache: ", bytes.status().message()));
    command.data_cache_bytes = *bytes;
  }
  if (command.node.empty() || command.coordinator.empty() || command.state_folder.empty()) {
    return absl::InvalidArgumentError("a daemon needs --node, --coordinator and --state");
  }
  if (command.tls_folder.empty() != insecure) {
    return absl::InvalidArgumentError(insecure ? "--tls and --insecure exclude each other"
                                               : "--tls FOLDER is missing (it holds ca.crt, "
                                                 "node.crt, node.key); --insecure does without");
  }
  return command;
}

}  // namespace mt
