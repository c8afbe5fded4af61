// Orders and samples equal those that Megatron's own Python made (make_golden.py), array by array.
#include <filesystem>
#include <fstream>

#include "common/check.h"
#include "common/env.h"
#include "gtest/gtest.h"
#include "tests/golden/sample_order/sample_order.h"
#include "worker/data/indexed_dataset_writer.h"

namespace mt {
namespace {

// As tokens() of megatron_order.py.
void WriteDataset(const std::string& prefix, int64_t number, const std::vector<int32_t>& lengths,
                  int32_t eod) {
  auto writer = IndexedDatasetWriter::Create(Env::Real(), prefix, TokenType::kUint16).value();
  int64_t k = 0;
  for (const int32_t length : lengths) {
    std::vector<int32_t> tokens;
    for (int32_t i = 0; i < length; ++i, ++k)
      tokens.push_back(static_cast<int32_t>((7 * k + 31 * number) % eod));
    if (!tokens.empty() && (length + number) % 3 != 0) tokens.back() = eod;
    MT_CHECK_OK(writer->AddDocument(tokens));
  }
  MT_CHECK_OK(writer->Seal().status());
  MT_CHECK_OK(writer->Commit());
}

TEST(SampleOrderTest, EqualsMegatrons) {
  std::ifstream file(MT_SOURCE_DIR "/tests/golden/sample_order/golden.json");
  ASSERT_TRUE(file.is_open());
  const nlohmann::json golden = nlohmann::json::parse(file);
  const std::string folder = ::testing::TempDir() + "/sample_order." + std::to_string(getpid());
  for (const auto& [name, dataset] : golden.at("datasets").items()) {
    WriteDataset(folder + "/" + name, dataset.at("number").get<int64_t>(),
                 dataset.at("lengths").get<std::vector<int32_t>>(),
                 golden.at("eod").get<int32_t>());
  }
  ASSERT_GE(golden.at("cases").size(), 20u);
  for (const auto& [name, c] : golden.at("cases").items()) {
    const absl::StatusOr<OrderArrays> arrays = OrderOf(c.at("case"), folder);
    ASSERT_TRUE(arrays.ok()) << name << ": " << arrays.status();
    const auto expected = c.at("expected").get<OrderArrays>();
    for (const auto& [array, values] : expected) {
      ASSERT_TRUE(arrays->count(array)) << name << " " << array;
      EXPECT_EQ(arrays->at(array), values) << name << " " << array;
    }
    EXPECT_EQ(arrays->size(), expected.size()) << name;
  }
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace mt
