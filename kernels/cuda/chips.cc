#include "kernels/cuda/chips.h"

#include <cctype>
#include <cstdlib>

namespace mt::cuda {
namespace {

struct NamedChip {
  const char* first;  // both must occur in the name
  const char* second;
  Chip chip;
};
// The first row that fits counts, so special models come before the plain name.
constexpr NamedChip kChips[] = {
    {"B200", "", {2250e12, 4500e12, 8.0e12}},    {"H200", "NVL", {835e12, 1671e12, 4.8e12}},
    {"H200", "", {989e12, 1979e12, 4.8e12}},     {"GH200", "", {989e12, 1979e12, 4.0e12}},
    {"H100", "PCIe", {756e12, 1513e12, 2.0e12}}, {"H100", "NVL", {835e12, 1671e12, 3.9e12}},
    {"H100", "", {989e12, 1979e12, 3.35e12}},    {"H800", "PCIe", {756e12, 1513e12, 2.0e12}},
    {"H800", "", {989e12, 1979e12, 3.35e12}},    {"H20", "", {148e12, 296e12, 4.0e12}},
    {"A100", "40GB", {312e12, 0, 1.555e12}},     {"A100", "PCI", {312e12, 0, 1.935e12}},
    {"A100", "", {312e12, 0, 2.039e12}},         {"A800", "40GB", {312e12, 0, 1.555e12}},
    {"A800", "", {312e12, 0, 2.039e12}},         {"L40S", "", {362e12, 733e12, 0.864e12}},
};

// `word` stands in `name` and does not go on: "H20" is not in "H200", and "H200" is not in "GH200".
bool Mentions(const std::string& name, const std::string& word) {
  for (size_t at = name.find(word); at != std::string::npos; at = name.find(word, at + 1)) {
    const bool begins = at == 0 || std::isalnum(static_cast<unsigned char>(name[at - 1])) == 0;
    const size_t end = at + word.size();
    const bool ends =
        end == name.size() || std::isdigit(static_cast<unsigned char>(name[end])) == 0;
    if (begins && ends) return true;
  }
  return false;
}

bool Runs(const std::string& architecture, int major, int minor) {
  // nvcc decides: for the devices of the machine that compiles, or for all that it knows.
  if (architecture == "native" || architecture == "all" || architecture == "all-major") return true;
  char* rest = nullptr;
  const long number = std::strtol(architecture.c_str(), &rest, 10);
  const int made_major = static_cast<int>(number / 10), made_minor = static_cast<int>(number % 10);
  std::string kind = rest;
  char variant = 0;
  if (!kind.empty() && kind[0] != '-') {
    variant = kind[0];
    kind.erase(0, 1);
  }
  if (number <= 0) return false;
  const bool exact = made_major == major && made_minor == minor;
  if (variant == 'a') return exact;
  const bool machine_code = made_major == major && minor >= made_minor;
  if (variant == 'f') return machine_code;
  const bool ptx = major > made_major || machine_code;
  if (kind == "-real") return machine_code;
  return ptx;  // "-virtual" is PTX alone, a plain number is both
}

}  // namespace

Chip ChipByName(const std::string& name) {
  for (const NamedChip& known : kChips) {
    if (Mentions(name, known.first) &&
        (known.second[0] == '\0' || name.find(known.second) != std::string::npos))
      return known.chip;
  }
  return {};
}

bool HasCodeFor(const std::string& architectures, int major, int minor) {
  for (size_t begin = 0; begin < architectures.size();) {
    size_t end = architectures.find(',', begin);
    if (end == std::string::npos) end = architectures.size();
    if (Runs(architectures.substr(begin, end - begin), major, minor)) return true;
    begin = end + 1;
  }
  return false;
}

}  // namespace mt::cuda
