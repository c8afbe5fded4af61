// What the commands of mtctl share: the flags that every command has, the connection, and how a command ends.
//
// A command's callback only sets `action`; main runs it after the whole line was parsed, prints its error with the command
// to try next, and exits with its code. Data goes to `out`, messages to stderr.
#pragma once

#include <CLI/CLI.hpp>

#include <functional>
#include <memory>
#include <string>

#include "client/client.h"
#include "client/output.h"

namespace mt::client {

class Session {
 public:
  ConnectOptions connect;
  Format format = Format::kTable;
  std::function<absl::StatusOr<ExitCode>()> action;

  // Connects at the first use.
  absl::StatusOr<Client*> client();
  // Drops the connection and looks up the endpoint again: a restarted coordinator may be elsewhere.
  absl::StatusOr<Client*> Reconnect();

  bool json() const { return format == Format::kJson || format == Format::kYaml; }
  bool wide() const { return format == Format::kWide; }
  // To stdout in the session's format, when json() is true.
  void Print(const Json& json) const;

 private:
  std::unique_ptr<Client> client_;
};

// To stderr, one line, unless stderr is not wanted (`--quiet`).
void Note(const std::string& text);
void SetQuiet(bool quiet);

// The command to try next is carried in the status.
absl::Status WithNext(absl::Status status, const std::string& command);
std::string NextOf(const absl::Status& status);

// Adds `-o table|wide|json|yaml` to a command.
void AddFormatOption(CLI::App* command, Session* session);

}  // namespace mt::client
