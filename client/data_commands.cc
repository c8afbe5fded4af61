#include "client/data_commands.h"

#include "client/data_build_command.h"
#include "client/data_edit_commands.h"
#include "client/data_inspect_commands.h"

namespace mt::client {

void AddDataCommands(CLI::App* app, Session* session) {
  CLI::App* data = app->add_subcommand(
      "data", "Training data: build, look into, check, merge, split and decode it");
  data->require_subcommand(1);
  AddDataBuildCommand(data, session);
  AddDataInspectCommands(data, session);
  AddDataEditCommands(data, session);
}

}  // namespace mt::client
