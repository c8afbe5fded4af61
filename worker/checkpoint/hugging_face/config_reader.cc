#include "worker/checkpoint/hugging_face/config_reader.h"

#include <cmath>

namespace mt {

const ConfigReader::Json* ConfigReader::Get(const char* key) const {
  if (object_ == nullptr) return nullptr;
  const auto it = object_->find(key);
  return it == object_->end() ? nullptr : &*it;
}

std::string ConfigReader::Text(const char* key) const {
  if (!Mentions(key)) return "(not there)";
  constexpr size_t kShown = 80;
  std::string text = Get(key)->dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
  if (text.size() > kShown) text = text.substr(0, kShown) + "...";
  return text;
}

void ConfigReader::Fail(absl::StatusCode code, const char* key, const std::string& what) {
  if (!status_->ok()) return;
  *status_ =
      absl::Status(code, absl::StrCat(path_, ": ", prefix_, key, " = ", Text(key), ": ", what));
}

void ConfigReader::Refuse(const char* key, const std::string& why) {
  Fail(absl::StatusCode::kUnimplemented, key, why);
}

void ConfigReader::Only(const char* key, bool value, const std::string& what) {
  if (Bool(key, value) != value) Refuse(key, absl::StrCat("the engine does not have ", what));
}

std::string ConfigReader::String(const char* key, const std::string& otherwise) {
  if (!Has(key)) return otherwise;
  if (Get(key)->is_string()) return Get(key)->get<std::string>();
  Fail(absl::StatusCode::kInvalidArgument, key, "must be a string");
  return otherwise;
}

bool ConfigReader::Bool(const char* key, bool otherwise) {
  if (!Has(key)) return otherwise;
  if (Get(key)->is_boolean()) return Get(key)->get<bool>();
  Fail(absl::StatusCode::kInvalidArgument, key, "must be true or false");
  return otherwise;
}

double ConfigReader::Number(const char* key, double otherwise) {
  if (!Has(key)) return otherwise;
  if (Get(key)->is_number()) {
    const double value = Get(key)->get<double>();
    if (std::isfinite(value)) return value;
  }
  Fail(absl::StatusCode::kInvalidArgument, key, "must be a number");
  return otherwise;
}

double ConfigReader::Positive(const char* key, double otherwise) {
  const double value = Number(key, otherwise);
  if (value > 0) return value;
  Fail(absl::StatusCode::kInvalidArgument, key, "must be a number greater than 0");
  return 1;
}

int64_t ConfigReader::Size(const char* key, int64_t limit, int64_t otherwise, int64_t least) {
  if (!Has(key)) {
    if (otherwise >= least) return otherwise;
  } else if (Get(key)->is_number_unsigned()) {
    const uint64_t value = Get(key)->get<uint64_t>();
    if (value >= static_cast<uint64_t>(least) && value <= static_cast<uint64_t>(limit))
      return static_cast<int64_t>(value);
  }
  Fail(absl::StatusCode::kInvalidArgument, key,
       absl::StrCat("must be a whole number from ", least, " to ", limit));
  return least;
}

std::vector<int64_t> ConfigReader::Integers(const char* key) {
  std::vector<int64_t> values;
  if (!Has(key)) return values;
  bool good = Get(key)->is_array();
  if (good) {
    for (const Json& value : *Get(key)) {
      good = good && value.is_number_unsigned() && value.get<uint64_t>() <= INT32_MAX;
      if (good) values.push_back(value.get<int64_t>());
    }
  }
  if (good) return values;
  Fail(absl::StatusCode::kInvalidArgument, key, "must be a list of whole numbers");
  return {};
}

std::vector<std::string> ConfigReader::Strings(const char* key) {
  std::vector<std::string> values;
  if (!Has(key)) return values;
  bool good = Get(key)->is_array();
  if (good) {
    for (const Json& value : *Get(key)) {
      good = good && value.is_string();
      if (good) values.push_back(value.get<std::string>());
    }
  }
  if (good) return values;
  Fail(absl::StatusCode::kInvalidArgument, key, "must be a list of strings");
  return {};
}

ConfigReader ConfigReader::Object(const char* key) {
  const Json* value = Has(key) ? Get(key) : nullptr;
  if (value != nullptr && !value->is_object()) {
    Fail(absl::StatusCode::kInvalidArgument, key, "must be an object");
    value = nullptr;
  }
  return ConfigReader(value, path_, absl::StrCat(prefix_, key, "."), status_);
}

}  // namespace mt
