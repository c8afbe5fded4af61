#include "client/session.h"

#include <cstdio>
#include <map>

#include "absl/strings/cord.h"

namespace mt::client {
namespace {
bool quiet_notes = false;
constexpr char kNextUrl[] = "mt/next";
}  // namespace

absl::StatusOr<Client*> Session::client() {
  if (client_ == nullptr) return Reconnect();
  return client_.get();
}

absl::StatusOr<Client*> Session::Reconnect() {
  client_.reset();
  MT_ASSIGN_OR_RETURN(client_, Client::Connect(connect));
  return client_.get();
}

void Session::Print(const Json& json) const {
  const std::string text = format == Format::kYaml
                               ? JsonToYaml(json)
                               : json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  std::fwrite(text.data(), 1, text.size(), stdout);
}

void SetQuiet(bool quiet) { quiet_notes = quiet; }

void Note(const std::string& text) {
  if (!quiet_notes) std::fprintf(stderr, "%s\n", text.c_str());
}

absl::Status WithNext(absl::Status status, const std::string& command) {
  if (!status.ok() && NextOf(status).empty()) status.SetPayload(kNextUrl, absl::Cord(command));
  return status;
}

std::string NextOf(const absl::Status& status) {
  const absl::optional<absl::Cord> next = status.GetPayload(kNextUrl);
  if (next.has_value()) return std::string(*next);
  return "";
}

void AddFormatOption(CLI::App* command, Session* session) {
  static const std::map<std::string, Format> kFormats = {{"table", Format::kTable},
                                                         {"wide", Format::kWide},
                                                         {"json", Format::kJson},
                                                         {"yaml", Format::kYaml}};
  // A command whose --output is a file keeps it; -o is the form everywhere.
  const bool taken = command->get_option_no_throw("--output") != nullptr;
  command
      ->add_option_function<std::string>(
          taken ? "-o" : "-o,--output",
          [session](const std::string& name) { session->format = kFormats.at(name); },
          "How to print: table, wide, json or yaml")
      ->check(CLI::IsMember({"table", "wide", "json", "yaml"}))
      ->type_name("FORMAT");
}

}  // namespace mt::client
