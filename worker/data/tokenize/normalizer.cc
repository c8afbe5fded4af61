#include "worker/data/tokenize/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>
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

struct CodePointRange {
  char32_t first, last;
};

// Marks that utf8proc orders or composes and Hugging Face does not: its tables (unicode-normalization-alignments 0.1) are older than
// they are, so that to it they are characters that nothing changes. Measured over all code points with tokenizers 0.22.2; and U+11930,
// whose only composition is that new.
constexpr CodePointRange kNewMarks[] = {
    {0x7fd, 0x7fd},     {0x897, 0x89f},     {0x8ca, 0x8d3},     {0x9fe, 0x9fe},
    {0xc3c, 0xc3c},     {0xd3b, 0xd3c},     {0xeba, 0xeba},     {0x1715, 0x1715},
    {0x1abf, 0x1ace},   {0x1df6, 0x1dfa},   {0xa82c, 0xa82c},   {0x105c9, 0x105c9},
    {0x105e4, 0x105e4}, {0x10d24, 0x10d27}, {0x10d69, 0x10d6d}, {0x10eab, 0x10eac},
    {0x10efd, 0x10eff}, {0x10f46, 0x10f50}, {0x10f82, 0x10f85}, {0x11070, 0x11070},
    {0x1133b, 0x1133b}, {0x11383, 0x11383}, {0x11385, 0x11385}, {0x1138e, 0x1138e},
    {0x11391, 0x11391}, {0x113c5, 0x113c5}, {0x113c7, 0x113c8}, {0x113ce, 0x113d0},
    {0x1145e, 0x1145e}, {0x11839, 0x1183a}, {0x11930, 0x11930}, {0x11938, 0x11938},
    {0x1193d, 0x1193e}, {0x11943, 0x11943}, {0x119e0, 0x119e0}, {0x11a34, 0x11a34},
    {0x11a47, 0x11a47}, {0x11a99, 0x11a99}, {0x11d42, 0x11d42}, {0x11d44, 0x11d45},
    {0x11d97, 0x11d97}, {0x11f41, 0x11f42}, {0x16121, 0x16128}, {0x1612f, 0x1612f},
    {0x16d68, 0x16d6a}, {0x16ff0, 0x16ff1}, {0x1e08f, 0x1e08f}, {0x1e130, 0x1e136},
    {0x1e2ae, 0x1e2ae}, {0x1e2ec, 0x1e2ef}, {0x1e4ec, 0x1e4ef}, {0x1e5ee, 0x1e5ef}};

// As DecodeUtf8, of characters that a normal form may change; 0 also for those that it must not, which then pass byte by byte.
size_t DecodeChangeable(absl::string_view text, size_t at, char32_t* c) {
  const size_t bytes = DecodeUtf8(text, at, c);
  if (bytes == 0 || *c < kNewMarks[0].first) return bytes;
  const auto range = std::upper_bound(
      std::begin(kNewMarks), std::end(kNewMarks), *c,
      [](char32_t value, const CodePointRange& range) { return value < range.first; });
  return range != std::begin(kNewMarks) && *c <= std::prev(range)->last ? 0 : bytes;
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
    size_t bytes = DecodeChangeable(text, at, &c);
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
    while (end < text.size() && (bytes = DecodeChangeable(text, end, &c)) > 0 && table.MayChange(c))
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
    while (end < text.size() && (bytes = DecodeChangeable(text, end, &c)) > 0) end += bytes;
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
