// One call of an operation on the reference and on the emulated kernels, compared: tensors at any offset between canaries, in two
// orders of threads and blocks, whose bits have to be equal.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/abi/small_floats.h"
#include "kernels/conformance/runner.h"

namespace mt::cuda {

inline const mt_backend* reference = nullptr;
inline const mt_backend* emulated = nullptr;

inline int64_t Bytes(int32_t dtype) { return dtype == MT_BF16 ? 2 : dtype == MT_F64 ? 8 : 4; }

// A tensor of one problem: its values for the reference and for the kernels, the latter at `offset` elements past a multiple of
// 64 bytes and between canaries.
class Tensor {
 public:
  Tensor(std::string name, int32_t dtype, const std::vector<float>& values, int64_t offset)
      : name_(std::move(name)),
        dtype_(dtype),
        count_(static_cast<int64_t>(values.size())),
        expected_(Size()),
        storage_(Size() + 256 + static_cast<size_t>(offset * Bytes(dtype)), '\x5a') {
    auto* start = storage_.data() + 64;
    start += (64 - reinterpret_cast<uintptr_t>(start) % 64) % 64;
    actual_ = start + offset * Bytes(dtype);
    for (int64_t i = 0; i < count_; ++i) {
      const float value = values[static_cast<size_t>(i)];
      const uint16_t rounded = mt_bf16_from_float(value);
      const auto whole = static_cast<int32_t>(value);
      const auto exact = static_cast<double>(value);
      const void* from = dtype == MT_BF16  ? static_cast<const void*>(&rounded)
                         : dtype == MT_I32 ? static_cast<const void*>(&whole)
                         : dtype == MT_F64 ? static_cast<const void*>(&exact)
                                           : &value;
      std::memcpy(expected_.data() + i * Bytes(dtype), from, static_cast<size_t>(Bytes(dtype)));
    }
    std::memcpy(actual_, expected_.data(), Size());
  }
  void* Of(bool kernels) { return kernels ? actual_ : expected_.data(); }
  std::string Contents() const { return {actual_, Size()}; }

  // Empty, or what is wrong. `size` is the tensor's root mean square for sums of either sign.
  std::string Compare() const {
    for (const char* p = storage_.data(); p < storage_.data() + storage_.size(); ++p) {
      if ((p < actual_ || p >= actual_ + Size()) && *p != '\x5a') return name_ + ": canary";
    }
    double square = 0;
    for (int64_t i = 0; i < count_; ++i)
      square += At(expected_.data(), i) * At(expected_.data(), i);
    const double size = std::sqrt(square / static_cast<double>(std::max<int64_t>(count_, 1)));
    for (int64_t i = 0; i < count_; ++i) {
      const double x = At(actual_, i), y = At(expected_.data(), i);
      const double relative = dtype_ == MT_BF16 ? 0x1p-7 : 5e-6;
      const double scale = std::max(std::fabs(y), dtype_ == MT_BF16 ? 1e-3 * size : size);
      const double allowed = dtype_ == MT_I32 ? 0 : 1e-6 + relative * scale;
      if (x != y && !(std::fabs(x - y) <= allowed)) {
        return name_ + "[" + std::to_string(i) + "] = " + std::to_string(x) + ", expected " +
               std::to_string(y);
      }
    }
    return "";
  }

 private:
  size_t Size() const { return static_cast<size_t>(count_ * Bytes(dtype_)); }
  double At(const char* data, int64_t i) const {
    if (dtype_ == MT_BF16) return mt_float_from_bf16(reinterpret_cast<const uint16_t*>(data)[i]);
    if (dtype_ == MT_I32) return reinterpret_cast<const int32_t*>(data)[i];
    if (dtype_ == MT_F64) return reinterpret_cast<const double*>(data)[i];
    return reinterpret_cast<const float*>(data)[i];
  }
  std::string name_;
  int32_t dtype_;
  int64_t count_;
  std::vector<char> expected_, storage_;
  char* actual_;
};

// A pointer to whatever the field wants.
struct Any {
  void* pointer;
  template <typename T>
  operator T*() const {  // NOLINT(google-explicit-constructor)
    return static_cast<T*>(pointer);
  }
};

// One call on both backends. Tensors are made in the order in which they are named; `dtype` data are at `offset`.
class Problem {
 public:
  Problem(int32_t dtype, int64_t offset) : dtype_(dtype), offset_(offset) {}

  int Normal(const char* name, int64_t count, float mean = 0, float spread = 1) {
    return Add(name, dtype_, count, mean, spread);
  }
  int Statistic(const char* name, int64_t count, float mean = 0, float spread = 0) {
    return Add(name, MT_F32, count, mean, spread);
  }
  int Integers(const char* name, std::vector<float> values) { return Values(name, MT_I32, values); }
  int Doubles(const char* name, int64_t count, float mean = 0, float spread = 0) {
    return Add(name, MT_F64, count, mean, spread);
  }
  int Values(const char* name, int32_t dtype, const std::vector<float>& values) {
    tensors_.push_back(
        std::make_unique<Tensor>(name, dtype, values, dtype == dtype_ ? offset_ : 0));
    return static_cast<int>(tensors_.size()) - 1;
  }
  // `fill(args, at)` sets all of the arguments but sizes of structs, types and workspace; at(-1) is null.
  template <typename Args, typename Fill>
  std::string Run(int32_t operation, Fill&& fill) {
    Call<Args>(false, operation, fill);
    Call<Args>(true, operation, fill);
    for (const auto& tensor : tensors_) {
      if (std::string wrong = tensor->Compare(); !wrong.empty()) return wrong;
      contents_ += tensor->Contents();
    }
    return "";
  }
  // The bits of all tensors after Run.
  const std::string& contents() const { return contents_; }

 private:
  int Add(const char* name, int32_t dtype, int64_t count, float mean, float spread) {
    std::vector<float> values(static_cast<size_t>(count));
    std::normal_distribution<float> normal;
    for (float& value : values) value = mean + spread * normal(random_);
    return Values(name, dtype, values);
  }
  template <typename Args, typename Fill>
  void Call(bool kernels, int32_t operation, Fill&& fill) {
    const mt_backend* backend = kernels ? emulated : reference;
    Args args = {};
    args.struct_size = sizeof args;
    args.dtype = dtype_;
    if constexpr (requires { args.gradient_dtype; }) args.gradient_dtype = MT_F32;
    if constexpr (requires { args.state_dtype; }) args.state_dtype = MT_F32;
    fill(args, [&](int i) -> Any {
      return {i < 0 ? nullptr : tensors_[static_cast<size_t>(i)]->Of(kernels)};
    });
    std::vector<double> workspace;
    if constexpr (requires { args.workspace; }) {
      const int64_t bytes = backend->workspace_bytes(operation, &args);
      ASSERT_GE(bytes, 0) << backend->error_message();
      workspace.assign(static_cast<size_t>(bytes) / 8 + 4, NAN);
      auto address = reinterpret_cast<uintptr_t>(workspace.data());
      args.workspace = reinterpret_cast<void*>((address + 15) / 16 * 16);
      args.workspace_bytes = static_cast<size_t>(bytes);
    }
    ASSERT_EQ(backend->run(operation, &args, nullptr), MT_OK) << backend->error_message();
  }
  int32_t dtype_;
  int64_t offset_;
  std::mt19937 random_{7};
  std::vector<std::unique_ptr<Tensor>> tensors_;
  std::string contents_;
};

// `solve` makes and runs a problem of a type and offset, and returns its bits. They are compared with the reference there, and
// here among orders of threads and blocks.
inline void Check(const std::string& what, const std::function<std::string(Problem&)>& solve,
                  const std::vector<int64_t>& offsets = {0, 1},
                  const std::vector<int32_t>& types = {MT_F32, MT_BF16}) {
  for (const int32_t dtype : types) {
    for (const int64_t offset : offsets) {
      std::string first;
      for (const char* seed : {"0", "1"}) {
        setenv("MT_EMULATOR_SEED", seed, 1);
        Problem problem(dtype, offset);
        const std::string wrong = solve(problem);
        ASSERT_EQ(wrong, "") << what << " type " << dtype << " offset " << offset << " seed "
                             << seed;
        if (first.empty()) first = problem.contents();
        ASSERT_EQ(first == problem.contents(), true) << what << ": other bits with seed " << seed;
      }
    }
  }
}

// main of a test: PROGRAM REFERENCE_LIBRARY EMULATED_LIBRARY
inline int Main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  std::string error;
  if (argc == 3) reference = conformance::LoadLibrary(argv[1], &error);
  if (reference != nullptr) emulated = conformance::LoadLibrary(argv[2], &error);
  if (emulated == nullptr) {
    std::fprintf(stderr, "usage: %s REFERENCE_LIBRARY EMULATED_LIBRARY %s\n", argv[0],
                 error.c_str());
    return 2;
  }
  return RUN_ALL_TESTS();
}

}  // namespace mt::cuda
