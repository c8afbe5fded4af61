#include "common/random.h"

#include <sys/random.h>

#include <random>

#include "common/check.h"

namespace mt {
namespace {

class RealRandom : public Random {
 public:
  uint64_t Next() override {
    uint64_t value = 0;
    MT_CHECK(getrandom(&value, sizeof(value), 0) == sizeof(value));
    return value;
  }
};

class SeededRandom : public Random {
 public:
  explicit SeededRandom(uint64_t seed) : engine_(seed) {}
  uint64_t Next() override { return engine_(); }

 private:
  std::mt19937_64 engine_;
};

}  // namespace

std::string Random::Id(int length) {
  static constexpr char kAlphabet[] = "abcdefghijklmnopqrstuvwxyz0123456789";
  std::string id;
  for (int i = 0; i < length; ++i) id += kAlphabet[Next() % 36];
  return id;
}

Random* Random::Real() {
  static auto* random = new RealRandom;
  return random;
}

std::unique_ptr<Random> NewSeededRandom(uint64_t seed) {
  return std::make_unique<SeededRandom>(seed);
}

}  // namespace mt
