// A Hugging Face folder in memory that a test can spoil: tensors by name, config.json as text.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "common/env.h"
#include "common/testing/mem_env.h"
#include "worker/checkpoint/safetensors.h"

namespace mt {

struct TestTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

inline std::map<std::string, TestTensor> ReadTensors(Env* env, const std::string& path) {
  std::map<std::string, TestTensor> tensors;
  const auto reader = SafetensorsReader::Open(env, path);
  EXPECT_TRUE(reader.ok()) << reader.status();
  if (!reader.ok()) return tensors;
  for (const SafetensorsEntry& entry : (*reader)->entries()) {
    TestTensor& tensor = tensors[entry.name];
    tensor = {entry.dtype, entry.shape, std::string(entry.bytes(), '\0')};
    EXPECT_TRUE((*reader)->Read(entry, 0, entry.bytes(), tensor.bytes.data()).ok());
  }
  return tensors;
}

inline void WriteTestFile(Env* env, const std::string& path, const std::string& contents) {
  const auto status = WriteFileAtomically(env, path, contents);
  EXPECT_TRUE(status.ok()) << status;
}

inline void WriteTensors(Env* env, const std::string& path,
                         const std::map<std::string, TestTensor>& tensors) {
  std::vector<SafetensorsEntry> entries;
  for (const auto& [name, tensor] : tensors) entries.push_back({name, tensor.dtype, tensor.shape});
  auto head = BuildSafetensorsHead(entries, {{"format", "pt"}});
  ASSERT_TRUE(head.ok()) << head.status();
  for (const SafetensorsEntry& entry : entries) *head += tensors.at(entry.name).bytes;
  WriteTestFile(env, path, *head);
}

// The weights of a golden case, and its config.json.
struct TestFolder {
  explicit TestFolder(const std::string& golden_case) {
    const std::string folder = JoinPath(MT_SOURCE_DIR "/tests/golden", golden_case);
    tensors = ReadTensors(Env::Real(), JoinPath(folder, "model.safetensors"));
    config = ReadFile(Env::Real(), JoinPath(folder, "config.json")).value();
  }
  // To /hub of `env`.
  void Write(MemEnv* env) const {
    ASSERT_TRUE(env->CreateDirectories("/hub").ok());
    WriteTestFile(env, "/hub/config.json", config);
    WriteTensors(env, "/hub/model.safetensors", tensors);
  }
  std::vector<float> Floats(const std::string& name) const {
    const std::string& bytes = tensors.at(name).bytes;
    std::vector<float> values(bytes.size() / 4);
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }
  void Set(const std::string& name, std::vector<int64_t> shape, const std::vector<float>& values) {
    tensors[name] = {"F32", std::move(shape),
                     std::string(reinterpret_cast<const char*>(values.data()), 4 * values.size())};
  }
  void Replace(const std::string& what, const std::string& with) {
    const size_t at = config.find(what);
    ASSERT_NE(at, std::string::npos) << what;
    config.replace(at, what.size(), with);
  }

  std::map<std::string, TestTensor> tensors;
  std::string config;
};

}  // namespace mt
