// Messages as JSON and YAML for people and scripts: field names as in the proto, enums in lower
// case without their prefix, times as RFC 3339, durations as `1m30s`, 64-bit integers as numbers.
// What ParseJobSpec reads of a JobSpec's YAML is the same JobSpec.
#pragma once

#include <string>

#include <google/protobuf/message.h>
#include <nlohmann/json.hpp>

#include "mt/v1/spec.pb.h"

namespace mt {

using Json = nlohmann::ordered_json;

// Unset messages, empty texts, lists and maps, and unspecified enums are left out; numbers and
// booleans are kept. In a JobSpec, zeros that mean "default" are left out too.
Json MessageToJson(const google::protobuf::Message& message);
std::string JsonToYaml(const Json& json);
std::string JobSpecToYaml(const v1::JobSpec& spec);

// "JOB_STATE_RUNNING" of enum JobState -> "running".
std::string EnumToText(const google::protobuf::EnumValueDescriptor& value);

}  // namespace mt
