// Reading a JSON document field by field, each error with its place: what the readers of tokenizer files share.
#pragma once

#include <simdjson.h>

#include <optional>
#include <string>
#include <string_view>

#include "absl/strings/string_view.h"
#include "common/status.h"

namespace mt {

inline absl::string_view View(std::string_view text) { return {text.data(), text.size()}; }

// One object of a document; the parser must outlive it. A field that is null counts as absent.
class JsonFields {
 public:
  // `place`: such as "tokenizer.json: model".
  JsonFields(simdjson::dom::object object, std::string place)
      : object_(object), place_(std::move(place)) {}

  const std::string& place() const { return place_; }
  simdjson::dom::object object() const { return object_; }
  std::string Place(absl::string_view key) const { return absl::StrCat(place_, ".", key); }

  std::optional<simdjson::dom::element> Find(absl::string_view key) const;
  // INVALID_ARGUMENT: absent (the first form only), or of another type.
  absl::StatusOr<std::string> String(absl::string_view key) const;
  absl::StatusOr<std::string> String(absl::string_view key, absl::string_view otherwise) const;
  absl::StatusOr<bool> Bool(absl::string_view key, bool otherwise) const;
  absl::StatusOr<int64_t> Int(absl::string_view key, int64_t otherwise) const;
  absl::StatusOr<simdjson::dom::array> Array(absl::string_view key) const;
  absl::StatusOr<JsonFields> Object(absl::string_view key) const;

 private:
  absl::Status Wrong(absl::string_view key, absl::string_view wanted) const;

  simdjson::dom::object object_;
  std::string place_;
};

// The object that `element` is.
absl::StatusOr<JsonFields> ObjectAt(simdjson::dom::element element, std::string place);

}  // namespace mt
