// The choice of algorithms, against a library that plays cuBLASLt. A played algorithm is data[0] = its number, data[1] = its
// reduction scheme, data[2] = its workspace.
#include "kernels/cuda/gemm_planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <limits>

#include "kernels/host/host.h"

namespace mt::cuda {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Play {
  std::vector<cublasLtMatmulAlgo_t> proposals;
  std::vector<uint64_t> unfit;  // numbers that cublasLtMatmulAlgoCheck refuses
  int questions = 0;            // how often proposals were asked for
};
Play* play = nullptr;

cublasLtMatmulAlgo_t Algorithm(uint64_t number, uint64_t scheme = CUBLASLT_REDUCTION_SCHEME_NONE,
                               uint64_t workspace = 0) {
  cublasLtMatmulAlgo_t algorithm = {};
  algorithm.data[0] = number;
  algorithm.data[1] = scheme;
  algorithm.data[2] = workspace;
  return algorithm;
}

CublasLt PlayedLibrary() {
  CublasLt lt;
  lt.version = 130100;
  lt.cublasLtGetStatusName = [](cublasStatus_t) { return "STATUS"; };
  lt.cublasLtMatmulDescInit_internal = [](cublasLtMatmulDesc_t, size_t, cublasComputeType_t,
                                          cudaDataType_t) { return CUBLAS_STATUS_SUCCESS; };
  lt.cublasLtMatmulDescSetAttribute = [](cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t,
                                         const void*, size_t) { return CUBLAS_STATUS_SUCCESS; };
  lt.cublasLtMatrixLayoutInit_internal = [](cublasLtMatrixLayout_t, size_t, cudaDataType, uint64_t,
                                            uint64_t, int64_t) { return CUBLAS_STATUS_SUCCESS; };
  lt.cublasLtMatmulPreferenceInit_internal = [](cublasLtMatmulPreference_t, size_t) {
    return CUBLAS_STATUS_SUCCESS;
  };
  lt.cublasLtMatmulPreferenceSetAttribute = [](cublasLtMatmulPreference_t,
                                               cublasLtMatmulPreferenceAttributes_t, const void*,
                                               size_t) { return CUBLAS_STATUS_SUCCESS; };
  lt.cublasLtMatmulAlgoGetHeuristic =
      [](cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
         cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, int most,
         cublasLtMatmulHeuristicResult_t results[], int* found) {
        ++play->questions;
        *found = 0;
        for (const cublasLtMatmulAlgo_t& algorithm : play->proposals) {
          if (*found == most) break;
          results[*found].algo = algorithm;
          results[*found].state = CUBLAS_STATUS_SUCCESS;
          ++*found;
        }
        return CUBLAS_STATUS_SUCCESS;
      };
  lt.cublasLtMatmulAlgoConfigGetAttribute = [](const cublasLtMatmulAlgo_t* algorithm,
                                               cublasLtMatmulAlgoConfigAttributes_t, void* value,
                                               size_t, size_t*) {
    *static_cast<uint32_t*>(value) = static_cast<uint32_t>(algorithm->data[1]);
    return CUBLAS_STATUS_SUCCESS;
  };
  lt.cublasLtMatmulAlgoCheck = [](cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                                  cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                  cublasLtMatrixLayout_t, const cublasLtMatmulAlgo_t* algorithm,
                                  cublasLtMatmulHeuristicResult_t* result) {
    for (const uint64_t number : play->unfit) {
      if (number == algorithm->data[0]) return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    result->state = CUBLAS_STATUS_SUCCESS;
    result->workspaceSize = algorithm->data[2];
    return CUBLAS_STATUS_SUCCESS;
  };
  return lt;
}

class GemmPlannerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    play = &play_;
    play_.proposals = {Algorithm(1), Algorithm(2), Algorithm(3)};
    path_ =
        std::filesystem::temp_directory_path() / ("gemm_planner_test." + std::to_string(getpid()));
    problem_.a_type = problem_.b_type = problem_.d_type = MT_BF16;
    problem_.rows = problem_.columns = problem_.depth = 64;
    problem_.lda = problem_.ldb = problem_.ldd = 64;
  }
  void TearDown() override {
    std::filesystem::remove(path_);
    std::filesystem::remove(path_.string() + ".lock");
  }
  std::unique_ptr<GemmPlanner> Planner(bool with_cache) {
    std::unique_ptr<GemmCache> cache;
    if (with_cache) cache = std::make_unique<GemmCache>(path_, "env");
    return std::make_unique<GemmPlanner>(
        lt_, nullptr, std::move(cache),
        [this](const GemmProblem&, const std::vector<cublasLtMatmulAlgo_t>& algorithms) {
          ++measurements_;
          std::vector<double> seconds;
          for (const cublasLtMatmulAlgo_t& algorithm : algorithms) {
            measured_.push_back(algorithm.data[0]);
            if (!seconds_.empty()) seconds.push_back(seconds_.at(algorithm.data[0]));
          }
          return seconds;
        },
        [this](const std::string& line) { log_.push_back(line); });
  }
  // The number of the algorithm that a step would use.
  uint64_t Chosen(GemmPlanner& planner, const GemmProblem& problem) {
    GemmPlan* plan = nullptr;
    EXPECT_EQ(planner.Find(problem, &plan), MT_OK) << host::ErrorMessage();
    return plan != nullptr ? plan->algorithm.data[0] : 0;
  }

  Play play_;
  const CublasLt lt_ = PlayedLibrary();
  std::filesystem::path path_;
  GemmProblem problem_;
  std::vector<double> seconds_ = {0, 1.0, 0.5, 0.7};  // by number
  int measurements_ = 0;
  std::vector<uint64_t> measured_;
  std::vector<std::string> log_;
};

TEST_F(GemmPlannerTest, WithoutACacheItIsTheLibrarysFirst) {
  const auto planner = Planner(false);
  ASSERT_EQ(planner->Prepare(problem_), MT_OK);
  EXPECT_EQ(Chosen(*planner, problem_), 1u);
  EXPECT_EQ(measurements_, 0) << "a choice by time would not be the same after a restart";
  EXPECT_TRUE(log_.empty());
}

TEST_F(GemmPlannerTest, TheFastestIsMeasuredOnceAndRemembered) {
  {
    const auto planner = Planner(true);
    ASSERT_EQ(planner->Prepare(problem_), MT_OK);
    ASSERT_EQ(planner->Prepare(problem_), MT_OK);
    EXPECT_EQ(Chosen(*planner, problem_), 2u);
    EXPECT_EQ(measurements_, 1);
    EXPECT_EQ(play_.questions, 1);
  }
  seconds_ = {0, 0.1, 0.5, 0.7};  // what is fast today does not matter
  const auto planner = Planner(true);
  ASSERT_EQ(planner->Prepare(problem_), MT_OK);
  EXPECT_EQ(Chosen(*planner, problem_), 2u);
  EXPECT_EQ(measurements_, 1);
  EXPECT_EQ(play_.questions, 1);
}

TEST_F(GemmPlannerTest, ChanceDoesNotDecide) {
  seconds_ = {0, 1.0, 0.99, 1.0};
  const auto planner = Planner(true);
  ASSERT_EQ(planner->Prepare(problem_), MT_OK);
  EXPECT_EQ(Chosen(*planner, problem_), 1u);
}

TEST_F(GemmPlannerTest, AnAlgorithmThatFailsIsNotTaken) {
  const double never = std::numeric_limits<double>::infinity();
  seconds_ = {0, never, never, 0.7};
  const auto planner = Planner(true);
  ASSERT_EQ(planner->Prepare(problem_), MT_OK);
  EXPECT_EQ(Chosen(*planner, problem_), 3u);
}

TEST_F(GemmPlannerTest, WhatIsNotDeterministicOrRoundsTwiceIsPassedOver) {
  play_.proposals = {Algorithm(1, CUBLASLT_REDUCTION_SCHEME_INPLACE),
                     Algorithm(2, CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE),
                     Algorithm(3, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)};
  const auto planner = Planner(false);
  ASSERT_EQ(planner->Prepare(problem_), MT_OK);
  EXPECT_EQ(Chosen(*planner, problem_), 3u);
  play_.proposals.pop_back();
  GemmProblem other = problem_;
  other.rows = 128;
  other.lda = other.ldd = 128;
  EXPECT_EQ(planner->Prepare(other), MT_ERROR_UNSUPPORTED);
  EXPECT_THAT(host::ErrorMessage(),
              HasSubstr("no deterministic algorithm for bf16:n bf16:n bf16 128x64x64"));
}

TEST_F(GemmPlannerTest, ARememberedAlgorithmThatDoesNotFitIsReplaced) {
  {
    const auto planner = Planner(true);
    ASSERT_EQ(planner->Prepare(problem_), MT_OK);
  }
  play_.unfit = {2};
  play_.proposals = {Algorithm(1), Algorithm(3)};
  {
    const auto planner = Planner(true);
    ASSERT_EQ(planner->Prepare(problem_), MT_OK);
    EXPECT_EQ(Chosen(*planner, problem_), 3u);
  }
  const auto planner = Planner(true);
  ASSERT_EQ(planner->Prepare(problem_), MT_OK);
  EXPECT_EQ(Chosen(*planner, problem_), 3u);
  EXPECT_EQ(measurements_, 2);
}

TEST_F(GemmPlannerTest, ARememberedAlgorithmThatWantsMoreMemoryDoesNotFit) {
  {
    GemmCache cache(path_, "env");
    GemmAlgorithm large = {9, 0, kGemmWorkspaceBytes + 1};
    std::string error;
    cache.Store(problem_.Text(), large, std::nullopt, &error);
  }
  const auto planner = Planner(true);
  ASSERT_EQ(planner->Prepare(problem_), MT_OK);
  EXPECT_EQ(Chosen(*planner, problem_), 2u);
}

TEST_F(GemmPlannerTest, WhatCannotBeMeasuredIsTheLibrarysFirstAndSaysSo) {
  seconds_.clear();
  host::Fail(MT_ERROR_MEMORY, 0, "no memory");
  const auto planner = Planner(true);
  ASSERT_EQ(planner->Prepare(problem_), MT_OK);
  EXPECT_EQ(Chosen(*planner, problem_), 1u);
  EXPECT_THAT(log_, ElementsAre(HasSubstr("algorithms are not compared")));
  EXPECT_THAT(log_[0], HasSubstr("no memory"));
}

TEST_F(GemmPlannerTest, WhatCannotBeMeasuredIsMeasuredByALaterStart) {
  const std::vector<double> later = seconds_;
  seconds_.clear();
  {
    const auto planner = Planner(true);
    ASSERT_EQ(planner->Prepare(problem_), MT_OK);
    ASSERT_EQ(planner->Prepare(problem_), MT_OK);
    EXPECT_EQ(log_.size(), 1u);
  }
  EXPECT_EQ(GemmCache(path_, "env").Find(problem_.Text()), std::nullopt);
  seconds_ = later;
  const auto planner = Planner(true);
  ASSERT_EQ(planner->Prepare(problem_), MT_OK);
  EXPECT_EQ(Chosen(*planner, problem_), 2u);
  EXPECT_TRUE(GemmCache(path_, "env").Find(problem_.Text()).has_value());
}

TEST_F(GemmPlannerTest, ARankThatCannotMeasureTakesWhatAnotherHasRemembered) {
  const auto without_memory = Planner(true), with_memory = Planner(true);
  ASSERT_EQ(with_memory->Prepare(problem_), MT_OK);
  seconds_.clear();
  ASSERT_EQ(without_memory->Prepare(problem_), MT_OK);
  EXPECT_EQ(Chosen(*without_memory, problem_), 2u);
}

TEST_F(GemmPlannerTest, AShapeThatWasNotDeclaredCostsNoMeasurementAndOneLine) {
  const auto planner = Planner(true);
  EXPECT_EQ(Chosen(*planner, problem_), 1u);
  EXPECT_EQ(Chosen(*planner, problem_), 1u);
  EXPECT_EQ(measurements_, 0);
  EXPECT_EQ(play_.questions, 1);
  EXPECT_THAT(log_, ElementsAre(HasSubstr("was not declared")));
}

TEST_F(GemmPlannerTest, TheSameProductWithABiasTakesThePlanOfTheDeclaredOne) {
  const auto planner = Planner(true);
  ASSERT_EQ(planner->Prepare(problem_), MT_OK);
  GemmProblem with_bias = problem_;
  with_bias.bias = true;
  with_bias.bias_alignment = 4;
  EXPECT_EQ(Chosen(*planner, with_bias), 2u);
  EXPECT_EQ(play_.questions, 1);
  EXPECT_TRUE(log_.empty());
}

}  // namespace
}  // namespace mt::cuda
