#include "client/checkpoint_commands.h"

#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "client/hugging_face_commands.h"
#include "client/local_programs.h"
#include "client/temporary_folder.h"
#include "common/env.h"

namespace mt::client {
namespace {

struct Options {
  std::string checkpoint, to = ".", prompt, backend, data, share;
  int64_t batches = 8, sequence_length = 0;
  bool digest = false;
  int tokens = 100;
  double temperature = 0.8, top_p = 1;
  int64_t top_k = 0;
  uint64_t seed = 1;
};

std::string StateOf(const v1::CheckpointInfo& info) {
  const auto* value = v1::CheckpointInfo::State_descriptor()->FindValueByNumber(info.state());
  return value == nullptr ? "unknown" : EnumToText(*value);
}

absl::StatusOr<ExitCode> List(Session* session, const Options& o) {
  MT_ASSIGN_OR_RETURN(Client * client, session->client());
  v1::ListCheckpointsRequest request;
  request.set_job_id(o.checkpoint);
  const auto list = client->Call(client->checkpoints(), &v1::Checkpoints::Stub::List, request);
  if (!list.ok()) return WithNext(list.status(), "mtctl list");
  if (session->json()) {
    Json json = Json::array();
    for (const v1::CheckpointInfo& info : list->checkpoints()) json.push_back(MessageToJson(info));
    session->Print(json);
    return kExitOk;
  }
  if (list->checkpoints_size() == 0) {
    Note(absl::StrCat(o.checkpoint, " has no committed checkpoint yet"));
    return kExitOk;
  }
  Table table({{"STEP", false, true},
               {"STATE"},
               {"LOSS", false, true},
               {"FILES", false, true},
               {"SIZE", false, true},
               {"AGE", false, true},
               {"WHERE"},
               {"DIGEST", true},
               {"REASON"}});
  for (const v1::CheckpointInfo& info : list->checkpoints()) {
    const v1::CheckpointManifest& m = info.manifest();
    table.AddRow(
        {absl::StrCat(m.step()),
         Paint(StateOf(info),
               info.state() == v1::CheckpointInfo::STATE_BAD ? Colour::kRed : Colour::kGreen),
         Number(m.loss()), absl::StrCat(m.files_size()), Bytes(m.total_bytes()),
         Age(m.created(), absl::Now()), Safe(info.location()), Safe(m.weights_digest()),
         Safe(info.reason())});
  }
  table.Print(session->wide());
  return kExitOk;
}

absl::StatusOr<ExitCode> Show(Session* session, const Options& o) {
  MT_ASSIGN_OR_RETURN(const v1::CheckpointRef reference, ParseCheckpoint(o.checkpoint));
  MT_ASSIGN_OR_RETURN(Client * client, session->client());
  const auto info = client->Call(client->checkpoints(), &v1::Checkpoints::Stub::Show, reference);
  if (!info.ok())
    return WithNext(info.status(), absl::StrCat("mtctl checkpoint list ", reference.job_id()));
  const v1::CheckpointManifest& m = info->manifest();
  if (o.digest) {
    if (session->json()) {
      session->Print(Json{{"digest", m.weights_digest()}});
    } else {
      std::printf("%s\n", Safe(m.weights_digest()).c_str());
    }
    return kExitOk;
  }
  if (session->json()) {
    session->Print(MessageToJson(*info));
    return kExitOk;
  }
  std::printf("job              %s\nstep             %lld\nstate            %s%s\n",
              Safe(m.job_id()).c_str(), static_cast<long long>(m.step()), StateOf(*info).c_str(),
              info->reason().empty() ? "" : (": " + Safe(info->reason())).c_str());
  std::printf("consumed         %lld sequences\nloss             %s\nlayout written   %s\n",
              static_cast<long long>(m.consumed_samples()), Number(m.loss(), 6).c_str(),
              Layout(m.spec().parallel()).c_str());
  std::printf("size             %s in %d files\ndigest           %s\n",
              Bytes(m.total_bytes()).c_str(), m.files_size(), Safe(m.weights_digest()).c_str());
  std::printf("parent           %s\nwhere            %s\n\n",
              m.parent_step() < 0 ? "none" : absl::StrCat("step ", m.parent_step()).c_str(),
              Safe(info->location()).c_str());
  Table table({{"FILE"}, {"SIZE", false, true}, {"XXH3-128"}, {"NODES"}});
  for (const v1::CheckpointFile& file : m.files()) {
    std::string nodes;
    for (const std::string& node : file.nodes())
      absl::StrAppend(&nodes, nodes.empty() ? "" : ",", Safe(node));
    table.AddRow({Safe(file.name()), Bytes(file.size_bytes()), Safe(file.xxh3_128()), nodes});
  }
  table.Print(session->wide());
  return kExitOk;
}

absl::StatusOr<ExitCode> Verify(Session* session, const Options& o) {
  MT_ASSIGN_OR_RETURN(const v1::CheckpointRef reference, ParseCheckpoint(o.checkpoint));
  MT_ASSIGN_OR_RETURN(Client * client, session->client());
  const auto answer = client->Call(client->checkpoints(), &v1::Checkpoints::Stub::Verify, reference,
                                   absl::Hours(1));
  if (!answer.ok())
    return WithNext(answer.status(), absl::StrCat("mtctl checkpoint list ", reference.job_id()));
  if (session->json()) {
    session->Print(MessageToJson(*answer));
  } else {
    Table table({{"FILE"}, {"NODE"}, {"RESULT"}, {"MESSAGE"}});
    for (const auto& file : answer->files()) {
      table.AddRow({Safe(file.name()), Safe(file.node()),
                    file.ok() ? Paint("ok", Colour::kGreen) : Paint("BAD", Colour::kRed),
                    Safe(file.message())});
    }
    table.Print(session->wide());
  }
  if (answer->ok()) return kExitOk;
  return WithNext(absl::DataLossError(absl::StrCat(o.checkpoint, " is not whole")),
                  absl::StrCat("mtctl checkpoint list ", reference.job_id()));
}

absl::StatusOr<ExitCode> Pull(Session* session, const Options& o) {
  MT_ASSIGN_OR_RETURN(const v1::CheckpointRef reference, ParseCheckpoint(o.checkpoint));
  std::error_code error;
  const std::string root = std::filesystem::absolute(o.to, error).lexically_normal().string();
  MT_ASSIGN_OR_RETURN(const std::string folder, PullCheckpoint(session, reference, root));
  if (session->json()) {
    session->Print(Json{{"folder", folder}});
  } else {
    std::printf("%s\n", folder.c_str());
  }
  Note(absl::StrCat("next: mtctl generate ", folder, " --prompt \"Once upon a time\""));
  return kExitOk;
}

// The folder that a command's checkpoint names: itself, or where a job's is pulled to.
absl::StatusOr<std::string> FolderOf(Session* session, const Options& o,
                                     std::unique_ptr<TemporaryFolder>* temporary) {
  std::string folder = o.checkpoint;
  if (!Exists(Env::Real(), JoinPath(folder, "manifest.json"))) {
    if (folder.find('/') != std::string::npos) {
      return absl::NotFoundError(absl::StrCat(
          folder,
          " holds no manifest.json; name a checkpoint's own folder (…/step-00000100) or a job"));
    }
    MT_ASSIGN_OR_RETURN(const v1::CheckpointRef reference, ParseCheckpoint(o.checkpoint));
    MT_ASSIGN_OR_RETURN(*temporary, TemporaryFolder::Create("mtctl-checkpoint"));
    MT_ASSIGN_OR_RETURN(folder, PullCheckpoint(session, reference, (*temporary)->path()));
  }
  return folder;
}

absl::StatusOr<ExitCode> Evaluate(Session* session, const Options& o) {
  MT_ASSIGN_OR_RETURN(const std::string worker, FindProgram("mt-worker"));
  std::unique_ptr<TemporaryFolder> temporary;
  std::string folder = o.checkpoint;
  if (!absl::StartsWith(folder, "hf:")) {
    MT_ASSIGN_OR_RETURN(folder, FolderOf(session, o, &temporary));
  }
  std::vector<std::string> command = {worker, "evaluate", absl::StrCat("--checkpoint=", folder),
                                      absl::StrCat("--batches=", o.batches)};
  if (!o.data.empty()) command.push_back(absl::StrCat("--data=", o.data));
  if (!o.share.empty()) command.push_back(absl::StrCat("--share=", o.share));
  if (o.sequence_length > 0)
    command.push_back(absl::StrCat("--sequence-length=", o.sequence_length));
  if (!o.backend.empty()) command.push_back(absl::StrCat("--backend=", o.backend));
  if (!session->json()) {
    MT_ASSIGN_OR_RETURN(const int code, Run(command));
    return static_cast<ExitCode>(code);
  }
  command.push_back("--json=1");
  const absl::StatusOr<std::string> text = Capture(command);
  if (!text.ok()) return absl::FailedPreconditionError(text.status().message());
  session->Print(Json::parse(*text, nullptr, false));
  return kExitOk;
}

absl::StatusOr<ExitCode> Generate(Session* session, const Options& o) {
  MT_ASSIGN_OR_RETURN(const std::string worker, FindProgram("mt-worker"));
  std::unique_ptr<TemporaryFolder> temporary;
  MT_ASSIGN_OR_RETURN(const std::string folder, FolderOf(session, o, &temporary));
  std::vector<std::string> command = {worker,
                                      "generate",
                                      absl::StrCat("--checkpoint=", folder),
                                      absl::StrCat("--prompt=", o.prompt),
                                      absl::StrCat("--max-tokens=", o.tokens),
                                      absl::StrCat("--temperature=", o.temperature),
                                      absl::StrCat("--top-k=", o.top_k),
                                      absl::StrCat("--top-p=", o.top_p),
                                      absl::StrCat("--seed=", o.seed)};
  if (!o.backend.empty()) command.push_back(absl::StrCat("--backend=", o.backend));
  MT_ASSIGN_OR_RETURN(const int code, Run(command));
  return static_cast<ExitCode>(code);
}

CLI::App* Named(CLI::App* parent, const std::string& name, const std::string& help, Options* o,
                const std::string& what) {
  CLI::App* command = parent->add_subcommand(name, help);
  command
      ->add_option(
          what, o->checkpoint,
          what == "JOB" ? "Job id" : "Job id for its newest committed checkpoint, or JOB@STEP")
      ->required();
  return command;
}

}  // namespace

absl::StatusOr<v1::CheckpointRef> ParseCheckpoint(const std::string& text) {
  const std::vector<std::string> parts = absl::StrSplit(text, '@');
  v1::CheckpointRef reference;
  int64_t step = -1;
  if (parts[0].empty() || parts.size() > 2 ||
      (parts.size() == 2 && (!absl::SimpleAtoi(parts[1], &step) || step < 0))) {
    return absl::InvalidArgumentError(
        absl::StrCat("checkpoint `", text, "`: use JOB or JOB@STEP, such as tiny-x1y2@200"));
  }
  reference.set_job_id(parts[0]);
  reference.set_step(step);
  return reference;
}

void AddCheckpointCommands(CLI::App* app, Session* session) {
  static Options o;  // CLI11 keeps references to it
  o = Options();
  CLI::App* checkpoint =
      app->add_subcommand("checkpoint", "A job's checkpoints")->require_subcommand(1);
  CLI::App* list = Named(checkpoint, "list", "Committed checkpoints, newest first", &o, "JOB");
  AddFormatOption(list, session);
  list->callback([session] { session->action = [session] { return List(session, o); }; });

  CLI::App* show = Named(checkpoint, "show", "What one is made of", &o, "JOB[@STEP]");
  show->add_flag(
      "--digest", o.digest,
      "Only the digest of all weights and states; equal runs have equal ones, under any layout");
  AddFormatOption(show, session);
  show->callback([session] { session->action = [session] { return Show(session, o); }; });

  CLI::App* verify = Named(checkpoint, "verify", "Read every copy and compare sizes and digests",
                           &o, "JOB[@STEP]");
  AddFormatOption(verify, session);
  verify->callback([session] { session->action = [session] { return Verify(session, o); }; });

  CLI::App* pull = Named(checkpoint, "pull",
                         "Bring one to this machine, checked; prints its folder", &o, "JOB[@STEP]");
  pull->add_option("--to", o.to, "Goes to DIR/JOB/step-NNNNNNNN")
      ->capture_default_str()
      ->type_name("DIR");
  AddFormatOption(pull, session);
  pull->callback([session] { session->action = [session] { return Pull(session, o); }; });

  AddHuggingFaceCommands(checkpoint, session);
  CLI::App* evaluate = app->add_subcommand(
      "evaluate", "Loss and perplexity on held-out data of a checkpoint, on this machine");
  evaluate
      ->add_option("JOB[@STEP]|DIR|hf:DIR", o.checkpoint,
                   "Job (its newest checkpoint is pulled), a checkpoint's folder, or a Hugging "
                   "Face folder")
      ->required();
  evaluate
      ->add_option("--data", o.data, "Of the data; by default what the checkpoint's job holds out")
      ->type_name("PREFIX");
  evaluate
      ->add_option("--share", o.share,
                   "Of the job's data: validation (default) or test; not with --data")
      ->check(CLI::IsMember({"validation", "test"}))
      ->excludes("--data");
  evaluate->add_option("--batches", o.batches, "Global batches")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  evaluate
      ->add_option("--sequence-length", o.sequence_length,
                   "Tokens of a sequence; by default the job's")
      ->check(CLI::Range(1, 1 << 24));
  evaluate->add_option("--backend", o.backend, "cpu, reference or cuda");
  AddFormatOption(evaluate, session);
  evaluate->callback([session] { session->action = [session] { return Evaluate(session, o); }; });

  CLI::App* generate =
      app->add_subcommand("generate", "Sample text from a checkpoint, on this machine");
  generate
      ->add_option("JOB[@STEP]|DIR", o.checkpoint,
                   "Job (its newest checkpoint is pulled), or a checkpoint's folder")
      ->required();
  generate->add_option("--prompt", o.prompt, "Text to go on from")->required();
  generate->add_option("--max-tokens", o.tokens, "New tokens at most")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  generate->add_option("--temperature", o.temperature, "0 = always the most likely token")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  generate->add_option("--top-k", o.top_k, "Draw from the K most likely tokens; 0 = all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  generate
      ->add_option("--top-p", o.top_p,
                   "Draw from the most likely tokens that together reach probability P")
      ->check(CLI::Range(1e-9, 1.0))
      ->capture_default_str();
  generate->add_option("--seed", o.seed, "The same seed gives the same text")
      ->capture_default_str();
  generate->add_option("--backend", o.backend, "cpu or reference");
  generate->callback([session] { session->action = [session] { return Generate(session, o); }; });
}

}  // namespace mt::client
