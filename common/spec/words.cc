#include <algorithm>
#include <cctype>
#include <numeric>

#include "common/spec/yaml.h"

namespace mt {

int EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<int> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    int diagonal = row[0];
    row[0] = static_cast<int>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const int replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

std::string NearestWord(absl::string_view word, const std::vector<std::string>& candidates) {
  if (word.empty() || word.size() > 128) return "";
  std::string lower;
  for (const char c : word)
    lower += c == '-' ? '_' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  std::string nearest;
  int nearest_distance = 1 << 20;
  for (const std::string& candidate : candidates) {
    int distance = EditDistance(lower, candidate);
    // A word that only lacks or adds a part (`layer_count`, `num_layers`) is meant too.
    if (std::min(lower.size(), candidate.size()) >= 3 &&
        (lower.find(candidate) != std::string::npos ||
         candidate.find(lower) != std::string::npos)) {
      distance = std::min(distance, 2);
    }
    if (distance < nearest_distance) {
      nearest_distance = distance;
      nearest = candidate;
    }
  }
  const int limit = std::max(1, static_cast<int>(std::max(lower.size(), nearest.size())) / 3);
  return nearest_distance <= std::max(limit, 2) && nearest_distance < static_cast<int>(lower.size())
             ? nearest
             : "";
}

}  // namespace mt
