#include "common/spec/yaml.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <cmath>
#include <limits>
#include <set>
#include <sstream>

#include <google/protobuf/duration.pb.h>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "common/spec/keys.h"
#include "common/spec/presets.h"
#include "common/spec/print.h"

namespace mt {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr size_t kMaxBytes = 1 << 20;
constexpr int kMaxDepth = 32;
constexpr int kMaxAliases = 64;
constexpr size_t kMaxShown = 40;  // of a refused value, in messages

// Protobuf's text must be; what is not would be refused only when it is sent.
bool IsUtf8(absl::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const auto byte = [&](size_t at) -> uint32_t {
      return at < text.size() ? static_cast<unsigned char>(text[at]) : 0;
    };
    const uint32_t first = byte(i);
    const int more = first < 0x80 ? 0 : first < 0xc2 ? -1 : first < 0xe0 ? 1 : first < 0xf0 ? 2 : 3;
    if (more < 0 || first > 0xf4) return false;
    uint32_t code = more == 0 ? first : first & (0x3f >> more);
    for (int j = 1; j <= more; ++j) {
      if ((byte(i + j) & 0xc0) != 0x80) return false;
      code = code << 6 | (byte(i + j) & 0x3f);
    }
    // Overlong forms, surrogates, and beyond the last code point.
    if ((more == 2 && code < 0x800) || (more == 3 && code < 0x10000)) return false;
    if ((code >= 0xd800 && code < 0xe000) || code > 0x10ffff) return false;
    i += more + 1;
  }
  return true;
}

// What a malformed document is refused with; its place is yaml-cpp's own.
class Caps : public YAML::EventHandler {
 public:
  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    if (++aliases_ > kMaxAliases) {
      throw YAML::ParserException(
          mark, absl::StrCat("more than ", kMaxAliases, " aliases; write the values out"));
    }
  }
  void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t,
                const std::string&) override {}
  void OnSequenceStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {
    Enter(mark);
  }
  void OnSequenceEnd() override { --depth_; }
  void OnMapStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t,
                  YAML::EmitterStyle::value) override {
    Enter(mark);
  }
  void OnMapEnd() override { --depth_; }

 private:
  void Enter(const YAML::Mark& mark) {
    if (++depth_ > kMaxDepth) {
      throw YAML::ParserException(mark, absl::StrCat("nested more than ", kMaxDepth, " deep"));
    }
  }
  int depth_ = 0;
  int aliases_ = 0;
};

std::string Shown(absl::string_view text) {
  std::string shown(text.substr(0, kMaxShown));
  for (char& c : shown) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return absl::StrCat("`", shown, text.size() > kMaxShown ? "..." : "", "`");
}

// Reads one document into one message. The path of the key that is being read is in every error.
class Reader {
 public:
  // `place` stands for file, line and column when the text is not a file (an override).
  Reader(absl::string_view file, absl::string_view place) : file_(file), place_(place) {}

  absl::Status ReadMessage(const YAML::Node& node, const std::string& path, Message* message) {
    const Descriptor& type = *message->GetDescriptor();
    if (!node.IsMap()) {
      return Error(node, path,
                   absl::StrCat("expected a mapping with keys such as `",
                                absl::StrJoin(FirstKeys(type), "`, `"), "`, got ", KindOf(node)));
    }
    std::set<std::string> seen;
    for (const auto& entry : node) {
      if (!entry.first.IsScalar()) return Error(entry.first, path, "a key must be a word");
      const std::string key = entry.first.Scalar();
      const FieldDescriptor* field = type.FindFieldByName(key);
      if (field == nullptr || !IsSpecKey(*field)) return UnknownKey(entry.first, path, key, type);
      if (!seen.insert(key).second)
        return Error(entry.first, Join(path, key), "the key is there twice; delete one");
      MT_RETURN_IF_ERROR(ReadField(entry.second, Join(path, key), *field, message, entry.first));
    }
    return absl::OkStatus();
  }

  absl::Status ReadField(const YAML::Node& node, const std::string& path,
                         const FieldDescriptor& field, Message* message, const YAML::Node& key) {
    if (!node.IsDefined() || node.IsNull()) {
      return Error(key, path, "has no value; write one, or delete the key to take the default");
    }
    if (field.is_map()) return ReadMap(node, path, field, message);
    if (field.is_repeated()) return ReadSources(node, path, field, message);
    if (IsDuration(field)) return ReadDuration(node, path, field, message);
    if (field.message_type() == v1::ModelSpec::descriptor() && node.IsScalar())
      return ReadPreset(node, path, field, message);
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      return ReadMessage(node, path, message->GetReflection()->MutableMessage(message, &field));
    }
    return ReadScalar(node, path, field, message);
  }

  absl::Status UnknownKey(const YAML::Node& node, const std::string& path, const std::string& key,
                          const Descriptor& type) {
    const std::vector<std::string> keys = SpecKeysOf(type);
    std::string remedy;
    if (const std::string nearest = NearestWord(key, keys); !nearest.empty()) {
      remedy = absl::StrCat("did you mean `", nearest, "`?");
    } else if (const std::string elsewhere = FoundElsewhere(key); !elsewhere.empty()) {
      remedy = absl::StrCat("did you mean `", elsewhere, "`?");
    } else {
      remedy = absl::StrCat("known here: ", absl::StrJoin(keys, ", "));
    }
    return Error(node, Join(path, key.substr(0, kMaxShown)), absl::StrCat("unknown key; ", remedy));
  }

  absl::Status Error(const YAML::Node& node, const std::string& path,
                     absl::string_view what) const {
    std::string at = place_;
    if (at.empty()) {
      const YAML::Mark mark = node.Mark();
      at = mark.is_null() ? file_ : absl::StrCat(file_, ":", mark.line + 1, ":", mark.column + 1);
    }
    return absl::InvalidArgumentError(
        absl::StrCat(at, ": ", path.empty() ? "" : path + ": ", what));
  }

  static std::string Join(const std::string& path, absl::string_view key) {
    return path.empty() ? std::string(key) : absl::StrCat(path, ".", key);
  }

  // Text that can be kept, shown and sent.
  absl::Status CheckText(const YAML::Node& node, const std::string& path) const {
    MT_RETURN_IF_ERROR(CheckScalar(node, path, "text"));
    if (!IsUtf8(node.Scalar())) return Error(node, path, "text that is not UTF-8");
    for (const char c : node.Scalar()) {
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
        return Error(node, path, "text with a control character");
    }
    return absl::OkStatus();
  }

 private:
  static std::vector<std::string> FirstKeys(const Descriptor& type) {
    std::vector<std::string> keys = SpecKeysOf(type);
    if (keys.size() > 3) keys.resize(3);
    return keys;
  }

  // The path of the one key of this name anywhere in the spec: `lr` at the top is
  // training.optimizer.lr.
  static std::string FoundElsewhere(const std::string& key) {
    std::vector<std::string> found;
    Search(*v1::JobSpec::descriptor(), "", key, &found);
    return found.size() == 1 ? found[0] : "";
  }
  static void Search(const Descriptor& type, const std::string& path, const std::string& key,
                     std::vector<std::string>* found) {
    for (int i = 0; i < type.field_count(); ++i) {
      const FieldDescriptor& field = *type.field(i);
      if (!IsSpecKey(field)) continue;
      const std::string here = Join(path, field.name());
      if (field.name() == key) found->push_back(here);
      if (!field.is_map() && !IsDuration(field) &&
          field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
        Search(*field.message_type(), here, key, found);
      }
    }
  }

  static std::string KindOf(const YAML::Node& node) {
    switch (node.Type()) {
      case YAML::NodeType::Map:
        return "a mapping";
      case YAML::NodeType::Sequence:
        return "a list";
      case YAML::NodeType::Scalar:
        return Shown(node.Scalar());
      default:
        return "nothing";
    }
  }

  absl::Status CheckScalar(const YAML::Node& node, const std::string& path,
                           absl::string_view wanted) const {
    if (!node.IsScalar())
      return Error(node, path, absl::StrCat("expected ", wanted, ", got ", KindOf(node)));
    const std::string& tag = node.Tag();
    if (!tag.empty() && tag != "?" && tag != "!") {
      return Error(
          node, path,
          absl::StrCat("the tag ", Shown(tag), " is not understood; write the plain value"));
    }
    return absl::OkStatus();
  }

  // A plain scalar of that type; in quotes it would be text.
  absl::Status CheckPlain(const YAML::Node& node, const std::string& path,
                          absl::string_view wanted) const {
    MT_RETURN_IF_ERROR(CheckScalar(node, path, wanted));
    if (node.Tag() == "!") {
      return Error(node, path,
                   absl::StrCat("expected ", wanted, ", got the text \"",
                                node.Scalar().substr(0, kMaxShown), "\"; remove the quotes"));
    }
    return absl::OkStatus();
  }

  // Digits with `_` between them, as in 1_000_000. False if a separator is anywhere else.
  static bool DropSeparators(absl::string_view text, std::string* plain) {
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] != '_') {
        plain->push_back(text[i]);
      } else if (i == 0 || i + 1 == text.size() || !absl::ascii_isdigit(text[i - 1]) ||
                 !absl::ascii_isdigit(text[i + 1])) {
        return false;
      }
    }
    return true;
  }

  absl::StatusOr<int64_t> WholeNumber(const YAML::Node& node, const std::string& path, int64_t low,
                                      int64_t high) const {
    MT_RETURN_IF_ERROR(CheckPlain(node, path, "a whole number"));
    const std::string& text = node.Scalar();
    std::string digits;
    bool well_formed = DropSeparators(text, &digits);
    const size_t sign = !digits.empty() && (digits[0] == '-' || digits[0] == '+') ? 1 : 0;
    well_formed = well_formed && digits.size() > sign &&
                  digits.find_first_not_of("0123456789", sign) == std::string::npos;
    if (!well_formed) {
      std::string hint;
      double number = 0;
      if (absl::SimpleAtod(text, &number) && std::floor(number) == number &&
          std::abs(number) < 1e15) {
        hint = absl::StrCat("; write ", static_cast<int64_t>(number));
      }
      return Error(node, path, absl::StrCat("expected a whole number, got ", Shown(text), hint));
    }
    int64_t value = 0;
    if (!absl::SimpleAtoi(digits, &value) || value < low || value > high) {
      return Error(
          node, path,
          absl::StrCat(Shown(text), " is out of range; the limits are ", low, " and ", high));
    }
    return value;
  }

  absl::StatusOr<double> Number(const YAML::Node& node, const std::string& path) const {
    MT_RETURN_IF_ERROR(CheckPlain(node, path, "a number"));
    std::string plain;
    double value = 0;
    const bool digit = node.Scalar().find_first_of("0123456789") != std::string::npos;
    if (!digit || absl::StrContains(absl::AsciiStrToLower(node.Scalar()), "x") ||
        !DropSeparators(node.Scalar(), &plain) || !absl::SimpleAtod(plain, &value)) {
      return Error(node, path, absl::StrCat("expected a number, got ", Shown(node.Scalar())));
    }
    if (!std::isfinite(value))
      return Error(node, path, absl::StrCat(Shown(node.Scalar()), " is out of range"));
    return value;
  }

  // `model: NAME`: that preset, and nothing of what was written before.
  absl::Status ReadPreset(const YAML::Node& node, const std::string& path,
                          const FieldDescriptor& field, Message* message) {
    MT_RETURN_IF_ERROR(CheckText(node, path));
    v1::ModelSpec model;
    model.set_preset(node.Scalar());
    MT_RETURN_IF_ERROR(CheckPreset(node, path, model.preset()));
    message->GetReflection()->MutableMessage(message, &field)->CopyFrom(model);
    return absl::OkStatus();
  }
  absl::Status CheckPreset(const YAML::Node& node, const std::string& path,
                           const std::string& name) const {
    const absl::Status known = PresetModel(name).status();
    return known.ok() || IsFolderPreset(name) ? known : Error(node, path, known.message());
  }

  absl::Status RefuseZero(const YAML::Node& node, const std::string& path,
                          const FieldDescriptor& field, bool zero) const {
    if (!zero || ZeroIsAValue(field)) return absl::OkStatus();
    return Error(node, path, "must not be 0; delete the key to take the default");
  }

  absl::Status ReadScalar(const YAML::Node& node, const std::string& path,
                          const FieldDescriptor& field, Message* message) {
    const Reflection& r = *message->GetReflection();
    switch (field.cpp_type()) {
      case FieldDescriptor::CPPTYPE_INT32: {
        MT_ASSIGN_OR_RETURN(const int64_t value,
                            WholeNumber(node, path, std::numeric_limits<int32_t>::min(),
                                        std::numeric_limits<int32_t>::max()));
        MT_RETURN_IF_ERROR(RefuseZero(node, path, field, value == 0));
        r.SetInt32(message, &field, static_cast<int32_t>(value));
        if (field.full_name() == "mt.v1.ParallelSpec.zero")
          static_cast<v1::ParallelSpec*>(message)->set_zero_set(true);
        return absl::OkStatus();
      }
      case FieldDescriptor::CPPTYPE_INT64: {
        MT_ASSIGN_OR_RETURN(const int64_t value,
                            WholeNumber(node, path, std::numeric_limits<int64_t>::min(),
                                        std::numeric_limits<int64_t>::max()));
        MT_RETURN_IF_ERROR(RefuseZero(node, path, field, value == 0));
        r.SetInt64(message, &field, value);
        return absl::OkStatus();
      }
      case FieldDescriptor::CPPTYPE_DOUBLE: {
        MT_ASSIGN_OR_RETURN(const double value, Number(node, path));
        MT_RETURN_IF_ERROR(RefuseZero(node, path, field, value == 0));
        r.SetDouble(message, &field, value);
        return absl::OkStatus();
      }
      case FieldDescriptor::CPPTYPE_BOOL: {
        MT_RETURN_IF_ERROR(CheckPlain(node, path, "true or false"));
        const std::string& text = node.Scalar();
        if (text != "true" && text != "false") {
          return Error(node, path, absl::StrCat("expected true or false, got ", Shown(text)));
        }
        r.SetBool(message, &field, text == "true");
        return absl::OkStatus();
      }
      case FieldDescriptor::CPPTYPE_ENUM: {
        const std::vector<std::string> texts = EnumTexts(*field.enum_type());
        MT_RETURN_IF_ERROR(
            CheckScalar(node, path, absl::StrCat("one of ", absl::StrJoin(texts, ", "))));
        for (int i = 0; i < field.enum_type()->value_count(); ++i) {
          const auto* value = field.enum_type()->value(i);
          if (value->number() == 0 || EnumToText(*value) != node.Scalar()) continue;
          r.SetEnum(message, &field, value);
          return absl::OkStatus();
        }
        const std::string nearest = NearestWord(node.Scalar(), texts);
        return Error(
            node, path,
            absl::StrCat("unknown value ", Shown(node.Scalar()), "; ",
                         nearest.empty() ? "" : absl::StrCat("did you mean `", nearest, "`? "),
                         "known: ", absl::StrJoin(texts, ", ")));
      }
      case FieldDescriptor::CPPTYPE_STRING: {
        MT_RETURN_IF_ERROR(CheckText(node, path));
        // An empty text takes back what was written before.
        if (field.full_name() == "mt.v1.ModelSpec.preset" && !node.Scalar().empty())
          MT_RETURN_IF_ERROR(CheckPreset(node, path, node.Scalar()));
        r.SetString(message, &field, node.Scalar());
        return absl::OkStatus();
      }
      default:
        return Error(node, path, "cannot be written in YAML");
    }
  }

  absl::Status ReadMap(const YAML::Node& node, const std::string& path,
                       const FieldDescriptor& field, Message* message) {
    if (!node.IsMap())
      return Error(node, path,
                   absl::StrCat("expected a mapping of text to text, got ", KindOf(node)));
    std::set<std::string> seen;
    const Reflection& r = *message->GetReflection();
    r.ClearField(message, &field);
    for (const auto& entry : node) {
      if (!entry.first.IsScalar()) return Error(entry.first, path, "a key must be a word");
      const std::string key = entry.first.Scalar();
      const std::string here = Join(path, key.substr(0, kMaxShown));
      MT_RETURN_IF_ERROR(CheckText(entry.first, path));
      if (!seen.insert(key).second)
        return Error(entry.first, here, "the key is there twice; delete one");
      if (!entry.second.IsDefined() || entry.second.IsNull())
        return Error(entry.first, here, "has no value");
      MT_RETURN_IF_ERROR(CheckText(entry.second, here));
      Message* pair = r.AddMessage(message, &field);
      pair->GetReflection()->SetString(pair, pair->GetDescriptor()->map_key(), key);
      pair->GetReflection()->SetString(pair, pair->GetDescriptor()->map_value(),
                                       entry.second.Scalar());
    }
    return absl::OkStatus();
  }

  // The only lists of a job spec: datasets. `train: PREFIX`, or a list of prefixes and of mappings. What was written before is
  // replaced.
  absl::Status ReadSources(const YAML::Node& node, const std::string& path,
                           const FieldDescriptor& field, Message* message) {
    const Reflection& r = *message->GetReflection();
    r.ClearField(message, &field);
    const auto read_one = [&](const YAML::Node& entry, const std::string& here) -> absl::Status {
      auto* source = static_cast<v1::DataSource*>(r.AddMessage(message, &field));
      if (!entry.IsScalar()) return ReadMessage(entry, here, source);
      MT_RETURN_IF_ERROR(CheckText(entry, here));
      source->set_prefix(entry.Scalar());
      return absl::OkStatus();
    };
    if (!node.IsSequence()) return read_one(node, path);
    int64_t index = 0;
    for (const YAML::Node& entry : node)
      MT_RETURN_IF_ERROR(read_one(entry, absl::StrCat(path, "[", index++, "]")));
    if (index == 0) return Error(node, path, "is an empty list; name a dataset, or delete the key");
    return absl::OkStatus();
  }

  absl::Status ReadDuration(const YAML::Node& node, const std::string& path,
                            const FieldDescriptor& field, Message* message) {
    MT_RETURN_IF_ERROR(CheckScalar(node, path, "a duration such as 30s, 5m or 2h"));
    const absl::StatusOr<absl::Duration> parsed = ParseSpecDuration(node.Scalar());
    if (!parsed.ok()) return Error(node, path, parsed.status().message());
    MT_RETURN_IF_ERROR(RefuseZero(node, path, field, *parsed == absl::ZeroDuration()));
    auto* duration = static_cast<google::protobuf::Duration*>(
        message->GetReflection()->MutableMessage(message, &field));
    duration->set_seconds(absl::ToInt64Seconds(*parsed));
    duration->set_nanos(static_cast<int32_t>((*parsed - absl::Seconds(duration->seconds())) /
                                             absl::Nanoseconds(1)));
    return absl::OkStatus();
  }

  const std::string file_;
  const std::string place_;
};

// yaml-cpp reports what it cannot read by exceptions; they end here.
absl::StatusOr<YAML::Node> LoadOne(absl::string_view text, absl::string_view place) {
  if (text.size() > kMaxBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(place, ": ", text.size(), " bytes; a job spec has at most ", kMaxBytes));
  }
  try {
    std::istringstream events{std::string(text)};
    YAML::Parser parser(events);
    Caps caps;
    int documents = 0;
    while (parser.HandleNextDocument(caps)) {
      if (++documents > 1) {
        return absl::InvalidArgumentError(
            absl::StrCat(place, ": more than one document; put each job in a file of its own"));
      }
    }
    return YAML::Load(std::string(text));
  } catch (const YAML::Exception& e) {
    const std::string at =
        e.mark.is_null() ? "" : absl::StrCat(":", e.mark.line + 1, ":", e.mark.column + 1);
    return absl::InvalidArgumentError(absl::StrCat(place, at, ": not readable as YAML: ", e.msg));
  }
}

absl::Status Override(const std::string& text, v1::JobSpec* spec) {
  const size_t equals = text.find('=');
  const std::string place = absl::StrCat("--set ", text.substr(0, 80));
  if (equals == std::string::npos || equals == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(place, ": expected key=value, such as training.steps=100"));
  }
  const std::vector<std::string> path = absl::StrSplit(text.substr(0, equals), '.');
  Reader reader(place, place);
  // An empty value is an empty text: the way to take a value of the file back.
  const std::string value = text.substr(equals + 1);
  MT_ASSIGN_OR_RETURN(const YAML::Node node, LoadOne(value.empty() ? "\"\"" : value, place));
  Message* message = spec;
  std::string here;
  for (size_t i = 0; i < path.size(); ++i) {
    const FieldDescriptor* field = message->GetDescriptor()->FindFieldByName(path[i]);
    if (field == nullptr || !IsSpecKey(*field)) {
      return reader.UnknownKey(node, here, path[i], *message->GetDescriptor());
    }
    here = Reader::Join(here, path[i]);
    if (i + 1 == path.size()) return reader.ReadField(node, here, *field, message, node);
    if (field->is_map()) {
      // The rest of the path is the entry's key: labels.team=red.
      const std::string key = absl::StrJoin(path.begin() + i + 1, path.end(), ".");
      MT_RETURN_IF_ERROR(reader.CheckText(YAML::Node(key), here));
      MT_RETURN_IF_ERROR(reader.CheckText(node, here));
      auto* map = field->name() == "labels" ? spec->mutable_labels()
                                            : spec->mutable_runtime()->mutable_operations();
      (*map)[key] = node.Scalar();
      return absl::OkStatus();
    }
    if (IsDuration(*field) || field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
      return reader.Error(node, here,
                          absl::StrCat("is a value and has no key `", path[i + 1], "`"));
    }
    message = message->GetReflection()->MutableMessage(message, field);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<absl::Duration> ParseSpecDuration(absl::string_view text) {
  absl::Duration duration;
  if (!absl::ParseDuration(text, &duration) ||
      (!text.empty() && absl::ascii_isdigit(text.back()) && text != "0")) {
    double seconds = 0;
    const std::string hint =
        absl::SimpleAtod(text, &seconds) ? absl::StrCat("; write ", text, "s for seconds") : "";
    return absl::InvalidArgumentError(
        absl::StrCat("expected a duration such as 30s, 5m or 2h, got ", Shown(text), hint));
  }
  if (duration < absl::ZeroDuration() || duration > absl::Hours(24 * 365 * 10)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the duration ", Shown(text), " is out of range"));
  }
  return duration;
}

absl::StatusOr<v1::JobSpec> ParseJobSpec(absl::string_view text, absl::string_view file_name,
                                         const std::vector<std::string>& overrides) {
  MT_ASSIGN_OR_RETURN(const YAML::Node root, LoadOne(text, file_name));
  v1::JobSpec spec;
  if (!root.IsDefined() || root.IsNull()) {
    return absl::InvalidArgumentError(absl::StrCat(
        file_name, ": is empty; see examples/ and docs/guide/job-spec.md for what goes in"));
  }
  try {
    MT_RETURN_IF_ERROR(Reader(file_name, "").ReadMessage(root, "", &spec));
    for (const std::string& override : overrides) MT_RETURN_IF_ERROR(Override(override, &spec));
  } catch (const YAML::Exception& e) {
    return absl::InvalidArgumentError(absl::StrCat(file_name, ": not readable as YAML: ", e.msg));
  }
  return spec;
}

absl::StatusOr<v1::JobSpec> ReadJobSpec(Env* env, const std::string& path,
                                        const std::vector<std::string>& overrides) {
  MT_ASSIGN_OR_RETURN(const std::string text, ReadFile(env, path, kMaxBytes));
  return ParseJobSpec(text, path, overrides);
}

}  // namespace mt
