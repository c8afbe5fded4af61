#include "kernels/cuda/gemm_cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>

namespace mt::cuda {
namespace {

constexpr const char* kMagic = "mt-gemm 1|";
constexpr size_t kAlgorithmDigits = 8 * 16;
constexpr size_t kChecksumDigits = 16;
constexpr size_t kLargestFile = 16u << 20;  // bytes; nothing of ours grows so large

uint64_t Fnv1a(const std::string& text) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const unsigned char c : text) hash = (hash ^ c) * 0x100000001b3u;
  return hash;
}

std::string Hex(uint64_t value) {
  char digits[17];
  std::snprintf(digits, sizeof digits, "%016llx", static_cast<unsigned long long>(value));
  return digits;
}

bool ParseHex(const std::string& digits, uint64_t* value) {
  *value = 0;
  for (const char c : digits) {
    const char* all = "0123456789abcdef";
    const char* at = c != '\0' ? std::strchr(all, c) : nullptr;
    if (at == nullptr) return false;
    *value = *value << 4 | static_cast<uint64_t>(at - all);
  }
  return true;
}

std::string Line(const std::string& name, const GemmAlgorithm& algorithm) {
  std::string line = kMagic + name + "|";
  for (const uint64_t word : algorithm) line += Hex(word);
  return line + "|" + Hex(Fnv1a(line));
}

// "ENVIRONMENT|KEY" and the algorithm of a line that is whole.
bool ParseLine(const std::string& line, std::string* name, GemmAlgorithm* algorithm) {
  const size_t magic = std::strlen(kMagic), tail = 1 + kAlgorithmDigits + 1 + kChecksumDigits;
  if (line.size() < magic + tail || line.compare(0, magic, kMagic) != 0) return false;
  const size_t digits = line.size() - tail + 1, last_bar = digits + kAlgorithmDigits;
  if (line[digits - 1] != '|' || line[last_bar] != '|') return false;
  uint64_t checksum = 0;
  if (!ParseHex(line.substr(last_bar + 1), &checksum) ||
      checksum != Fnv1a(line.substr(0, last_bar)))
    return false;
  for (size_t i = 0; i < algorithm->size(); ++i) {
    if (!ParseHex(line.substr(digits + i * 16, 16), &(*algorithm)[i])) return false;
  }
  *name = line.substr(magic, digits - 1 - magic);
  return true;
}

std::string Plain(std::string text) {
  for (char& c : text) {
    if (c == '|' || c == '\n' || c == '\r') c = '/';
  }
  return text;
}

// Held while the file is read and replaced; without it (a read-only folder) nothing is written either.
class FileLock {
 public:
  explicit FileLock(const std::string& path)
      : file_(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {
    if (file_ >= 0 && flock(file_, LOCK_EX) != 0) {
      close(file_);
      file_ = -1;
    }
  }
  ~FileLock() {
    if (file_ >= 0) close(file_);
  }
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;
  bool held() const { return file_ >= 0; }

 private:
  int file_;
};

}  // namespace

GemmCache::GemmCache(std::string path, std::string environment)
    : path_(std::move(path)), environment_(Plain(std::move(environment))), entries_(Read()) {}

std::optional<GemmAlgorithm> GemmCache::Find(const std::string& key) const {
  const auto it = entries_.find(NameOf(Plain(key)));
  if (it == entries_.end()) return std::nullopt;
  return it->second;
}

void GemmCache::ReadAgain() {
  Entries all = Read();
  all.merge(entries_);
  entries_ = std::move(all);
}

GemmAlgorithm GemmCache::Store(const std::string& key, const GemmAlgorithm& algorithm,
                               const std::optional<GemmAlgorithm>& unfit, std::string* error) {
  const std::string name = NameOf(Plain(key));
  error->clear();
  if (unfit.has_value() && entries_.count(name) > 0 && entries_[name] == *unfit)
    entries_.erase(name);
  const FileLock lock(path_ + ".lock");
  if (!lock.held()) {
    *error = path_ + ".lock: " + std::strerror(errno);
    return entries_.emplace(name, algorithm).first->second;
  }
  Entries all = Read();
  for (const auto& entry : entries_) all.insert(entry);
  auto [it, changed] = all.emplace(name, algorithm);
  if (!changed && unfit.has_value() && it->second == *unfit) {
    it->second = algorithm;
    changed = true;
  }
  const GemmAlgorithm counts = it->second;
  if (changed) *error = Write(all);
  entries_ = std::move(all);
  return counts;
}

GemmCache::Entries GemmCache::Read() const {
  Entries entries;
  std::ifstream file(path_);
  std::string line, name;
  GemmAlgorithm algorithm;
  size_t bytes = 0;
  while (std::getline(file, line) && (bytes += line.size()) < kLargestFile) {
    if (ParseLine(line, &name, &algorithm)) entries.emplace(name, algorithm);
  }
  return entries;
}

std::string GemmCache::Write(const Entries& entries) const {
  const std::string temporary = path_ + ".new." + std::to_string(getpid());
  std::FILE* file = std::fopen(temporary.c_str(), "we");
  if (file == nullptr) return temporary + ": " + std::strerror(errno);
  bool whole = true;
  for (const auto& [name, algorithm] : entries)
    whole = std::fputs((Line(name, algorithm) + "\n").c_str(), file) >= 0 && whole;
  whole = std::fflush(file) == 0 && fsync(fileno(file)) == 0 && whole;
  whole = std::fclose(file) == 0 && whole;
  if (whole && std::rename(temporary.c_str(), path_.c_str()) == 0) return "";
  const std::string reason = std::strerror(errno);
  std::remove(temporary.c_str());
  return path_ + ": " + reason;
}

}  // namespace mt::cuda
