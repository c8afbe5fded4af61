// How mtctl shows things: tables for people, JSON and YAML for scripts, and numbers with units.
#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/proto_time.h"
#include "common/spec/print.h"
#include "mt/v1/jobs.pb.h"

namespace mt::client {

enum class Format { kTable, kWide, kJson, kYaml };

struct Column {
  std::string title;
  bool wide_only = false;
  bool right = false;  // numbers
};

class Table {
 public:
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}
  // As many cells as columns. An empty cell shows as `-`.
  void AddRow(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  // Columns are as wide as their widest cell, in characters rather than bytes; colour codes count nothing.
  std::string Render(bool wide) const;
  void Print(bool wide) const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

// Colours only when stdout is a terminal, NO_COLOR is unset or empty, TERM is not dumb, and --no-color was not given.
enum class Colour { kNone, kRed, kGreen, kYellow, kBlue, kDim, kBold };
std::string Paint(const std::string& text, Colour colour);
void SetColour(bool wanted);
bool ColourIsOn();

// Without control characters: what a remote side said is shown, never obeyed.
std::string Safe(absl::string_view text);

// JSON is UTF-8; a cut text, or a file's name, need not be.
std::string Utf8(const std::string& text);

size_t DisplayWidth(absl::string_view text);
std::string Bytes(int64_t bytes);          // "1.5 GiB"
std::string Count(double count);           // "12.3k", "1.24M"
std::string Seconds(absl::Duration span);  // "45s", "3m12s", "2h05m", "3d4h"
std::string Age(const google::protobuf::Timestamp& time, absl::Time now);
std::string Number(double value, int digits = 4);  // significant digits
std::string Percent(double share);                 // "37.5%"
// Eight levels, the newest `width` points; flat when all are equal.
std::string Sparkline(const std::vector<float>& values, int width);

std::string StateText(v1::JobState state);  // "running"
std::string StateCell(v1::JobState state);  // painted
bool HasEnded(v1::JobState state);
std::string Layout(const v1::ParallelSpec& parallel);  // "TP2×PP1×DP2"

}  // namespace mt::client
