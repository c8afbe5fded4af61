#include "common/spec/print.h"

#include <charconv>
#include <cmath>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "common/proto_time.h"
#include "common/spec/keys.h"

namespace mt {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

Json Timestamp(const google::protobuf::Timestamp& time) {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", ToTime(time), absl::UTCTimeZone());
}

Json MessageValue(const Message& message) {
  if (message.GetDescriptor()->full_name() == "google.protobuf.Timestamp") {
    return Timestamp(static_cast<const google::protobuf::Timestamp&>(message));
  }
  if (message.GetDescriptor()->full_name() == "google.protobuf.Duration") {
    return absl::FormatDuration(
        ToDuration(static_cast<const google::protobuf::Duration&>(message)));
  }
  return MessageToJson(message);
}

// The value of a field; element `index` of a repeated one when it is not negative.
Json Value(const Message& message, const FieldDescriptor& field, int index) {
  const Reflection& r = *message.GetReflection();
  const bool many = index >= 0;
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return many ? r.GetRepeatedInt32(message, &field, index) : r.GetInt32(message, &field);
    case FieldDescriptor::CPPTYPE_INT64:
      return many ? r.GetRepeatedInt64(message, &field, index) : r.GetInt64(message, &field);
    case FieldDescriptor::CPPTYPE_UINT32:
      return many ? r.GetRepeatedUInt32(message, &field, index) : r.GetUInt32(message, &field);
    case FieldDescriptor::CPPTYPE_UINT64:
      return many ? r.GetRepeatedUInt64(message, &field, index) : r.GetUInt64(message, &field);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return many ? r.GetRepeatedDouble(message, &field, index) : r.GetDouble(message, &field);
    case FieldDescriptor::CPPTYPE_FLOAT: {
      // Through its shortest text, so that 0.1f prints as 0.1.
      const float value =
          many ? r.GetRepeatedFloat(message, &field, index) : r.GetFloat(message, &field);
      double wide = value;
      if (std::isfinite(value)) {
        char text[32];
        const auto end = std::to_chars(text, text + sizeof text, value);
        (void)absl::SimpleAtod(absl::string_view(text, end.ptr - text), &wide);
      }
      return wide;
    }
    case FieldDescriptor::CPPTYPE_BOOL:
      return many ? r.GetRepeatedBool(message, &field, index) : r.GetBool(message, &field);
    case FieldDescriptor::CPPTYPE_ENUM:
      return EnumToText(
          *(many ? r.GetRepeatedEnum(message, &field, index) : r.GetEnum(message, &field)));
    case FieldDescriptor::CPPTYPE_STRING: {
      const std::string text =
          many ? r.GetRepeatedString(message, &field, index) : r.GetString(message, &field);
      if (field.type() == FieldDescriptor::TYPE_BYTES) {
        std::string encoded;
        absl::Base64Escape(text, &encoded);
        return encoded;
      }
      return text;
    }
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return MessageValue(many ? r.GetRepeatedMessage(message, &field, index)
                               : r.GetMessage(message, &field));
  }
  return nullptr;
}

bool LeftOut(const Message& message, const FieldDescriptor& field) {
  const Reflection& r = *message.GetReflection();
  if (field.is_repeated()) return r.FieldSize(message, &field) == 0;
  const bool in_spec = IsSpecMessage(*field.containing_type());
  if (in_spec && !IsSpecKey(field)) return true;
  if (field.has_presence()) return !r.HasField(message, &field);
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      return r.GetString(message, &field).empty();
    case FieldDescriptor::CPPTYPE_ENUM:
      return r.GetEnumValue(message, &field) == 0;
    case FieldDescriptor::CPPTYPE_BOOL:
      return false;
    default:
      if (field.full_name() == "mt.v1.ParallelSpec.zero") {
        return !static_cast<const v1::ParallelSpec&>(message).zero_set() &&
               !r.HasField(message, &field);
      }
      return in_spec && !ZeroIsAValue(field) && !r.HasField(message, &field);
  }
}

// Numbers so that they read back as the same double.
std::string NumberText(double value) {
  if (std::isnan(value)) return ".nan";
  if (std::isinf(value)) return value > 0 ? ".inf" : "-.inf";
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, value);
  return std::string(text, end.ptr);
}

bool IsPlain(const std::string& text) {
  if (text.empty() || !(absl::ascii_isalpha(text[0]) || text[0] == '/' || text[0] == '_'))
    return false;
  for (const char c : text) {
    if (!absl::ascii_isalnum(c) && !absl::StrContains("_./@+-", absl::string_view(&c, 1)))
      return false;
  }
  static const char* const kWords[] = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"};
  for (const char* word : kWords) {
    if (absl::EqualsIgnoreCase(text, word)) return false;
  }
  return true;
}

std::string ScalarText(const Json& json) {
  if (json.is_number_float()) return NumberText(json.get<double>());
  if (json.is_string()) {
    const std::string text = json.get<std::string>();
    if (IsPlain(text)) return text;
  }
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

void AppendYaml(const Json& json, int indent, std::string* out) {
  const std::string pad(indent, ' ');
  const auto child = [&](const Json& value, int deeper) {
    if (value.is_structured() && !value.empty()) {
      *out += "\n";
      AppendYaml(value, deeper, out);
    } else {
      absl::StrAppend(out, " ", ScalarText(value), "\n");
    }
  };
  if (json.is_object() && !json.empty()) {
    for (const auto& [key, value] : json.items()) {
      absl::StrAppend(out, pad, ScalarText(Json(key)), ":");
      child(value, indent + 2);
    }
  } else if (json.is_array() && !json.empty()) {
    for (const Json& value : json) {
      if (value.is_structured() && !value.empty()) {
        // The first line of the item follows the dash.
        std::string item;
        AppendYaml(value, indent + 2, &item);
        item.replace(0, indent + 2, pad + "- ");
        *out += item;
      } else {
        absl::StrAppend(out, pad, "- ", ScalarText(value), "\n");
      }
    }
  } else {
    absl::StrAppend(out, pad, ScalarText(json), "\n");
  }
}

}  // namespace

std::string EnumToText(const google::protobuf::EnumValueDescriptor& value) {
  // The prefix is what the zero value has before UNSPECIFIED.
  const std::string& zero = value.type()->value(0)->name();
  absl::string_view name = value.name();
  if (absl::EndsWith(zero, "UNSPECIFIED")) {
    const absl::string_view prefix =
        absl::string_view(zero).substr(0, zero.size() - strlen("UNSPECIFIED"));
    if (absl::StartsWith(name, prefix)) name.remove_prefix(prefix.size());
  }
  return absl::AsciiStrToLower(name);
}

Json MessageToJson(const Message& message) {
  Json json = Json::object();
  const auto& type = *message.GetDescriptor();
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    if (LeftOut(message, field)) continue;
    if (field.is_map()) {
      // Sorted by key: protobuf's own order is not stable.
      std::map<std::string, Json> entries;
      const Reflection& r = *message.GetReflection();
      for (int k = 0; k < r.FieldSize(message, &field); ++k) {
        const Message& entry = r.GetRepeatedMessage(message, &field, k);
        const Json key = Value(entry, *entry.GetDescriptor()->map_key(), -1);
        entries[key.is_string() ? key.get<std::string>() : key.dump()] =
            Value(entry, *entry.GetDescriptor()->map_value(), -1);
      }
      Json map = Json::object();
      for (auto& [key, value] : entries) map[key] = std::move(value);
      json[field.name()] = std::move(map);
    } else if (field.is_repeated()) {
      Json list = Json::array();
      for (int k = 0; k < message.GetReflection()->FieldSize(message, &field); ++k) {
        list.push_back(Value(message, field, k));
      }
      json[field.name()] = std::move(list);
    } else {
      json[field.name()] = Value(message, field, -1);
    }
  }
  return json;
}

std::string JsonToYaml(const Json& json) {
  std::string out;
  AppendYaml(json, 0, &out);
  return out;
}

std::string JobSpecToYaml(const v1::JobSpec& spec) { return JsonToYaml(MessageToJson(spec)); }

}  // namespace mt
