#include "worker/data/tokenize/unicode_classes.h"

#include <cstring>
#include <iterator>
#include <memory>

namespace mt {
namespace {

constexpr uint32_t kRuns[] = {
#include "worker/data/tokenize/unicode_classes.inc"
};

}  // namespace

// One flat table: text of one script touches a few of its cache lines, and a look-up is one load.
const uint8_t* UnicodeClasses() {
  static const uint8_t* const classes = [] {
    auto* table = new uint8_t[kCodePoints];
    for (size_t i = 0; i < std::size(kRuns); ++i) {
      const uint32_t first = kRuns[i] >> 4;
      const uint32_t last = i + 1 < std::size(kRuns) ? kRuns[i + 1] >> 4 : kCodePoints;
      std::memset(table + first, static_cast<int>(kRuns[i] & 15), last - first);
    }
    return table;
  }();
  return classes;
}

bool IsWhiteSpace(uint32_t code_point) {
  return code_point < kCodePoints &&
         UnicodeClasses()[code_point] == static_cast<uint8_t>(UnicodeClass::kSpace);
}

bool IsWord(uint32_t code_point) {
  if (code_point >= kCodePoints) return false;
  switch (static_cast<UnicodeClass>(UnicodeClasses()[code_point])) {
    case UnicodeClass::kUpper:
    case UnicodeClass::kLower:
    case UnicodeClass::kTitle:
    case UnicodeClass::kModifier:
    case UnicodeClass::kOtherLetter:
    case UnicodeClass::kMark:
    case UnicodeClass::kNumber:
    case UnicodeClass::kConnector:
      return true;
    case UnicodeClass::kSymbol:  // letters in circles and squares are alphabetic
      return (code_point >= 0x24b6 && code_point <= 0x24e9) ||
             (code_point >= 0x1f130 && code_point <= 0x1f149) ||
             (code_point >= 0x1f150 && code_point <= 0x1f169) ||
             (code_point >= 0x1f170 && code_point <= 0x1f189);
    default:
      return code_point == 0x200c || code_point == 0x200d;
  }
}

}  // namespace mt
