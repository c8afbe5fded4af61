// kernels_conformance_test [--slow] REFERENCE_LIBRARY [BACKEND_LIBRARY...]: every case of the table on
// every library, against the first library in float64. The same inputs in every run, unless other ones are asked for.
//
//   --slow                    the cases with very many rows as well, and only they
//   MT_CONFORMANCE_SEED=<n>   other inputs; `random` draws a seed, and prints it
//   MT_CONFORMANCE_RANDOM=<n> instead of the table, n cases of every operation with random sizes
//   MT_EMULATOR_SEED=random   draws the emulator's order of threads from the seed, and prints it
//
// A library that declines (no device) is skipped; if none is left the program exits with 77.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <random>

#include "kernels/abi/operation_names.h"
#include "kernels/conformance/runner.h"

namespace mt::conformance {
namespace {

uint64_t seed = 0;
const mt_backend* reference = nullptr;

// Whether a backend's threads are the processor's, so that `open` may be called again with another number of them.
bool HasThreads(const mt_backend* backend) {
  mt_device_info info = {};
  info.struct_size = sizeof info;
  backend->probe(&info);
  const bool emulated = std::strcmp(backend->name, "emulated") == 0;
  return !emulated && (info.capabilities & MT_CAPABILITY_HOST_MEMORY) != 0;
}

bool SameBits(const Values& a, const Values& b) {
  for (size_t t = 0; t < a.size(); ++t) {
    if (!a[t].empty() && std::memcmp(a[t].data(), b[t].data(), a[t].size() * sizeof(double)) != 0)
      return false;
  }
  return true;
}

class ConformanceTest : public ::testing::Test {
 public:
  ConformanceTest(const mt_backend* backend, const Case& item, int32_t dtype)
      : backend_(backend), case_(item), dtype_(dtype) {}

  void TestBody() override {
    const Values values = MakeValues(case_, dtype_, seed);
    Values first;
    // With another number of threads the same bits; on a device, the second time.
    const bool has_threads = HasThreads(backend_);
    const std::vector<int> runs = backend_ == reference ? std::vector<int>{1}  // plain loops
                                  : has_threads         ? std::vector<int>{1, 2, 3, 2}
                                                        : std::vector<int>{0, 0};
    for (const int threads : runs) {
      if (has_threads) {
        ASSERT_EQ(backend_->open(0, threads), MT_OK) << backend_->error_message();
      }
      Problem problem(backend_, case_, dtype_, values);
      if (!problem.supported()) GTEST_SKIP() << backend_->error_message();
      ASSERT_EQ(problem.Run(), MT_OK) << backend_->error_message();
      const Values actual = problem.Read();
      EXPECT_EQ(problem.CheckGuards(), "");
      if (first.empty()) {
        first = actual;
        EXPECT_EQ(Compare(case_, dtype_, values, actual, Expected(values)), "")
            << "MT_CONFORMANCE_SEED=" << seed << " repeats it";
      } else {
        EXPECT_TRUE(SameBits(first, actual))
            << "other bits with " << threads << " threads; MT_CONFORMANCE_SEED=" << seed;
      }
    }
  }

 private:
  Values Expected(const Values& values) {
    Problem exact(reference, case_, MT_F64, values);
    EXPECT_TRUE(exact.supported()) << reference->error_message();
    if (!exact.supported()) return values;
    EXPECT_EQ(exact.Run(), MT_OK) << reference->error_message();
    return exact.Read();
  }

  const mt_backend* backend_;
  const Case& case_;
  int32_t dtype_;
};

// A NaN in the first input is not hidden: where the reference gives NaN, so does the backend (it
// may spread further).
class NotANumberTest : public ::testing::Test {
 public:
  NotANumberTest(const mt_backend* backend, const Case& item, int32_t dtype)
      : backend_(backend), case_(item), dtype_(dtype) {}

  void TestBody() override {
    Values values = MakeValues(case_, dtype_, seed);
    for (size_t t = 0; t < values.size(); ++t) {
      const Tensor& tensor = case_.tensors[t];
      if ((tensor.element != Element::kData && tensor.element != Element::kWide) ||
          tensor.role == Role::kOutput || tensor.alias >= 0 || values[t].empty())
        continue;
      values[t][values[t].size() / 2] = NAN;
      break;
    }
    Problem exact(reference, case_, MT_F64, values), problem(backend_, case_, dtype_, values);
    if (!problem.supported()) GTEST_SKIP() << backend_->error_message();
    ASSERT_EQ(exact.Run(), MT_OK) << reference->error_message();
    ASSERT_EQ(problem.Run(), MT_OK) << backend_->error_message();
    const Values expected = exact.Read(), actual = problem.Read();
    for (size_t t = 0; t < expected.size(); ++t) {
      if (case_.tensors[t].role == Role::kUnspecified) continue;
      for (size_t i = 0; i < expected[t].size(); ++i) {
        ASSERT_TRUE(!std::isnan(expected[t][i]) || std::isnan(actual[t][i]))
            << case_.tensors[t].name << "[" << i << "] = " << actual[t][i] << " hides a NaN";
      }
    }
  }

 private:
  const mt_backend* backend_;
  const Case& case_;
  int32_t dtype_;
};

// Several ranks share a host: a backend that was told to use one thread starts no others. Runs before any other test.
class OneThreadTest : public ::testing::Test {
 public:
  OneThreadTest(const mt_backend* backend, const std::vector<Case>& cases)
      : backend_(backend), cases_(cases) {}

  void TestBody() override {
    const auto threads = [] {
      return std::distance(std::filesystem::directory_iterator("/proc/self/task"),
                           std::filesystem::directory_iterator());
    };
    const auto before = threads();
    ASSERT_EQ(backend_->open(0, 1), MT_OK) << backend_->error_message();
    for (const Case& item : cases_) {
      if (item.name != "matmul/m300_n520_k40_nt_strided" &&
          item.name != "attention_backward/t130_b2_h8_k2_d20_causal")
        continue;
      for (const int32_t dtype : {MT_F32, MT_BF16}) {
        Problem problem(backend_, item, dtype, MakeValues(item, dtype, seed));
        if (!problem.supported()) continue;
        ASSERT_EQ(problem.Run(), MT_OK) << backend_->error_message();
        EXPECT_EQ(threads(), before) << item.name << " started threads";
      }
    }
  }

 private:
  const mt_backend* backend_;
  const std::vector<Case>& cases_;
};

// A library either runs an operation or says that it lacks it; the table must reach each one.
class CoverageTest : public ::testing::Test {
 public:
  explicit CoverageTest(const std::vector<Case>& cases) : cases_(cases) {}
  void TestBody() override {
    for (int32_t operation = 1; operation < MT_OP_END; ++operation) {
      ASSERT_NE(mt_operation_name(operation), nullptr) << operation << " has no name";
      bool found = false;
      for (const Case& item : cases_) found |= item.operation == operation;
      EXPECT_TRUE(found) << mt_operation_name(operation) << " has no case";
    }
  }

 private:
  const std::vector<Case>& cases_;
};

template <typename Make>
void Register(const std::string& suite, const std::string& name, const Make& make) {
  ::testing::RegisterTest(suite.c_str(), name.c_str(), nullptr, nullptr, __FILE__, __LINE__,
                          [=]() -> ::testing::Test* { return make(); });
}

void RegisterCases(const mt_backend* backend, const std::vector<Case>& cases) {
  if (HasThreads(backend)) {
    Register(backend->name, "OneThreadMeansOne",
             [=, &cases] { return new OneThreadTest(backend, cases); });
  }
  for (const int32_t dtype : {MT_F32, MT_BF16, MT_F64}) {
    if (backend != reference && dtype == MT_F64) continue;
    const std::string suite = std::string(backend->name) + "_" + TypeName(dtype);
    for (const Case& item : cases) {
      if (std::find(item.types.begin(), item.types.end(), dtype) == item.types.end()) continue;
      Register(suite, item.name, [=, &item] { return new ConformanceTest(backend, item, dtype); });
      if (backend == reference || item.slow) continue;
      Register(suite + "_nan", item.name,
               [=, &item] { return new NotANumberTest(backend, item, dtype); });
    }
  }
}

uint64_t Number(const char* variable, uint64_t otherwise) {
  const char* given = std::getenv(variable);
  return given != nullptr ? std::strtoull(given, nullptr, 10) : otherwise;
}

std::vector<Case> ChooseCases(bool slow) {
  if (const uint64_t each = Number("MT_CONFORMANCE_RANDOM", 0); each > 0)
    return RandomCases(seed, static_cast<int>(each));
  std::vector<Case> cases = ConformanceCases();
  std::erase_if(cases, [=](const Case& item) { return item.slow != slow; });
  return cases;
}

int Main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  std::vector<std::string> libraries(argv + 1, argv + argc);
  const bool slow = !libraries.empty() && libraries[0] == "--slow";
  if (slow) libraries.erase(libraries.begin());
  if (libraries.empty()) {
    std::fprintf(stderr, "usage: %s [--slow] REFERENCE_LIBRARY [BACKEND_LIBRARY...]\n", argv[0]);
    return 2;
  }
  seed = SeedFromEnvironment();
  std::printf("MT_CONFORMANCE_SEED=%llu", static_cast<unsigned long long>(seed));
  if (const char* order = std::getenv("MT_EMULATOR_SEED"); order != nullptr) {
    if (std::strcmp(order, "random") == 0)
      setenv("MT_EMULATOR_SEED", std::to_string(1 + std::mt19937_64(seed)() % 1000000).c_str(), 1);
    std::printf(" MT_EMULATOR_SEED=%s", std::getenv("MT_EMULATOR_SEED"));
  }
  std::printf("\n");
  static const std::vector<Case> cases = ChooseCases(slow);
  size_t declined = 0;
  for (const std::string& library : libraries) {
    std::string error;
    bool no_device = false;
    const mt_backend* backend = LoadLibrary(library, &error, &no_device);
    if (backend == nullptr) {
      std::fprintf(stderr, "%s%s\n", no_device ? "skipped: " : "", error.c_str());
      if (!no_device || reference == nullptr) return 2;
      ++declined;
      continue;
    }
    if (backend->open(0, 1) != MT_OK) {
      std::fprintf(stderr, "%s: %s\n", library.c_str(), backend->error_message());
      return 1;
    }
    if (reference == nullptr) reference = backend;
    RegisterCases(backend, cases);
  }
  if (declined > 0 && declined + 1 == libraries.size()) return 77;
  if (!slow) Register("Table", "ReachesEveryOperation", [] { return new CoverageTest(cases); });
  return RUN_ALL_TESTS();
}

}  // namespace
}  // namespace mt::conformance

int main(int argc, char** argv) { return mt::conformance::Main(argc, argv); }
