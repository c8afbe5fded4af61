// For tests and fuzz targets: what `gzip` and `zstd` make of a text.
#pragma once

#include <string>

namespace mt {

// One member.
std::string Gzip(const std::string& text);
// One frame with a checksum. With a `window_log` it tells of that window and of no length.
std::string Zstd(const std::string& text, int window_log = 0);

}  // namespace mt
