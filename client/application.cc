#include "client/application.h"

#include <cstdio>

#include "absl/strings/str_replace.h"
#include "client/checkpoint_commands.h"
#include "client/cluster_commands.h"
#include "client/completion.h"
#include "client/data_build_command.h"
#include "client/data_commands.h"
#include "client/jobs_commands.h"
#include "client/model_commands.h"
#include "client/submit_commands.h"
#include "client/top.h"
#include "common/spec/yaml.h"

#ifndef MT_VERSION
#error "MT_VERSION is given by client/CMakeLists.txt"
#endif

namespace mt::client {
namespace {

void AddVersion(CLI::App* app, Session* session) {
  CLI::App* version =
      app->add_subcommand("version", "Version of mtctl, and of the coordinator if there is one");
  AddFormatOption(version, session);
  version->callback([session] {
    session->action = [session]() -> absl::StatusOr<ExitCode> {
      Json json = {{"mtctl", MT_VERSION}};
      if (const absl::StatusOr<Client*> client = session->client(); client.ok()) {
        const auto status = (*client)->Call((*client)->cluster(), &v1::Cluster::Stub::Status,
                                            v1::ClusterStatusRequest());
        if (status.ok()) json["coordinator"] = status->version();
      }
      if (session->json()) {
        session->Print(json);
      } else {
        for (const auto& [name, value] : json.items())
          std::printf("%s %s\n", name.c_str(), Safe(value.get<std::string>()).c_str());
      }
      return kExitOk;
    };
  });
}

// What to do next after an error that brought no advice of its own.
std::string DefaultNext(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
      return "start a coordinator with `mtctl dev up`, or name one with --endpoint; `mtctl cluster "
             "status` tells if it answers";
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
      return "use a certificate of this cluster with the role that is needed: --tls-dir DIR, or "
             "MT_ENDPOINT";
    case absl::StatusCode::kDeadlineExceeded:
      return "mtctl cluster status";
    case absl::StatusCode::kResourceExhausted:
      return "mtctl nodes -o wide";
    case absl::StatusCode::kInvalidArgument:
      return "mtctl COMMAND --help; docs/guide/job-spec.md has every key of a job";
    default:
      return "mtctl events";
  }
}

void Complain(const absl::Status& status) {
  std::fprintf(stderr, "mtctl: %s\n", std::string(status.message()).c_str());
  const std::string next = NextOf(status);
  std::fprintf(stderr, "next: %s\n", (next.empty() ? DefaultNext(status) : next).c_str());
}

// The first word that is neither a command nor an option where it stands.
struct Misspelt {
  std::string at;           // the command before it, "mtctl checkpoint"
  std::string word, meant;  // empty: every word is known; nothing is near it
};
Misspelt FindMisspelt(const CLI::App& app, int argc, const char* const* argv) {
  const CLI::App* at = &app;
  Misspelt result{.at = app.get_name()};
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    std::vector<std::string> names;
    if (word.size() > 2 && word.substr(0, 2) == "--") {
      bool known = false;
      const std::string name = word.substr(0, word.find('='));
      for (const CLI::App* app_with : {at, &app}) {
        for (const CLI::Option* option : app_with->get_options()) {
          for (const std::string& known_name : option->get_lnames()) {
            // NearestWord compares with words that are joined by underscores, as keys are.
            names.push_back(absl::StrReplaceAll(known_name, {{"-", "_"}}));
            known = known || "--" + known_name == name;
          }
        }
      }
      if (known) continue;
      result.word = name;
      if (result.at == "mtctl data build") result.meant = MeantByMegatron(name);
      if (!result.meant.empty()) return result;
      const std::string nearest = NearestWord(name.substr(2), names);
      if (!nearest.empty())
        result.meant = absl::StrCat("--", absl::StrReplaceAll(nearest, {{"_", "-"}}));
      return result;
    }
    if (word.empty() || word[0] == '-') continue;
    const CLI::App* found = nullptr;
    for (const CLI::App* sub : at->get_subcommands(nullptr)) {
      names.push_back(sub->get_name());
      if (sub->check_name(word)) found = sub;
    }
    if (names.empty()) continue;
    if (found == nullptr) {
      // The value of an option before it is no command.
      if (argv[i - 1][0] == '-' && i > 1) continue;
      result.word = "command " + word;
      result.meant = NearestWord(word, names);
      return result;
    }
    at = found;
    absl::StrAppend(&result.at, " ", found->get_name());
  }
  return result;
}

}  // namespace

std::unique_ptr<CLI::App> NewApplication(Session* session) {
  auto app = std::make_unique<CLI::App>("mtctl: train large language models on a cluster", "mtctl");
  app->require_subcommand(1);
  app->fallthrough();  // global options may stand after the command
  app->add_option(
      "--endpoint", session->connect.endpoint,
      "Coordinator: an endpoint file or host:port; default MT_ENDPOINT, then the context");
  app->add_option("--context", session->connect.context,
                  "A cluster by the name it was brought up with");
  app->add_option("--tls-dir", session->connect.tls_directory,
                  "With host:port: folder of ca.crt and operator.crt/.key")
      ->type_name("DIR");
  app->add_flag("--insecure", session->connect.insecure, "With host:port: without TLS");
  app->add_flag_callback(
      "--no-color", [] { SetColour(false); }, "Without colours (also NO_COLOR)");
  app->add_flag_callback(
      "-q,--quiet", [] { SetQuiet(true); }, "No messages, only data and errors");
  AddClusterCommands(app.get(), session);
  AddSubmitCommands(app.get(), session);
  AddJobsCommands(app.get(), session);
  AddCheckpointCommands(app.get(), session);
  AddModelCommands(app.get(), session);
  AddDataCommands(app.get(), session);
  AddTopCommand(app.get(), session);
  AddVersion(app.get(), session);
  AddCompletionCommand(app.get(), session);
  app->footer(
      "Exit codes: 0 ok, 1 internal, 2 usage, 3 not found, 4 not allowed, 5 precondition, 6 no "
      "coordinator, 7 deadline, "
      "8 job failed, 130 interrupted (docs/guide/mtctl.md)");
  return app;
}

int RunMtctl(int argc, const char* const* argv) {
  Session session;
  const std::unique_ptr<CLI::App> app = NewApplication(&session);
  try {
    app->parse(argc, argv);
  } catch (const CLI::CallForHelp& e) {
    return app->exit(e);
  } catch (const CLI::ParseError& e) {
    const Misspelt misspelt = FindMisspelt(*app, argc, argv);
    std::fprintf(stderr, "mtctl: %s\n",
                 misspelt.word.empty()
                     ? e.what()
                     : absl::StrCat(misspelt.at == app->get_name() ? "" : misspelt.at + ": ",
                                    "there is no ", misspelt.word)
                           .c_str());
    std::fprintf(stderr, "next: %s\n",
                 misspelt.meant.empty()
                     ? absl::StrCat(misspelt.at, " --help").c_str()
                     : absl::StrCat("did you mean `", misspelt.meant, "`?").c_str());
    return kExitUsage;
  }
  if (!session.action) return kExitInternal;
  const absl::StatusOr<ExitCode> result = session.action();
  if (result.ok()) return *result;
  Complain(result.status());
  return ExitCodeOf(result.status());
}

}  // namespace mt::client
