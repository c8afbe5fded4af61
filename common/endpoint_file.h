// How a coordinator tells clients where it is: a JSON file, mode 0600, written with
// WriteFileAtomically.
//   {"address": "127.0.0.1:7070", "ca": "/abs/ca.pem", "certificate": "/abs/client.pem", "key":
//   "/abs/client-key.pem",
//    "metrics": "http://127.0.0.1:9090/metrics", "pid": 123, "cluster_id": "..."}
// Without TLS: {"address": ..., "insecure": true}. Unknown keys are ignored, so that older clients
// read newer files.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "common/env.h"
#include "common/status.h"

namespace mt {

struct EndpointFile {
  std::string address;
  std::string ca, certificate, key;  // paths
  bool insecure = false;
  std::string metrics;  // URL
  int64_t pid = 0;      // of the coordinator, when it is on this machine
  std::string cluster_id;
};

absl::StatusOr<EndpointFile> ParseEndpointFile(absl::string_view json, absl::string_view path);
std::string FormatEndpointFile(const EndpointFile& file);

}  // namespace mt
