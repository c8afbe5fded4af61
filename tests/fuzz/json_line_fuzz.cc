// A line of JSON: what is accepted, and the value, is what nlohmann's parser says, apart from keys that stand twice and NUL bytes.
#include "worker/data/text/json_line.h"

#include <nlohmann/json.hpp>

#include "tests/fuzz/fuzz.h"
#include "worker/data/text/chunk_reader.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string padded(reinterpret_cast<const char*>(data), size);
  const bool nul = padded.find('\0') != std::string::npos;
  padded.append(mt::kTextPadding, '\0');
  const absl::string_view line = absl::string_view(padded).substr(0, size);
  static auto* parser = new mt::JsonLineParser("text");
  const nlohmann::json json = nlohmann::json::parse(line.begin(), line.end(), nullptr, false);
  const bool has = !nul && json.is_object() && json.contains("text");
  absl::string_view text, raw;
  const std::string reason = parser->Text(line, &text);
  const bool twice = reason.find("stands twice") != std::string::npos;
  if (reason.empty()) {
    MT_CHECK(has && json["text"].is_string());
    MT_CHECK(json["text"].get_ref<const std::string&>() == std::string(text));
  } else if (!twice) {
    MT_CHECK(!has || !json["text"].is_string() || reason.find("not a string") != std::string::npos)
        << reason;
  }
  const std::string raw_reason = parser->RawValue(line, &raw);
  if (raw_reason.empty()) {
    MT_CHECK(has && nlohmann::json::parse(raw.begin(), raw.end(), nullptr, false) == json["text"]);
  } else {
    MT_CHECK(!has || raw_reason.find("stands twice") != std::string::npos) << raw_reason;
  }
  return 0;
}
