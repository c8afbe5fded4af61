#include "common/endpoint_file.h"

#include <nlohmann/json.hpp>

namespace mt {

absl::StatusOr<EndpointFile> ParseEndpointFile(absl::string_view json, absl::string_view path) {
  const auto root =
      nlohmann::json::parse(json.begin(), json.end(), nullptr, /*allow_exceptions=*/false);
  const auto bad = [&](absl::string_view what) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is not an endpoint file: ", what,
                     "; it is written by mt-coordinator, start the cluster again or name another "
                     "with --endpoint"));
  };
  if (!root.is_object()) return bad("it is not a JSON object");
  EndpointFile file;
  std::string problem;
  const auto text = [&](const char* key, std::string* value) {
    const auto found = root.find(key);
    if (found == root.end()) return;
    if (!found->is_string())
      problem = absl::StrCat("`", key, "` is not text");
    else
      *value = found->get<std::string>();
  };
  text("address", &file.address);
  text("ca", &file.ca);
  text("certificate", &file.certificate);
  text("key", &file.key);
  text("metrics", &file.metrics);
  text("cluster_id", &file.cluster_id);
  if (const auto found = root.find("insecure"); found != root.end()) {
    if (!found->is_boolean())
      problem = "`insecure` is not true or false";
    else
      file.insecure = found->get<bool>();
  }
  if (const auto found = root.find("pid"); found != root.end()) {
    if (!found->is_number_integer())
      problem = "`pid` is not a whole number";
    else
      file.pid = found->get<int64_t>();
  }
  if (!problem.empty()) return bad(problem);
  if (file.address.empty()) return bad("it has no `address`");
  if (!file.insecure && (file.ca.empty() || file.certificate.empty() || file.key.empty())) {
    return bad("it needs `ca`, `certificate` and `key`, or `insecure`");
  }
  return file;
}

std::string FormatEndpointFile(const EndpointFile& file) {
  nlohmann::ordered_json root;
  root["address"] = file.address;
  if (file.insecure) {
    root["insecure"] = true;
  } else {
    root["ca"] = file.ca;
    root["certificate"] = file.certificate;
    root["key"] = file.key;
  }
  if (!file.metrics.empty()) root["metrics"] = file.metrics;
  if (file.pid != 0) root["pid"] = file.pid;
  if (!file.cluster_id.empty()) root["cluster_id"] = file.cluster_id;
  return root.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace mt
