// mtctl data build.
#pragma once

#include "client/session.h"

namespace mt::client {

void AddDataBuildCommand(CLI::App* data, Session* session);

// What to write for an option of Megatron's preprocess_data.py; empty: it is none that is called otherwise here.
std::string MeantByMegatron(absl::string_view option);

}  // namespace mt::client
