#define PCRE2_CODE_UNIT_WIDTH 8
#include "worker/data/tokenize/regex_split.h"

#include <pcre2.h>

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "worker/data/tokenize/regex_syntax.h"
#include "worker/data/tokenize/split_behaviour.h"
#include "worker/data/tokenize/unicode_classes.h"

namespace mt {
namespace {

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
  void operator()(pcre2_jit_stack* stack) const { pcre2_jit_stack_free(stack); }
};
using Code = std::unique_ptr<pcre2_code, FreeCode>;
using MatchContext = std::unique_ptr<pcre2_match_context, FreeCode>;
using MatchData = std::unique_ptr<pcre2_match_data, FreeCode>;
using JitStack = std::unique_ptr<pcre2_jit_stack, FreeCode>;

// Steps of backtracking in one match; a sane pattern takes a few per character that it matches.
constexpr uint32_t kStepLimit = 100 * 1000 * 1000;
constexpr size_t kJitStackBytes = 64 << 20;
constexpr uint32_t kHeapLimitKibibytes = 1 << 20;

std::string Message(int error) {
  std::array<PCRE2_UCHAR, 256> text;
  pcre2_get_error_message(error, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

absl::StatusOr<Code> Compile(absl::string_view pattern) {
  int error = 0;
  size_t offset = 0;
  const auto context = pcre2_compile_context_create(nullptr);
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                          PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &error, &offset, context));
  pcre2_compile_context_free(context);
  if (code == nullptr)
    return absl::InvalidArgumentError(
        absl::StrCat("pattern `", pattern, "`, byte ", offset, ": ", Message(error)));
  // Without it (no executable memory, another processor) matching is interpreted: slow, and the same.
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  return code;
}

void AppendUtf8(uint32_t c, std::string* out) {
  if (c < 0x80) {
    out->push_back(static_cast<char>(c));
    return;
  }
  const int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
  constexpr std::array<uint8_t, 4> kLead = {0, 0xc0, 0xe0, 0xf0};
  out->push_back(static_cast<char>(kLead[more] | c >> (6 * more)));
  for (int i = more - 1; i >= 0; --i)
    out->push_back(static_cast<char>(0x80 | (c >> (6 * i) & 0x3f)));
}

// What PCRE2 is shown in place of a character, by code point; 0: itself. PCRE2's Unicode is older than ours (14 in Debian 12), so
// what was assigned since is shown as an old character of the same class, from scripts that no pattern names.
class StandIns {
 public:
  static const StandIns& Get() {
    static const StandIns* const stand_ins = new StandIns;
    return *stand_ins;
  }
  uint32_t For(uint32_t code_point) const {
    const auto at = std::lower_bound(newer_.begin(), newer_.end(), code_point);
    if (at == newer_.end() || *at != code_point) return code_point;
    // In the order of UnicodeClass. Deseret, Tai Tham, Ugaritic, Byzantine music, Osmanya, a tie, Roman coins.
    constexpr std::array<uint32_t, 13> kByClass = {0,       0x10400, 0x10428, 0x1f88,  0x1aa7,
                                                   0x10380, 0x1d167, 0x104a0, 0x10107, 0x1039f,
                                                   0x2040,  0x10190, 0x20};
    return kByClass[UnicodeClasses()[code_point]];
  }

 private:
  StandIns() {
    std::string all;
    std::vector<uint32_t> where;  // code point at each byte of `all`
    for (uint32_t c = 0; c < kCodePoints; ++c) {
      if (UnicodeClasses()[c] == static_cast<uint8_t>(UnicodeClass::kOther)) continue;
      AppendUtf8(c, &all);
      where.resize(all.size(), c);
    }
    const Code unassigned = Compile(R"(\p{Cn})").value();
    const MatchData data(pcre2_match_data_create(1, nullptr));
    size_t at = 0;
    while (pcre2_match(unassigned.get(), reinterpret_cast<PCRE2_SPTR>(all.data()), all.size(), at,
                       PCRE2_NO_UTF_CHECK, data.get(), nullptr) > 0) {
      const size_t* ends = pcre2_get_ovector_pointer(data.get());
      newer_.push_back(where[ends[0]]);
      at = ends[1];
    }
  }
  std::vector<uint32_t> newer_;  // sorted
};

// A text as PCRE2 is to see it: valid UTF-8, of characters that it knows. Usually the text itself.
class Subject {
 public:
  Subject(absl::string_view text, bool stand_ins) : text_(text) {
    const auto* begin = reinterpret_cast<const uint8_t*>(text.data());
    const uint8_t* end = begin + text.size();
    size_t copied = 0;
    for (const uint8_t* p = begin; p < end;) {
      if (*p < 0x80) {
        ++p;
        continue;
      }
      const Utf8Char c = DecodeUtf8(p, end);
      // U+FFFF is of no class, as a byte that is not UTF-8 is to be.
      const uint32_t shown = c.code_point == kNotUtf8 ? 0xffff
                             : stand_ins              ? StandIns::Get().For(c.code_point)
                                                      : c.code_point;
      if (shown != c.code_point) {
        const size_t at = p - begin;
        copy_.append(text.data() + copied, at - copied);
        AppendUtf8(shown, &copy_);
        copied = at + c.bytes;
        changes_.push_back({copy_.size(), copied});
      }
      p += c.bytes;
    }
    if (!changes_.empty()) copy_.append(text.data() + copied, text.size() - copied);
  }

  absl::string_view shown() const { return changes_.empty() ? text_ : copy_; }
  // Where in the text an offset of shown() is; offsets must not fall from call to call.
  size_t InText(size_t offset) {
    while (next_ < changes_.size() && changes_[next_].shown_end <= offset) ++next_;
    if (next_ == 0) return offset;
    return offset - changes_[next_ - 1].shown_end + changes_[next_ - 1].text_end;
  }

 private:
  struct Change {
    size_t shown_end, text_end;
  };
  const absl::string_view text_;
  std::string copy_;
  std::vector<Change> changes_;
  size_t next_ = 0;
};

// What a thread needs to match.
struct Workspace {
  Workspace()
      : context(pcre2_match_context_create(nullptr)),
        stack(pcre2_jit_stack_create(64 << 10, kJitStackBytes, nullptr)),
        data(pcre2_match_data_create(1, nullptr)) {
    pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
    pcre2_set_match_limit(context.get(), kStepLimit);
    pcre2_set_heap_limit(context.get(), kHeapLimitKibibytes);
  }
  MatchContext context;
  JitStack stack;
  MatchData data;
};

bool HasClasses(absl::string_view pattern) {
  for (const char* escape : {"\\p", "\\P", "\\w", "\\W", "\\d", "\\D", "[[:"}) {
    if (absl::StrContains(pattern, escape)) return true;
  }
  return false;
}

class RegexSplit : public PreTokenizer {
 public:
  RegexSplit(const SplitPattern& pattern, Code code)
      : pattern_(pattern),
        code_(std::move(code)),
        stand_ins_(!pattern.literal && HasClasses(pattern.pattern)),
        name_(absl::StrCat("PCRE2 `", pattern.pattern, "`")) {}

  absl::Status Split(absl::string_view text, std::vector<Piece>* pieces) const override {
    thread_local Workspace workspace;
    Subject subject(text, stand_ins_);
    const absl::string_view shown = subject.shown();
    BehaviourWriter writer(pattern_.behaviour, pattern_.invert, pieces);
    std::optional<size_t> last_match_end;
    size_t at = 0;
    while (at <= shown.size()) {
      const auto match = [&](uint32_t options) {
        return pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(shown.data()), shown.size(),
                           at, PCRE2_NO_UTF_CHECK | options, workspace.data.get(),
                           workspace.context.get());
      };
      int found = match(0);
      if (found == PCRE2_ERROR_JIT_STACKLIMIT) found = match(PCRE2_NO_JIT);  // has the heap instead
      if (found == PCRE2_ERROR_NOMATCH) break;
      if (found < 0)
        return absl::ResourceExhaustedError(absl::StrCat(
            name_, ", byte ", subject.InText(at), " of the text: ", Message(found),
            "; the pattern backtracks too much: use possessive quantifiers, or shorter texts"));
      const size_t* ends = pcre2_get_ovector_pointer(workspace.data.get());
      const size_t begin = ends[0], end = ends[1];
      // An empty match where the last one ended is none, and would be found for ever.
      if (begin == end && last_match_end == end) {
        do ++at;
        while (at < shown.size() && (shown[at] & 0xc0) == 0x80);
        continue;
      }
      last_match_end = at = end;
      const auto text_begin = static_cast<uint32_t>(subject.InText(begin));
      writer.Match(text_begin, static_cast<uint32_t>(subject.InText(end)));
    }
    writer.Finish(static_cast<uint32_t>(text.size()));
    return absl::OkStatus();
  }
  absl::string_view name() const override { return name_; }

 private:
  const SplitPattern pattern_;
  const Code code_;
  // A pattern of characters and ranges alone sees every character as it is.
  const bool stand_ins_;
  const std::string name_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PreTokenizer>> NewRegexSplit(const SplitPattern& pattern) {
  std::string translated;
  if (pattern.literal) {
    for (const char c : pattern.pattern) {
      if (absl::ascii_ispunct(c)) translated += '\\';
      translated += c;
    }
  } else {
    MT_ASSIGN_OR_RETURN(translated, OnigurumaToPcre2(pattern.pattern));
  }
  MT_ASSIGN_OR_RETURN(Code code, Compile(translated));
  return std::make_unique<RegexSplit>(pattern, std::move(code));
}

}  // namespace mt
