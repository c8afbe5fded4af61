// Sizes on the command line.
#pragma once

#include <CLI/CLI.hpp>

#include <string>

namespace mt::client {

// "4096", "512MB" and "10GiB" become bytes, units being powers of 1024. Unlike CLI11's own, which takes -1 for 2^64 - 1, it wants a
// number above 0, and says what a size looks like.
inline CLI::Validator SizeValue() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        const std::string refusal = text + " is not a size; write bytes, or such as 512MB or 10GiB";
        if (text.find('-') != std::string::npos) return refusal;
        try {
          if (!CLI::AsSizeValue(false)(text).empty() || text == "0") return refusal;
        } catch (const CLI::Error&) {
          return refusal;
        }
        return "";
      },
      "SIZE");
}

}  // namespace mt::client
