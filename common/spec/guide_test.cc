// docs/guide/job-spec.md and examples/ are part of the contract: every key of the proto is in the page with its real default,
// the page has no other keys, and every example resolves and validates.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "common/spec/defaults.h"
#include "common/spec/keys.h"
#include "common/spec/planner.h"
#include "common/spec/print.h"
#include "common/spec/validate.h"
#include "common/spec/yaml.h"

namespace mt {
namespace {

void KeysUnder(const google::protobuf::Descriptor& type, const std::string& path,
               std::vector<std::string>* keys) {
  for (int i = 0; i < type.field_count(); ++i) {
    const auto& field = *type.field(i);
    if (!IsSpecKey(field)) continue;
    const std::string here = path.empty() ? field.name() : path + "." + field.name();
    const bool nested = field.cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_MESSAGE &&
                        !field.is_repeated() && !IsDuration(field);
    if (nested) {
      KeysUnder(*field.message_type(), here, keys);
    } else {
      keys->push_back(here);
    }
  }
}

// The page's rows: key -> default cell.
std::map<std::string, std::string> DocumentedKeys() {
  const auto page = ReadFile(Env::Real(), MT_SOURCE_DIR "/docs/guide/job-spec.md");
  EXPECT_TRUE(page.ok()) << page.status();
  std::map<std::string, std::string> keys;
  for (absl::string_view line : absl::StrSplit(*page, '\n')) {
    const std::vector<std::string> cells = absl::StrSplit(line, " | ");
    if (cells.size() < 3 || !absl::StartsWith(cells[0], "| `")) continue;
    const std::string key = cells[0].substr(3, cells[0].size() - 4);
    EXPECT_TRUE(keys.emplace(key, cells[1]).second) << key << " is there twice";
    EXPECT_GT(cells[2].size(), 3u) << key << " has no meaning";
  }
  return keys;
}

TEST(JobSpecGuide, HasEveryKeyAndNoOther) {
  std::vector<std::string> keys, documented;
  KeysUnder(*v1::JobSpec::descriptor(), "", &keys);
  for (const auto& [key, value] : DocumentedKeys()) documented.push_back(key);
  EXPECT_THAT(documented, testing::UnorderedElementsAreArray(keys));
}

TEST(JobSpecGuide, TellsTheRealDefaults) {
  auto spec = ParseJobSpec(
      "name: a\nmodel: {layers: 2, hidden: 8, heads: 2, ffn: 8}\ndata: {train: /d, tokenizer: "
      "byte, sequence_length: 8}\n"
      "training: {steps: 10, global_batch: 2}\n",
      "minimal");
  ASSERT_TRUE(spec.ok()) << spec.status();
  ASSERT_TRUE(FillDefaults(&*spec).ok());
  const Json resolved = MessageToJson(*spec);
  int compared = 0;
  for (const auto& [key, value] : DocumentedKeys()) {
    if (value.empty() || value[0] != '`') continue;
    const Json* at = &resolved;
    for (const auto& part : absl::StrSplit(key, '.')) {
      ASSERT_TRUE(at->contains(std::string(part)))
          << key << " has a default in the page and none in a resolved spec";
      at = &(*at)[std::string(part)];
    }
    std::string real = JsonToYaml(*at);
    real.pop_back();
    if (real.size() > 1 && real[0] == '"') real = real.substr(1, real.size() - 2);
    EXPECT_EQ("`" + real + "`", value) << key;
    ++compared;
  }
  EXPECT_GT(compared, 20);
}

TEST(Examples, AllResolveValidateAndPlan) {
  int examples = 0;
  for (const auto& entry : std::filesystem::directory_iterator(MT_SOURCE_DIR "/examples")) {
    if (entry.path().extension() != ".yaml") continue;
    ++examples;
    auto spec = ReadJobSpec(Env::Real(), entry.path().string());
    ASSERT_TRUE(spec.ok()) << spec.status();
    ASSERT_TRUE(FillDefaults(&*spec).ok()) << entry.path();
    if (!spec->checkpoint().path().empty())
      spec->mutable_checkpoint()->set_path("/" + spec->checkpoint().path());
    for (v1::DataSource& source : *spec->mutable_data()->mutable_train())
      source.set_prefix("/" + source.prefix());
    const absl::StatusOr<JobPlan> plan = PlanJob(*spec);
    EXPECT_TRUE(plan.ok()) << entry.path() << ": " << plan.status();
    if (plan.ok() && spec->name() == "quickstart") {
      EXPECT_GT(plan->parameters, 5e6);
      EXPECT_LT(plan->parameters, 15e6);
      EXPECT_EQ(plan->ranks.size(), 4u);
    }
  }
  EXPECT_GE(examples, 4);
}

}  // namespace
}  // namespace mt
