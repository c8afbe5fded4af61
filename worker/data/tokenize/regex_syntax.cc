#include "worker/data/tokenize/regex_syntax.h"

#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"

namespace mt {
namespace {

// What \s and \w mean in Oniguruma, as the inside of brackets. PCRE2's \s has U+180E too, its \w neither marks nor all connectors,
// but fractions and the like.
constexpr absl::string_view kSpace =
    R"(\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr absl::string_view kWord =
    R"(\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{24b6}-\x{24e9}\x{1f130}-\x{1f149}\x{1f150}-\x{1f169}\x{1f170}-\x{1f189})";
// Outside brackets Oniguruma's \w has six numbers of Latin-1 more: measured with tokenizers 0.22.
const std::string kLoneWord = absl::StrCat(kWord, R"(\x{b2}\x{b3}\x{b9}\x{bc}-\x{be})");

class Translator {
 public:
  explicit Translator(absl::string_view pattern) : in_(pattern) {}

  absl::StatusOr<std::string> Run() {
    while (at_ < in_.size()) MT_RETURN_IF_ERROR(Step());
    return out_;
  }

 private:
  absl::Status Refuse(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(
        "pattern `", in_, "`, byte ", at_, ": ", what,
        " is not supported; write it in another way, or ask for a matcher of its own"));
  }
  char Peek(size_t ahead) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }
  void Copy(size_t bytes) {
    const absl::string_view piece = in_.substr(at_, bytes);
    out_.append(piece.data(), piece.size());
    at_ += piece.size();
  }

  absl::Status Step() {
    switch (in_[at_]) {
      case '\\':
        atom_ = out_.size();
        return Escape(/*in_brackets=*/false);
      case '[':
        atom_ = out_.size();
        return Brackets();
      case '(':
        return Open();
      case ')':
        if (!groups_.empty()) {
          atom_ = groups_.back();
          groups_.pop_back();
        }
        Copy(1);
        return absl::OkStatus();
      case '{':
        return Interval();
      case '?':
      case '*':
      case '+':
      case '|':
        Copy(1);
        return absl::OkStatus();
      default:
        atom_ = out_.size();
        do Copy(1);
        while (at_ < in_.size() && (in_[at_] & 0xc0) == 0x80);
        return absl::OkStatus();
    }
  }

  absl::Status Open() {
    groups_.push_back(out_.size());
    if (Peek(1) != '?') {
      Copy(1);
      return absl::OkStatus();
    }
    // (?i: (?: (?= (?! (?> (?<= (?<! and names pass; the flag m is dot-all in Ruby and something else in PCRE2.
    for (size_t i = 2; absl::ascii_isalpha(Peek(i)) || Peek(i) == '-'; ++i) {
      if (Peek(i) != 'i' && Peek(i) != '-') return Refuse("a flag other than i");
    }
    Copy(2);
    return absl::OkStatus();
  }

  absl::Status Interval() {
    size_t bytes = 1;
    while (absl::ascii_isdigit(Peek(bytes)) || Peek(bytes) == ',') ++bytes;
    if (bytes == 1 || Peek(bytes) != '}') {  // an ordinary brace
      atom_ = out_.size();
      Copy(1);
      return absl::OkStatus();
    }
    ++bytes;
    if (Peek(1) == ',') return Refuse("an interval without its lower bound");
    const bool fixed = !absl::StrContains(in_.substr(at_, bytes), ",");
    if (fixed && Peek(bytes) == '?') return Refuse("{n}?");
    Copy(bytes);
    if (Peek(0) == '+') {
      out_.insert(atom_, "(?:");
      out_ += ')';
      Copy(1);
    }
    return absl::OkStatus();
  }

  absl::Status Escape(bool in_brackets) {
    const char kind = Peek(1);
    const auto replace = [&](absl::string_view text) {
      out_.append(text.data(), text.size());
      at_ += 2;
      return absl::OkStatus();
    };
    const auto set = [&](absl::string_view inside, bool negated) {
      if (in_brackets) return replace(inside);
      return replace(absl::StrCat(negated ? "[^" : "[", inside, "]"));
    };
    switch (kind) {
      case 's':
        return set(kSpace, false);
      case 'w':
        return set(in_brackets ? kWord : kLoneWord, false);
      case 'S':
      case 'W':
        if (in_brackets) return Refuse("\\S or \\W within brackets");
        return set(kind == 'S' ? kSpace : kLoneWord, true);
      case 'u': {
        const absl::string_view digits = in_.substr(std::min(at_ + 2, in_.size()), 4);
        if (digits.size() != 4) return Refuse("\\u without four digits");
        at_ += 4;
        return replace(absl::StrCat("\\x{", digits, "}"));
      }
      case 'h':
      case 'H':
      case 'b':
      case 'B':
      case 'X':
      case 'y':
      case 'Y':
      case 'K':
      case 'k':
      case 'g':
        return Refuse(absl::StrCat("\\", absl::string_view(&kind, 1)));
      case 'p':
      case 'P': {
        const size_t close = in_.find('}', at_);
        if (Peek(2) != '{' || close == absl::string_view::npos) return Refuse("\\p without {…}");
        Copy(close + 1 - at_);
        return absl::OkStatus();
      }
      case 'x':
        if (Peek(2) == '{') {
          const size_t close = in_.find('}', at_);
          Copy(close == absl::string_view::npos ? 2 : close + 1 - at_);
          return absl::OkStatus();
        }
        break;
      default:
        break;
    }
    Copy(1);
    do Copy(1);
    while (at_ < in_.size() && (in_[at_] & 0xc0) == 0x80);
    return absl::OkStatus();
  }

  absl::Status Brackets() {
    Copy(Peek(1) == '^' ? 2 : 1);
    bool first = true;
    while (at_ < in_.size()) {
      const char c = in_[at_];
      if (c == ']' && !first) {
        Copy(1);
        return absl::OkStatus();
      }
      first = false;
      if (c == '[') return Refuse("a set within brackets, or an unescaped [ there");
      if (c == '&' && Peek(1) == '&') return Refuse("&& within brackets");
      if (c == '\\') {
        MT_RETURN_IF_ERROR(Escape(/*in_brackets=*/true));
      } else {
        Copy(1);
      }
    }
    return Refuse("a bracket that is not closed");
  }

  const absl::string_view in_;
  size_t at_ = 0;
  std::string out_;
  size_t atom_ = 0;             // where in out_ what a quantifier would repeat begins
  std::vector<size_t> groups_;  // where in out_ the open groups begin
};

}  // namespace

absl::StatusOr<std::string> OnigurumaToPcre2(absl::string_view pattern) {
  return Translator(pattern).Run();
}

}  // namespace mt
