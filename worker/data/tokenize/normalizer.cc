#include "worker/data/tokenize/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "common/check.h"
#include "worker/data/tokenize/utf8.h"

namespace mt {
namespace {

// No character below this is changed by NFC or composes with what is before it.
constexpr char32_t kFirstCombining = 0x300;
// Above are only characters without decompositions (planes 3 to 16).
constexpr char32_t kTableEnd = 0x30000;

utf8proc_option_t Options(Normalizer::Form form) {
  int options = UTF8PROC_STABLE;
  const bool composed = form == Normalizer::Form::kNfc || form == Normalizer::Form::kNfkc;
  options |= composed ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (form == Normalizer::Form::kNfkc || form == Normalizer::Form::kNfkd)
    options |= UTF8PROC_COMPAT;
  return static_cast<utf8proc_option_t>(options);
}

int ClassOf(utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; }

// `text` is UTF-8. utf8proc_map would do the same, but orders n marks in a row in n^2 steps.
void AppendNormal(absl::string_view text, Normalizer::Form form, std::string* out) {
  constexpr size_t kMostParts = 32;  // of one character; the longest known has 18
  const utf8proc_option_t options = Options(form);
  std::vector<utf8proc_int32_t> parts;
  char32_t c;
  for (size_t at = 0; at < text.size(); at += DecodeUtf8(text, at, &c)) {
    MT_CHECK(DecodeUtf8(text, at, &c) > 0);
    const size_t before = parts.size();
    parts.resize(before + kMostParts);
    int boundary = 0;  // of graphemes, unused
    const utf8proc_ssize_t n = utf8proc_decompose_char(
        static_cast<utf8proc_int32_t>(c), parts.data() + before, kMostParts, options, &boundary);
    MT_CHECK(n > 0 && n <= static_cast<utf8proc_ssize_t>(kMostParts)) << static_cast<uint32_t>(c);
    parts.resize(before + static_cast<size_t>(n));
  }
  for (auto mark = parts.begin(); mark != parts.end();) {
    mark = std::find_if(mark, parts.end(), [](utf8proc_int32_t c) { return ClassOf(c) != 0; });
    const auto end =
        std::find_if(mark, parts.end(), [](utf8proc_int32_t c) { return ClassOf(c) == 0; });
    std::stable_sort(
        mark, end, [](utf8proc_int32_t a, utf8proc_int32_t b) { return ClassOf(a) < ClassOf(b); });
    mark = end;
  }
  const utf8proc_ssize_t n =
      utf8proc_normalize_utf32(parts.data(), static_cast<utf8proc_ssize_t>(parts.size()), options);
  MT_CHECK(n >= 0);
  for (utf8proc_ssize_t i = 0; i < n; ++i) AppendUtf8(static_cast<char32_t>(parts[i]), out);
}

// Characters that NFC may change or join to what is before them (UAX #15: NFC_Quick_Check is No or Maybe, or a combining class):
// those that do not survive alone, those with a class, and those that end a decomposition. Before any other character a text can be
// cut, and its parts normalized alone.
class NfcTable {
 public:
  NfcTable() : changes_(kTableEnd) {
    std::string alone, normal;
    for (char32_t c = kFirstCombining; c < kTableEnd; ++c) {
      if (c >= 0xd800 && c < 0xe000) continue;
      const utf8proc_property_t* property = utf8proc_get_property(static_cast<utf8proc_int32_t>(c));
      if (property->combining_class != 0) changes_[c] = true;
    }
    for (char32_t c = 0xa0; c < kTableEnd; ++c) {
      const utf8proc_property_t* property = utf8proc_get_property(static_cast<utf8proc_int32_t>(c));
      const bool hangul = c >= 0xac00 && c < 0xd7a4;
      if ((c >= 0xd800 && c < 0xe000) || hangul || property->decomp_seqindex == UINT16_MAX)
        continue;
      utf8proc_int32_t parts[8];
      int last_class = 0;
      const utf8proc_ssize_t n = utf8proc_decompose_char(
          static_cast<utf8proc_int32_t>(c), parts, 8, Options(Normalizer::Form::kNfd), &last_class);
      if (n > 1) changes_[static_cast<size_t>(parts[n - 1])] = true;
      alone.clear();
      normal.clear();
      AppendUtf8(c, &alone);
      AppendNormal(alone, Normalizer::Form::kNfc, &normal);
      if (normal != alone) changes_[c] = true;
    }
    // The vowels and the final consonants of Hangul join the syllable before them.
    for (char32_t c = 0x1161; c < 0x1176; ++c) changes_[c] = true;
    for (char32_t c = 0x11a8; c < 0x11c3; ++c) changes_[c] = true;
  }
  bool MayChange(char32_t c) const { return c < kTableEnd && changes_[c]; }

 private:
  std::vector<bool> changes_;
};

const NfcTable& Nfc() {
  static const NfcTable* const table = new NfcTable;
  return *table;
}

size_t AsciiPrefix(absl::string_view text, size_t from) {
  size_t at = from;
  for (; at + 8 <= text.size(); at += 8) {
    uint64_t eight;
    std::memcpy(&eight, text.data() + at, 8);
    if ((eight & 0x8080808080808080u) != 0) break;
  }
  while (at < text.size() && static_cast<signed char>(text[at]) >= 0) ++at;
  return at;
}

// Appends the normal form of `text`, normalizing only around characters that it may change. False, and nothing is appended:
// it is normal as it stands.
bool ToNfc(absl::string_view text, std::string* out) {
  const NfcTable& table = Nfc();
  size_t done = 0;     // everything before is in *out, if anything is
  size_t segment = 0;  // the last place before which the text can be cut
  bool changed = false;
  for (size_t at = 0; at < text.size();) {
    const size_t ascii = AsciiPrefix(text, at);
    if (ascii > at) {
      segment = ascii - 1;
      at = ascii;
      continue;
    }
    char32_t c;
    size_t bytes = DecodeUtf8(text, at, &c);
    if (bytes == 0) {  // nothing joins it
      segment = ++at;
      continue;
    }
    if (!table.MayChange(c)) {
      segment = at;
      at += bytes;
      continue;
    }
    // To the next character before which the text can be cut.
    size_t end = at + bytes;
    while (end < text.size() && (bytes = DecodeUtf8(text, end, &c)) > 0 && table.MayChange(c))
      end += bytes;
    out->append(text.data() + done, segment - done);
    AppendNormal(text.substr(segment, end - segment), Normalizer::Form::kNfc, out);
    changed = true;
    done = segment = at = end;
  }
  if (changed) out->append(text.data() + done, text.size() - done);
  return changed;
}

// The other forms have no short way but for ASCII.
bool ToForm(absl::string_view text, Normalizer::Form form, std::string* out) {
  if (form == Normalizer::Form::kNfc) return ToNfc(text, out);
  if (AsciiPrefix(text, 0) == text.size()) return false;
  for (size_t at = 0; at < text.size();) {
    size_t end = at, bytes = 0;
    char32_t c;
    while (end < text.size() && (bytes = DecodeUtf8(text, end, &c)) > 0) end += bytes;
    if (end > at) AppendNormal(text.substr(at, end - at), form, out);
    if (end < text.size()) out->push_back(text[end++]);
    at = end;
  }
  return true;
}

bool Replace(absl::string_view text, absl::string_view from, absl::string_view to,
             std::string* out) {
  size_t done = 0;
  for (size_t at; (at = text.find(from, done)) != absl::string_view::npos;) {
    out->append(text.data() + done, at - done);
    out->append(to.data(), to.size());
    done = at + from.size();
  }
  if (done > 0) out->append(text.data() + done, text.size() - done);
  return done > 0;
}

}  // namespace

absl::string_view Normalizer::Normalize(absl::string_view text, std::string* buffer) const {
  std::string other;
  for (const Step& step : steps_) {
    other.clear();
    bool changed = false;
    switch (step.kind) {
      case Step::kForm:
        changed = ToForm(text, step.form, &other);
        break;
      case Step::kPrepend:
        changed = !text.empty();
        if (changed) other.append(step.to).append(text.data(), text.size());
        break;
      case Step::kReplace:
        changed = Replace(text, step.from, step.to, &other);
        break;
    }
    if (!changed) continue;
    std::swap(*buffer, other);
    text = *buffer;
  }
  return text;
}

}  // namespace mt
