#include "worker/train/pass_graphs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace mt {
namespace {

using testing::ElementsAre;

// A backend of which only the graph functions exist; they write down that they were called.
std::vector<std::string>* calls = nullptr;
int32_t begin_code = MT_OK, end_code = MT_OK;

const mt_backend& FakeTable() {
  static mt_backend table = [] {
    mt_backend b = {};
    b.name = "fake";
    b.error_message = [] { return "out of luck"; };
    b.graph_begin = [](mt_stream) {
      calls->push_back("begin");
      return begin_code;
    };
    b.graph_end = [](mt_stream, mt_graph* graph) {
      calls->push_back("end");
      *graph = end_code == MT_OK ? reinterpret_cast<mt_graph>(calls) : nullptr;
      return end_code;
    };
    b.graph_launch = [](mt_graph, mt_stream) {
      calls->push_back("launch");
      return static_cast<int32_t>(MT_OK);
    };
    b.graph_destroy = [](mt_graph) {
      calls->push_back("destroy");
      return static_cast<int32_t>(MT_OK);
    };
    return b;
  }();
  return table;
}

class PassGraphsTest : public testing::Test {
 protected:
  void SetUp() override {
    calls = &calls_;
    begin_code = end_code = MT_OK;
  }
  absl::Status Run(PassGraphs& graphs, int64_t pass) {
    return graphs.Run(pass, [&] {
      calls_.push_back(absl::StrCat("pass ", pass));
      return body_;
    });
  }
  std::vector<std::string> calls_;
  absl::Status body_;
  const Backend backend_{&FakeTable(), {}, ""};
};

TEST_F(PassGraphsTest, RunsThenRecordsOnceThenLaunches) {
  {
    PassGraphs graphs(backend_, true, 2);
    for (int i = 0; i < 4; ++i) ASSERT_TRUE(Run(graphs, 0).ok());
    EXPECT_THAT(calls_,
                ElementsAre("pass 0", "begin", "pass 0", "end", "launch", "launch", "launch"));
    calls_.clear();
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(Run(graphs, 1).ok());
    EXPECT_THAT(calls_, ElementsAre("pass 1", "begin", "pass 1", "end", "launch"));
    calls_.clear();
  }
  EXPECT_THAT(calls_, ElementsAre("destroy", "destroy"));
}

// Libraries have chosen their kernels: what is forgotten is recorded at once.
TEST_F(PassGraphsTest, WhatIsForgottenIsRecordedAnew) {
  PassGraphs graphs(backend_, true, 1);
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(Run(graphs, 0).ok());
  calls_.clear();
  graphs.Forget();
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(Run(graphs, 0).ok());
  EXPECT_THAT(calls_, ElementsAre("destroy", "begin", "pass 0", "end", "launch", "launch"));
}

TEST_F(PassGraphsTest, IsNothingWhereItIsOff) {
  PassGraphs graphs(backend_, false, 1);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(Run(graphs, 0).ok());
  EXPECT_THAT(calls_, ElementsAre("pass 0", "pass 0", "pass 0"));
}

TEST_F(PassGraphsTest, FailureToRecordIsTheLastAttempt) {
  for (int32_t* code : {&begin_code, &end_code}) {
    SetUp();
    calls_.clear();
    *code = MT_ERROR_DEVICE;
    PassGraphs graphs(backend_, true, 2);
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(Run(graphs, 0).ok());
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(Run(graphs, 1).ok());
    if (code == &begin_code) {
      EXPECT_THAT(calls_, ElementsAre("pass 0", "begin", "pass 0", "pass 0", "pass 1", "pass 1"));
    } else {
      EXPECT_THAT(calls_, ElementsAre("pass 0", "begin", "pass 0", "end", "pass 0", "pass 0",
                                      "pass 1", "pass 1"));
    }
  }
}

// Recording must be over before anything else is done, and the pass says itself what is wrong.
TEST_F(PassGraphsTest, PassThatFailsWhileItIsRecordedIsRunAgain) {
  PassGraphs graphs(backend_, true, 1);
  ASSERT_TRUE(Run(graphs, 0).ok());
  body_ = absl::InternalError("broken");
  EXPECT_EQ(Run(graphs, 0), body_);
  EXPECT_THAT(calls_, ElementsAre("pass 0", "begin", "pass 0", "end", "destroy", "pass 0"));
}

}  // namespace
}  // namespace mt
