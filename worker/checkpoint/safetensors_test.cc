#include "worker/checkpoint/safetensors.h"

#include <gtest/gtest.h>

#include <random>

#include "common/testing/mem_env.h"

namespace mt {
namespace {

void Write(Env* env, const std::string& path, const std::string& contents) {
  ASSERT_TRUE(WriteFileAtomically(env, path, contents).ok());
}
std::string WithLength(const std::string& json, const std::string& data) {
  std::string file(8, '\0');
  for (int i = 0; i < 8; ++i) file[i] = static_cast<char>(json.size() >> (8 * i));
  return file + json + data;
}
absl::Status OpenJson(const std::string& json, size_t data_bytes) {
  MemEnv env;
  Write(&env, "/f", WithLength(json, std::string(data_bytes, 'x')));
  return SafetensorsReader::Open(&env, "/f").status();
}

TEST(Safetensors, HeadAndBytesReadBack) {
  MemEnv env;
  std::vector<SafetensorsEntry> entries = {{"small", "U8", {3}},
                                           {"b \"quoted\"\n", "F32", {2, 1}},
                                           {"a", "F32", {1}},
                                           {"wide", "F64", {}},
                                           {"none", "F32", {0, 5}}};
  const auto head = BuildSafetensorsHead(entries, {{"format", "pt"}, {"k", "v\\\x01"}});
  ASSERT_TRUE(head.ok()) << head.status();
  EXPECT_EQ(head->size() % 4096, 0u);
  EXPECT_EQ(entries[0].name, "wide");
  EXPECT_EQ(entries[1].name, "a");
  EXPECT_EQ(entries.back().name, "small");
  Write(&env, "/f", *head + "WWWWWWWWaaaabbbbBBBBsss");
  const auto reader = SafetensorsReader::Open(&env, "/f");
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ((*reader)->metadata().at("k"), "v\\\x01");
  const SafetensorsEntry* b = (*reader)->Find("b \"quoted\"\n");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->shape, (std::vector<int64_t>{2, 1}));
  char bytes[4];
  ASSERT_TRUE((*reader)->Read(*b, 4, 4, bytes).ok());
  EXPECT_EQ(std::string(bytes, 4), "BBBB");
  EXPECT_EQ((*reader)->Read(*b, 5, 4, bytes).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ((*reader)->Find("c"), nullptr);
  EXPECT_EQ((*reader)->Find("none")->bytes(), 0u);
}

TEST(Safetensors, OrderOfTheHeaderIsFree) {
  EXPECT_TRUE(OpenJson(R"( {"a":1} )", 0).code() ==
              absl::StatusCode::kDataLoss);  // begins with a space
  EXPECT_TRUE(OpenJson("{}", 0).ok());
  EXPECT_TRUE(OpenJson(R"({ "b" : {"dtype":"F16","shape":[1],"data_offsets":[4,6]},
                            "a":{"data_offsets":[0,4],"shape":[],"dtype":"F32"}}     )",
                       6)
                  .ok());
  EXPECT_TRUE(
      OpenJson(R"({"\u00e9\ud83d\ude00":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}})", 1)
          .ok());
}

TEST(Safetensors, BrokenHeadersAreDataLoss) {
  const std::pair<const char*, size_t> bad[] = {
      {"", 0},
      {"{", 0},
      {"{}x", 0},
      {"[]", 0},
      {"{}", 1},                                                         // bytes that nobody owns
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 3},  // cut off
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}})", 8},  // size is not the shape's
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8},  // a hole
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}})", 8},  // backwards
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
       3},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
       2},
      {R"({"a":{"dtype":"X","shape":[1],"data_offsets":[0,1]}})", 1},
      {R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1},
      {R"({"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}})", 1},
      {R"({"a":{"dtype":"U8","shape":[01],"data_offsets":[0,1]}})", 1},
      {R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}})", 1},  // one and a half bytes
      {R"({"a":{"dtype":"F64","shape":[4611686018427387904,4],"data_offsets":[0,0]}})",
       0},  // overflows to 0
      {R"({"a":{"dtype":"U8","shape":[99999999999999999999],"data_offsets":[0,1]}})", 1},
      {R"({"a":{"dtype":"U8","shape":[1]}})", 1},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":"x"}})", 1},
      {R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}})", 1},
      {R"({"__metadata__":{"a":1}})", 0},
      {R"({"__metadata__":{"a":"1","a":"2"}})", 0},
      {R"({"__metadata__":{},"__metadata__":{}})", 0},
      {R"({"\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1},
      {R"({"\x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1},
  };
  for (const auto& [json, bytes] : bad) {
    const absl::Status status = OpenJson(json, bytes);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << json << ": " << status;
    EXPECT_NE(status.message().find("/f"), absl::string_view::npos) << status;
  }
}

TEST(Safetensors, BrokenLengthsAreDataLoss) {
  MemEnv env;
  for (const std::string& file : {std::string(), std::string("1234567"), std::string(8, '\xff'),
                                  std::string("\x03\0\0\0\0\0\0\0{}", 10)}) {
    Write(&env, "/f", file);
    EXPECT_EQ(SafetensorsReader::Open(&env, "/f").status().code(), absl::StatusCode::kDataLoss)
        << file.size();
  }
}

TEST(Safetensors, AnyFlippedBytesAreRefusedOrReadableNeverACrash) {
  std::vector<SafetensorsEntry> entries = {{"a", "F32", {2, 3}}, {"b", "U8", {5}}};
  const std::string whole =
      *BuildSafetensorsHead(entries, {{"format", "pt"}}) + std::string(29, 'x');
  MemEnv env;
  std::mt19937 random(1);
  for (int i = 0; i < 3000; ++i) {
    std::string damaged = whole;
    for (int flips = 1 + random() % 3; flips > 0; --flips)
      damaged[random() % 200] = static_cast<char>(random());
    Write(&env, "/f", damaged);
    const auto reader = SafetensorsReader::Open(&env, "/f");
    if (!reader.ok()) {
      EXPECT_EQ(reader.status().code(), absl::StatusCode::kDataLoss);
      continue;
    }
    for (const SafetensorsEntry& entry : (*reader)->entries()) {
      std::string bytes(entry.bytes(), '\0');
      EXPECT_TRUE((*reader)->Read(entry, 0, entry.bytes(), bytes.data()).ok());
    }
  }
}

}  // namespace
}  // namespace mt
