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

}  // namespace mt
