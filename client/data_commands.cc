#include "client/data_commands.h"

#include "client/data_build_command.h"
#include "client/data_edit_commands.h"
#include "client/data_inspect_commands.h"

namespace mt::client {
namespace {

// After an error that brought no advice of its own. No cluster can help with files.
std::string NextFor(const absl::Status& status, const std::string& command) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kAlreadyExists:
      return absl::StrCat("mtctl data ", command, " --help");
    case absl::StatusCode::kDataLoss:
      return "see docs/guide/data.md; `mtctl data verify PREFIX` checks a dataset";
    default:
      return "see docs/guide/data.md";
  }
}

}  // namespace

void AddDataCommands(CLI::App* app, Session* session) {
  CLI::App* data = app->add_subcommand(
      "data", "Training data: build, look into, check, merge, split and decode it");
  data->require_subcommand(1);
  AddDataBuildCommand(data, session);
  AddDataInspectCommands(data, session);
  AddDataEditCommands(data, session);
  // Runs after the command's own callback.
  data->callback([data, session] {
    session->action = [command = data->get_subcommands().front()->get_name(),
                       action = std::move(session->action)]() -> absl::StatusOr<ExitCode> {
      absl::StatusOr<ExitCode> result = action();
      if (result.ok()) return result;
      return WithNext(result.status(), NextFor(result.status(), command));
    };
  });
}

}  // namespace mt::client
