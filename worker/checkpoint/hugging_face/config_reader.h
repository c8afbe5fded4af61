// Typed look at a JSON object that was written by somebody else. The first thing that is wrong is kept and told by key and
// value; after it every answer is a default.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/status.h"

namespace mt {

class ConfigReader {
 public:
  using Json = nlohmann::ordered_json;
  // `object` null: nothing is there. `prefix` comes before keys in messages: "rope_scaling.". `status` outlives the reader.
  ConfigReader(const Json* object, std::string path, std::string prefix, absl::Status* status)
      : object_(object), path_(std::move(path)), prefix_(std::move(prefix)), status_(status) {}

  bool IsThere() const { return object_ != nullptr; }
  bool Mentions(const char* key) const { return Get(key) != nullptr; }
  bool IsNull(const char* key) const { return Mentions(key) && Get(key)->is_null(); }
  bool Has(const char* key) const { return Mentions(key) && !Get(key)->is_null(); }
  std::string Text(const char* key) const;  // the value as it is written, shortened

  // `otherwise` where the key is absent or null. INVALID_ARGUMENT for another type.
  std::string String(const char* key, const std::string& otherwise);
  bool Bool(const char* key, bool otherwise);
  double Number(const char* key, double otherwise);
  double Positive(const char* key, double otherwise);  // 0 = must be there
  // A whole number from `least` to `limit`. Without `otherwise` (0) the key must be there.
  int64_t Size(const char* key, int64_t limit, int64_t otherwise = 0, int64_t least = 1);
  std::vector<int64_t> Integers(const char* key);  // empty where absent
  std::vector<std::string> Strings(const char* key);
  ConfigReader Object(const char* key);

  // UNIMPLEMENTED: the key's value is not for this engine.
  void Refuse(const char* key, const std::string& why);
  void Only(const char* key, bool value, const std::string& what);  // refuses the other one

 private:
  const Json* Get(const char* key) const;
  void Fail(absl::StatusCode code, const char* key, const std::string& what);

  const Json* object_;
  const std::string path_, prefix_;
  absl::Status* status_;
};

}  // namespace mt
