// The program, alerts, dashboards and docs/spec/metrics.md agree on every metric name and label.
#include <yaml-cpp/yaml.h>

#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/env.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mt {
namespace {

struct Metric {
  std::string type;
  std::set<std::string> labels;
};

std::string Source(const std::string& path) {
  return ReadFile(Env::Real(), std::string(MT_SOURCE_DIR) + "/" + path).value();
}

// The rows of the tables of docs/spec/metrics.md.
std::map<std::string, Metric> DocumentedMetrics() {
  std::map<std::string, Metric> metrics;
  for (absl::string_view line : absl::StrSplit(Source("docs/spec/metrics.md"), '\n')) {
    const std::vector<std::string> cells = absl::StrSplit(line, '|');
    if (cells.size() < 6) continue;
    const std::string name(absl::StripAsciiWhitespace(cells[1]));
    if (name.rfind("`mt_", 0) != 0) continue;
    Metric metric{std::string(absl::StripAsciiWhitespace(cells[2])), {}};
    for (absl::string_view label : absl::StrSplit(cells[3], ',')) {
      label = absl::StripAsciiWhitespace(label);
      if (!label.empty()) metric.labels.insert(std::string(label));
    }
    metrics[name.substr(1, name.size() - 2)] = metric;
  }
  return metrics;
}

struct Expression {
  std::string where;
  std::string text;
};

void CollectExpressions(const nlohmann::json& json, const std::string& where,
                        std::vector<Expression>* out) {
  if (json.is_object()) {
    for (const auto& [key, value] : json.items()) {
      if ((key == "expr" || key == "query") && value.is_string())
        out->push_back({where, value.get<std::string>()});
      CollectExpressions(
          value, where + (json.contains("title") ? "/" + json["title"].get<std::string>() : ""),
          out);
    }
  } else if (json.is_array()) {
    for (const nlohmann::json& item : json) CollectExpressions(item, where, out);
  }
}

std::vector<Expression> AllExpressions() {
  std::vector<Expression> expressions;
  for (const YAML::Node& group : YAML::Load(Source("deploy/prometheus/alerts.yml"))["groups"]) {
    for (const YAML::Node& rule : group["rules"]) {
      expressions.push_back(
          {"alerts.yml/" + rule["alert"].as<std::string>(), rule["expr"].as<std::string>()});
    }
  }
  const std::string folder = std::string(MT_SOURCE_DIR) + "/deploy/grafana/dashboards";
  const std::vector<std::string> dashboards = Env::Real()->List(folder).value();
  EXPECT_FALSE(dashboards.empty());
  for (const std::string& name : dashboards) {
    const std::string text = ReadFile(Env::Real(), folder + "/" + name).value();
    CollectExpressions(nlohmann::json::parse(text), name, &expressions);
  }
  return expressions;
}

// The documented metric that a series name belongs to: itself, or a histogram's _bucket, _sum or
// _count.
const Metric* Find(const std::map<std::string, Metric>& metrics, std::string name) {
  const auto found = metrics.find(name);
  if (found != metrics.end()) return found->second.type == "histogram" ? nullptr : &found->second;
  for (absl::string_view suffix : {"_bucket", "_sum", "_count"}) {
    absl::string_view base = name;
    if (!absl::ConsumeSuffix(&base, suffix)) continue;
    const auto histogram = metrics.find(std::string(base));
    if (histogram != metrics.end() && histogram->second.type == "histogram")
      return &histogram->second;
  }
  return nullptr;
}

TEST(MetricsNamesTest, TheTableIsWellFormed) {
  const std::map<std::string, Metric> metrics = DocumentedMetrics();
  EXPECT_GT(metrics.size(), 30u);
  for (const auto& [name, metric] : metrics) {
    EXPECT_THAT(metric.type, ::testing::AnyOf("gauge", "counter", "histogram")) << name;
    EXPECT_EQ(metric.type == "counter", name.ends_with("_total")) << name;
    if (metric.type == "histogram") {
      EXPECT_TRUE(name.ends_with("_seconds")) << name;
    }
  }
}

TEST(MetricsNamesTest, EveryExpressionNamesExportedMetricsAndLabels) {
  const std::map<std::string, Metric> metrics = DocumentedMetrics();
  const std::vector<Expression> expressions = AllExpressions();
  EXPECT_GT(expressions.size(), 50u);
  const std::regex series(R"((mt_[a-z0-9_]+)(\{([^}]*)\})?)");
  const std::regex matcher(R"(([a-z_]+)\s*(=~|!~|!=|=))");
  for (const Expression& expression : expressions) {
    int names = 0;
    for (std::sregex_iterator at(expression.text.begin(), expression.text.end(), series), end;
         at != end; ++at) {
      ++names;
      const Metric* metric = Find(metrics, (*at)[1]);
      ASSERT_NE(metric, nullptr) << expression.where << ": " << (*at)[1]
                                 << " is not in docs/spec/metrics.md";
      const std::string selectors = (*at)[3];
      for (std::sregex_iterator label(selectors.begin(), selectors.end(), matcher); label != end;
           ++label) {
        EXPECT_TRUE(metric->labels.contains((*label)[1]))
            << expression.where << ": " << (*at)[1] << " has no label " << (*label)[1];
      }
    }
    EXPECT_TRUE(names > 0 || expression.text.rfind("up{", 0) == 0)
        << expression.where << ": " << expression.text;
  }
}

// Every family is exported by one call that names it, so the source is the list: what it exports in a given moment depends
// on what has happened.
TEST(MetricsNamesTest, TheProgramExportsExactlyTheTable) {
  std::map<std::string, std::string> exported;
  const std::string source = Source("coordinator/telemetry/telemetry.cc");
  const std::regex call(R"re(\.(Gauge|Counter|Histogram)\(\s*"(mt_[a-z0-9_]+)")re");
  for (std::sregex_iterator at(source.begin(), source.end(), call), end; at != end; ++at) {
    std::string type = (*at)[1];
    type[0] = static_cast<char>(type[0] - 'A' + 'a');
    EXPECT_TRUE(exported.emplace((*at)[2], type).second) << (*at)[2] << " is exported twice";
  }
  std::map<std::string, std::string> documented;
  for (const auto& [name, metric] : DocumentedMetrics()) documented[name] = metric.type;
  EXPECT_EQ(exported, documented);
}

TEST(MetricsNamesTest, EveryMetricIsShownSomewhere) {
  std::string all;
  for (const Expression& expression : AllExpressions()) all += expression.text + "\n";
  for (const auto& [name, metric] : DocumentedMetrics()) {
    EXPECT_THAT(all, ::testing::HasSubstr(name)) << "documented, but in no dashboard and no alert";
  }
}

}  // namespace
}  // namespace mt
