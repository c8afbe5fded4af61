// kernels_conformance_test REFERENCE_LIBRARY [BACKEND_LIBRARY...]: every case of the table on every
// library, against the first library in float64. Inputs are fresh in every run;
// MT_CONFORMANCE_SEED=<n> repeats one.
#include <gtest/gtest.h>

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
    const Values values = MakeValues(case_, seed);
    Problem exact(reference, case_, MT_F64, values);
    ASSERT_TRUE(exact.supported()) << reference->error_message();
    ASSERT_EQ(exact.Run(), MT_OK) << reference->error_message();
    const Values expected = exact.Read();

    Values first;
    for (const int threads : {1, 2, 3, 2}) {
      ASSERT_EQ(backend_->open(0, threads), MT_OK) << backend_->error_message();
      Problem problem(backend_, case_, dtype_, values);
      if (!problem.supported()) GTEST_SKIP() << backend_->error_message();
      ASSERT_EQ(problem.Run(), MT_OK) << backend_->error_message();
      const Values actual = problem.Read();
      EXPECT_EQ(problem.CheckGuards(), "");
      if (first.empty()) {
        first = actual;
        EXPECT_EQ(Compare(case_, dtype_, values, actual, expected), "")
            << "MT_CONFORMANCE_SEED=" << seed << " repeats it";
      } else {
        EXPECT_TRUE(SameBits(first, actual))
            << "other bits with " << threads << " threads; MT_CONFORMANCE_SEED=" << seed;
      }
    }
  }

 private:
  const mt_backend* backend_;
  const Case& case_;
  int32_t dtype_;
};

// A NaN in the first input is not hidden: where the reference gives NaN, so does the backend (it
// may spread further).
class NotANumberTest : public ::testing::Test {
 public:
  NotANumberTest(const mt_backend* backend, const Case& item) : backend_(backend), case_(item) {}

  void TestBody() override {
    Values values = MakeValues(case_, seed);
    for (size_t t = 0; t < values.size(); ++t) {
      const Tensor& tensor = case_.tensors[t];
      if (tensor.element != Element::kData || tensor.role == Role::kOutput || values[t].empty())
        continue;
      values[t][values[t].size() / 2] = NAN;
      break;
    }
    Problem exact(reference, case_, MT_F64, values), problem(backend_, case_, MT_F32, values);
    if (!problem.supported()) GTEST_SKIP() << backend_->error_message();
    ASSERT_EQ(exact.Run(), MT_OK) << reference->error_message();
    ASSERT_EQ(problem.Run(), MT_OK) << backend_->error_message();
    const Values expected = exact.Read(), actual = problem.Read();
    for (size_t t = 0; t < expected.size(); ++t) {
      for (size_t i = 0; i < expected[t].size(); ++i) {
        ASSERT_TRUE(!std::isnan(expected[t][i]) || std::isnan(actual[t][i]))
            << case_.tensors[t].name << "[" << i << "] = " << actual[t][i] << " hides a NaN";
      }
    }
  }

 private:
  const mt_backend* backend_;
  const Case& case_;
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
      Problem problem(backend_, item, MT_F32, MakeValues(item, seed));
      if (!problem.supported()) continue;
      ASSERT_EQ(problem.Run(), MT_OK) << backend_->error_message();
      EXPECT_EQ(threads(), before) << item.name << " started threads";
    }
  }

 private:
  const mt_backend* backend_;
  const std::vector<Case>& cases_;
};

// A library either runs all operations in float32 or says which it lacks; the table must reach each
// one.
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

int Main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s REFERENCE_LIBRARY [BACKEND_LIBRARY...]\n", argv[0]);
    return 2;
  }
  const char* given = std::getenv("MT_CONFORMANCE_SEED");
  seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  static const std::vector<Case> cases = ConformanceCases();
  for (int i = 1; i < argc; ++i) {
    std::string error;
    const mt_backend* backend = LoadLibrary(argv[i], &error);
    if (backend == nullptr) {
      std::fprintf(stderr, "%s\n", error.c_str());
      return 2;
    }
    if (i == 1) reference = backend;
    ::testing::RegisterTest(
        backend->name, "OneThreadMeansOne", nullptr, nullptr, __FILE__, __LINE__,
        [=]() -> ::testing::Test* { return new OneThreadTest(backend, cases); });
    for (const int32_t dtype : {MT_F32, MT_F64}) {
      if (backend != reference && dtype == MT_F64) continue;
      const std::string suite =
          std::string(backend->name) + (dtype == MT_F64 ? "_float64" : "_float32");
      for (const Case& item : cases) {
        ::testing::RegisterTest(
            suite.c_str(), item.name.c_str(), nullptr, nullptr, __FILE__, __LINE__,
            [=, &item]() -> ::testing::Test* { return new ConformanceTest(backend, item, dtype); });
        if (backend == reference) continue;
        ::testing::RegisterTest(
            (suite + "_nan").c_str(), item.name.c_str(), nullptr, nullptr, __FILE__, __LINE__,
            [=, &item]() -> ::testing::Test* { return new NotANumberTest(backend, item); });
      }
    }
  }
  ::testing::RegisterTest("Table", "ReachesEveryOperation", nullptr, nullptr, __FILE__, __LINE__,
                          []() -> ::testing::Test* { return new CoverageTest(cases); });
  return RUN_ALL_TESTS();
}

}  // namespace
}  // namespace mt::conformance

int main(int argc, char** argv) { return mt::conformance::Main(argc, argv); }
