#include "client/completion.h"

#include <cstdio>

#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "common/spec/presets.h"

namespace mt::client {
namespace {

struct Word {
  std::string text, help;
};
// What may follow one command path ("checkpoint list").
struct Place {
  std::string path;
  std::vector<Word> subcommands, options;
};

// Words that are neither commands nor options and known without asking anyone.
std::vector<Word> ValuesOf(const std::string& path) {
  std::vector<Word> values;
  if (path == "model show") {
    for (const std::string& name : PresetNames()) values.push_back({name, "a published model"});
  }
  return values;
}

void Walk(const CLI::App& app, const std::string& path, std::vector<Place>* places) {
  Place place{.path = path, .subcommands = ValuesOf(path)};
  for (const CLI::App* sub : app.get_subcommands(nullptr))
    place.subcommands.push_back({sub->get_name(), sub->get_description()});
  for (const CLI::Option* option : app.get_options(nullptr)) {
    for (const std::string& name : option->get_lnames())
      place.options.push_back({"--" + name, option->get_description()});
    for (const std::string& name : option->get_snames())
      place.options.push_back({"-" + name, option->get_description()});
  }
  places->push_back(place);
  for (const CLI::App* sub : app.get_subcommands(nullptr))
    Walk(*sub, path.empty() ? sub->get_name() : path + " " + sub->get_name(), places);
}

std::string Quoted(const std::string& text) {
  return absl::StrCat("'", absl::StrReplaceAll(text, {{"'", "'\\''"}}), "'");
}

std::string Words(const Place& place) {
  std::vector<std::string> words;
  for (const Word& word : place.subcommands) words.push_back(word.text);
  for (const Word& word : place.options) words.push_back(word.text);
  return absl::StrJoin(words, " ");
}

// The longest command path that the words before the cursor spell; options and their values are passed over.
std::string Bash(const std::vector<Place>& places, bool zsh) {
  std::string cases;
  std::vector<std::string> paths;
  for (const Place& place : places) {
    absl::StrAppend(&cases, "    ", Quoted(place.path), ") words=", Quoted(Words(place)), " ;;\n");
    paths.push_back(Quoted(place.path));
  }
  std::string script;
  if (zsh) script = "#compdef mtctl\nautoload -U +X bashcompinit && bashcompinit\n";
  absl::StrAppend(
      &script,
      "_mtctl() {\n"
      "  local current=\"${COMP_WORDS[COMP_CWORD]}\" path='' word words next i\n"
      "  for ((i = 1; i < COMP_CWORD; i++)); do\n"
      "    word=\"${COMP_WORDS[i]}\"\n"
      "    next=\"${path:+$path }$word\"\n"
      "    case \"$next\" in\n"
      "      ",
      absl::StrJoin(paths.begin() + 1, paths.end(), "|"),
      ") path=\"$next\" ;;\n"
      "    esac\n"
      "  done\n"
      "  case \"$path\" in\n",
      cases,
      "  esac\n"
      "  COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n"
      "  if [ ${#COMPREPLY[@]} -eq 0 ]; then COMPREPLY=($(compgen -f -- \"$current\")); fi\n"
      "}\n"
      "complete -o filenames -F _mtctl mtctl\n");
  return script;
}

std::string Fish(const std::vector<Place>& places) {
  std::string script;
  for (const Place& place : places) {
    std::string when = "__fish_use_subcommand";
    if (!place.path.empty()) {
      std::vector<std::string> seen;
      for (const auto& word : absl::StrSplit(place.path, ' '))
        seen.push_back(absl::StrCat("__fish_seen_subcommand_from ", word));
      when = absl::StrJoin(seen, "; and ");
    }
    for (const Word& word : place.subcommands) {
      absl::StrAppend(&script, "complete -c mtctl -f -n ", Quoted(when), " -a ", Quoted(word.text),
                      " -d ", Quoted(word.help), "\n");
    }
    for (const Word& word : place.options) {
      const bool is_long = word.text[1] == '-';
      absl::StrAppend(&script, "complete -c mtctl -n ", Quoted(when), is_long ? " -l " : " -s ",
                      word.text.substr(is_long ? 2 : 1), " -d ", Quoted(word.help), "\n");
    }
  }
  return script;
}

}  // namespace

std::string CompletionScript(const CLI::App& app, const std::string& shell) {
  std::vector<Place> places;
  Walk(app, "", &places);
  return shell == "fish" ? Fish(places) : Bash(places, shell == "zsh");
}

void AddCompletionCommand(CLI::App* app, Session* session) {
  static std::string shell;
  CLI::App* command =
      app->add_subcommand("completion", "A script for the shell: source <(mtctl completion bash)");
  command->add_option("SHELL", shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
  command->callback([app, session] {
    session->action = [app]() -> absl::StatusOr<ExitCode> {
      std::fputs(CompletionScript(*app, shell).c_str(), stdout);
      return kExitOk;
    };
  });
}

}  // namespace mt::client
