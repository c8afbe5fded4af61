#include "worker/data/tokenize/json_fields.h"

#include <utility>

namespace mt {

using simdjson::dom::element;

std::optional<element> JsonFields::Find(absl::string_view key) const {
  element value;
  if (object_.at_key(std::string_view(key.data(), key.size())).get(value) != simdjson::SUCCESS ||
      value.is_null())
    return std::nullopt;
  return value;
}

absl::Status JsonFields::Wrong(absl::string_view key, absl::string_view wanted) const {
  return absl::InvalidArgumentError(absl::StrCat(Place(key), " is missing, or is not ", wanted,
                                                 "; is this the file as it was published?"));
}

absl::StatusOr<std::string> JsonFields::String(absl::string_view key) const {
  const std::optional<element> value = Find(key);
  std::string_view text;
  if (!value || value->get(text) != simdjson::SUCCESS) return Wrong(key, "a text");
  return std::string(text);
}

absl::StatusOr<std::string> JsonFields::String(absl::string_view key,
                                               absl::string_view otherwise) const {
  if (!Find(key)) return std::string(otherwise);
  return String(key);
}

absl::StatusOr<bool> JsonFields::Bool(absl::string_view key, bool otherwise) const {
  const std::optional<element> value = Find(key);
  if (!value) return otherwise;
  bool result;
  if (value->get(result) != simdjson::SUCCESS) return Wrong(key, "true or false");
  return result;
}

absl::StatusOr<int64_t> JsonFields::Int(absl::string_view key, int64_t otherwise) const {
  const std::optional<element> value = Find(key);
  if (!value) return otherwise;
  int64_t result;
  if (value->get(result) != simdjson::SUCCESS) return Wrong(key, "a whole number");
  return result;
}

absl::StatusOr<simdjson::dom::array> JsonFields::Array(absl::string_view key) const {
  const std::optional<element> value = Find(key);
  simdjson::dom::array result;
  if (!value || value->get(result) != simdjson::SUCCESS) return Wrong(key, "a list");
  return result;
}

absl::StatusOr<JsonFields> JsonFields::Object(absl::string_view key) const {
  const std::optional<element> value = Find(key);
  if (!value || !value->is_object()) return Wrong(key, "an object");
  return ObjectAt(*value, Place(key));
}

absl::StatusOr<JsonFields> ObjectAt(element value, std::string place) {
  simdjson::dom::object object;
  if (value.get(object) != simdjson::SUCCESS)
    return absl::InvalidArgumentError(absl::StrCat(place, " is not an object"));
  return JsonFields(object, std::move(place));
}

}  // namespace mt
