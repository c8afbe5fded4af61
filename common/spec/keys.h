// Which fields of a JobSpec are keys of its YAML, and which of their values can be written. Shared
// by parser and printer.
#pragma once

#include <string>
#include <vector>

#include <google/protobuf/descriptor.h>

namespace mt {

// False for fields that the parser sets itself (parallel.zero_set).
bool IsSpecKey(const google::protobuf::FieldDescriptor& field);
// True if zero is a value of its own; otherwise an unset number means "default" and a written zero
// is refused.
bool ZeroIsAValue(const google::protobuf::FieldDescriptor& field);
std::vector<std::string> SpecKeysOf(const google::protobuf::Descriptor& message);
// "cosine" of KIND_COSINE; without the unspecified value.
std::vector<std::string> EnumTexts(const google::protobuf::EnumDescriptor& type);
bool IsDuration(const google::protobuf::FieldDescriptor& field);
bool IsSpecMessage(const google::protobuf::Descriptor& message);

}  // namespace mt
