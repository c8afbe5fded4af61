#include "client/model_commands.h"

#include <cstdio>

#include "client/output.h"
#include "common/spec/activation_plan.h"
#include "common/spec/architectures.h"
#include "common/spec/model_traits.h"
#include "common/spec/parameters.h"
#include "common/spec/presets.h"

namespace mt::client {
namespace {

std::string ArchitectureText(const v1::ModelSpec& model) {
  return EnumToText(*v1::Architecture_descriptor()->FindValueByNumber(model.architecture()));
}

absl::StatusOr<v1::ModelSpec> Resolved(const std::string& name) {
  MT_RETURN_IF_ERROR(PresetModel(name).status());
  v1::ModelSpec model;
  model.set_preset(name);
  MT_RETURN_IF_ERROR(ResolveModel(&model));
  return model;
}

Json Summary(const v1::ModelSpec& model) {
  return {{"name", model.preset()},
          {"parameters", ParameterCount(model)},
          {"active_parameters", ActiveParameterCount(model)},
          {"max_positions", model.max_positions()},
          {"architecture", ArchitectureText(model)}};
}

absl::StatusOr<ExitCode> List(Session* session) {
  Json list = Json::array();
  Table table({{"NAME"},
               {"PARAMETERS", false, true},
               {"ACTIVE", false, true},
               {"CONTEXT", false, true},
               {"LAYERS", true, true},
               {"HIDDEN", true, true},
               {"HEADS", true, true},
               {"EXPERTS", true, true},
               {"VOCAB", true, true},
               {"ARCHITECTURE"}});
  for (const std::string& name : PresetNames()) {
    MT_ASSIGN_OR_RETURN(const v1::ModelSpec m, Resolved(name));
    list.push_back(Summary(m));
    table.AddRow({name, Count(static_cast<double>(ParameterCount(m))),
                  HasExperts(m) ? Count(static_cast<double>(ActiveParameterCount(m))) : "",
                  absl::StrCat(m.max_positions()), absl::StrCat(m.layers()),
                  absl::StrCat(m.hidden()), absl::StrCat(m.heads()),
                  HasExperts(m) ? absl::StrCat(m.moe().experts()) : "", absl::StrCat(m.vocab()),
                  ArchitectureText(m)});
  }
  if (session->json()) {
    session->Print(list);
  } else {
    table.Print(session->wide());
    Note("next: mtctl model show NAME; in a job: `model: NAME`");
  }
  return kExitOk;
}

// What all ranks together keep for every parameter, activations apart.
std::string StateText(const v1::ModelSpec& model) {
  const NumberBytes bytes = BytesOf(v1::TrainingSpec::PRECISION_BF16);
  // Weights, gradients, master weights and two moments.
  const int64_t each = bytes.data + bytes.gradient + 3 * bytes.state;
  return absl::StrCat("trained in bf16: ", each, " bytes for each parameter, ",
                      Bytes(each * ParameterCount(model)),
                      " in all, and activations; `mtctl plan` tells what a layout needs");
}

absl::StatusOr<ExitCode> Show(Session* session, const std::string& name) {
  const absl::StatusOr<v1::ModelSpec> model = Resolved(name);
  if (!model.ok()) return WithNext(model.status(), "mtctl model list");
  if (session->json()) {
    Json json = Summary(*model);
    json["model"] = MessageToJson(*model);
    session->Print(json);
    return kExitOk;
  }
  std::string about = absl::StrCat(ParameterCount(*model), " parameters");
  if (HasExperts(*model))
    absl::StrAppend(&about, ", ", ActiveParameterCount(*model), " of them active for a token");
  std::printf("# %s: %s\n# %s\n%s", name.c_str(), about.c_str(), StateText(*model).c_str(),
              JsonToYaml({{"model", MessageToJson(*model)}}).c_str());
  return kExitOk;
}

}  // namespace

void AddModelCommands(CLI::App* app, Session* session) {
  static std::string name;
  name.clear();
  CLI::App* model = app->add_subcommand("model", "Published models that a job may name");
  model->require_subcommand(1);
  CLI::App* list = model->add_subcommand("list", "All of them, with their sizes");
  AddFormatOption(list, session);
  list->callback([session] { session->action = [session] { return List(session); }; });
  CLI::App* show = model->add_subcommand(
      "show", "One of them whole, as the model section of a job that can be changed");
  show->add_option("NAME", name, "As `mtctl model list` writes it")->required();
  AddFormatOption(show, session);
  show->callback([session] { session->action = [session] { return Show(session, name); }; });
}

}  // namespace mt::client
