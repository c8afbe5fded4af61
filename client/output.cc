#include "client/output.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace mt::client {
namespace {
bool colour_wanted = true;
}  // namespace

void SetColour(bool wanted) { colour_wanted = wanted; }

bool ColourIsOn() {
  const char* no = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  return colour_wanted && (no == nullptr || *no == '\0') &&
         (term == nullptr || std::strcmp(term, "dumb") != 0) && isatty(STDOUT_FILENO) == 1;
}

std::string Paint(const std::string& text, Colour colour) {
  if (colour == Colour::kNone || !ColourIsOn()) return text;
  static const char* const kCodes[] = {"", "31", "32", "33", "34", "2", "1"};
  return absl::StrCat("\033[", kCodes[static_cast<int>(colour)], "m", text, "\033[0m");
}

std::string Safe(absl::string_view text) {
  std::string safe;
  for (const char c : text) {
    const auto u = static_cast<unsigned char>(c);
    safe += u < 0x20 || u == 0x7f ? ' ' : c;
  }
  return safe;
}

std::string Utf8(const std::string& text) {
  return Json::parse(Json(text).dump(-1, ' ', false, Json::error_handler_t::replace))
      .get<std::string>();
}

size_t DisplayWidth(absl::string_view text) {
  size_t width = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\033') {
      while (i < text.size() && text[i] != 'm') ++i;
    } else if ((static_cast<unsigned char>(text[i]) & 0xc0) != 0x80) {
      ++width;
    }
  }
  return width;
}

std::string Table::Render(bool wide) const {
  std::vector<size_t> shown, widths(columns_.size());
  for (size_t c = 0; c < columns_.size(); ++c) {
    if (columns_[c].wide_only && !wide) continue;
    shown.push_back(c);
    widths[c] = DisplayWidth(columns_[c].title);
    for (const auto& row : rows_)
      widths[c] = std::max(widths[c], std::max<size_t>(DisplayWidth(row[c]), 1));
  }
  std::string out;
  const auto line = [&](const auto& cell_of) {
    std::string text;
    for (size_t i = 0; i < shown.size(); ++i) {
      const size_t c = shown[i];
      std::string cell = cell_of(c);
      if (cell.empty()) cell = "-";
      const std::string pad(widths[c] - DisplayWidth(cell), ' ');
      const bool last = i + 1 == shown.size();
      absl::StrAppend(&text,
                      columns_[c].right ? pad + cell
                      : last            ? cell
                                        : cell + pad,
                      last ? "" : "  ");
    }
    absl::StrAppend(&out, text, "\n");
  };
  line([&](size_t c) { return columns_[c].title; });
  for (const auto& row : rows_) line([&](size_t c) { return row[c]; });
  return out;
}

void Table::Print(bool wide) const {
  const std::string text = Render(wide);
  std::fwrite(text.data(), 1, text.size(), stdout);
}

std::string Bytes(int64_t bytes) {
  static const char* const kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  while (std::abs(value) >= 1024 && unit < 5) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? absl::StrFormat("%d B", bytes)
                   : absl::StrFormat("%.*f %s", value < 10 ? 2 : 1, value, kUnits[unit]);
}

std::string Count(double count) {
  static const char* const kUnits[] = {"", "k", "M", "G", "T", "P", "E"};
  int unit = 0;
  while (std::abs(count) >= 1000 && unit < 6) {
    count /= 1000;
    ++unit;
  }
  if (unit == 0) return absl::StrFormat("%.4g", count);
  return absl::StrFormat("%.3g%s", count, kUnits[unit]);
}

std::string Seconds(absl::Duration span) {
  const int64_t s = std::max<int64_t>(absl::ToInt64Seconds(span), 0);
  if (s < 60) return absl::StrFormat("%ds", s);
  if (s < 3600) return absl::StrFormat("%dm%02ds", s / 60, s % 60);
  if (s < 86400) return absl::StrFormat("%dh%02dm", s / 3600, s / 60 % 60);
  return absl::StrFormat("%dd%dh", s / 86400, s / 3600 % 24);
}

std::string Age(const google::protobuf::Timestamp& time, absl::Time now) {
  return time.seconds() == 0 ? "" : Seconds(now - ToTime(time));
}

std::string Number(double value, int digits) { return absl::StrFormat("%.*g", digits, value); }

std::string Percent(double share) { return absl::StrFormat("%.1f%%", share * 100); }

std::string Sparkline(const std::vector<float>& values, int width) {
  static const char* const kLevels[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  const size_t first = values.size() > static_cast<size_t>(width) ? values.size() - width : 0;
  float low = INFINITY, high = -INFINITY;
  for (size_t i = first; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) continue;
    low = std::min(low, values[i]);
    high = std::max(high, values[i]);
  }
  std::string line;
  for (size_t i = first; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) {
      line += "!";
    } else {
      const int level =
          high > low ? static_cast<int>((values[i] - low) / (high - low) * 7.999f) : 0;
      line += kLevels[std::clamp(level, 0, 7)];
    }
  }
  return line;
}

std::string StateText(v1::JobState state) {
  const auto* value = v1::JobState_descriptor()->FindValueByNumber(state);
  return value == nullptr ? "unknown" : EnumToText(*value);
}

std::string StateCell(v1::JobState state) {
  Colour colour = Colour::kYellow;
  if (state == v1::JOB_STATE_RUNNING || state == v1::JOB_STATE_SUCCEEDED) colour = Colour::kGreen;
  if (state == v1::JOB_STATE_FAILED || state == v1::JOB_STATE_RECOVERING) colour = Colour::kRed;
  if (state == v1::JOB_STATE_CANCELLED) colour = Colour::kDim;
  return Paint(StateText(state), colour);
}

bool HasEnded(v1::JobState state) {
  return state == v1::JOB_STATE_SUCCEEDED || state == v1::JOB_STATE_FAILED ||
         state == v1::JOB_STATE_CANCELLED;
}

std::string Layout(const v1::ParallelSpec& p) {
  return absl::StrCat("TP", p.tensor(), "×PP", p.pipeline(), "×DP", p.data());
}

}  // namespace mt::client
