// flat_test REFERENCE_LIBRARY EMULATED_LIBRARY: what the table of cases (kernels/conformance) does not say about the operations
// over flat memory: results do not depend on alignment, on the order of threads and blocks, or on what lies beyond the ends.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/abi/small_floats.h"
#include "kernels/conformance/runner.h"

namespace mt::cuda {
namespace {

using ::testing::NanSensitiveDoubleEq;
using ::testing::NanSensitiveFloatEq;

const mt_backend* reference = nullptr;
const mt_backend* emulated = nullptr;

// Bytes at an address that is `offset` past a multiple of 64, with a canary on either side.
class Memory {
 public:
  Memory(size_t bytes, size_t offset) : storage_(bytes + offset + 192, '\x5a'), bytes_(bytes) {
    auto* start = storage_.data() + 64;
    start += (64 - reinterpret_cast<uintptr_t>(start) % 64) % 64;
    data_ = start + offset;
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  template <typename T>
  T* As() {
    return reinterpret_cast<T*>(data_);
  }
  std::string Contents() const { return {data_, bytes_}; }
  bool Intact() const {
    for (const char* p = storage_.data(); p < storage_.data() + storage_.size(); ++p) {
      if ((p < data_ || p >= data_ + bytes_) && *p != '\x5a') return false;
    }
    return true;
  }

 private:
  std::vector<char> storage_;
  size_t bytes_;
  char* data_;
};

size_t SizeOf(int32_t dtype) {
  if (dtype == MT_F64 || dtype == MT_I64) return 8;
  if (dtype == MT_BF16) return 2;
  return dtype == MT_U8 ? 1 : 4;
}

void FillRandom(Memory& memory, int32_t dtype, int64_t count, unsigned seed, float size = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, size);
  for (int64_t i = 0; i < count; ++i) {
    const float value = normal(random);
    if (dtype == MT_BF16)
      memory.As<uint16_t>()[i] = mt_bf16_from_float(value);
    else if (dtype == MT_F64)
      memory.As<double>()[i] = static_cast<double>(value) * (1 + 1e-9 * static_cast<double>(i));
    else
      memory.As<float>()[i] = value;
  }
}

template <typename Args>
void Call(const mt_backend* backend, int32_t operation, Args args) {
  args.struct_size = sizeof args;
  std::vector<char> workspace;
  if constexpr (requires { args.workspace; }) {
    workspace.resize(static_cast<size_t>(backend->workspace_bytes(operation, &args)) + 16);
    args.workspace_bytes = workspace.size() - 16;
    auto address = reinterpret_cast<uintptr_t>(workspace.data());
    args.workspace = reinterpret_cast<void*>((address + 15) / 16 * 16);
  }
  ASSERT_EQ(backend->run(operation, &args, nullptr), MT_OK) << backend->error_message();
}

// Every test runs with threads and blocks in order and in several shuffled orders.
class FlatTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override { setenv("MT_EMULATOR_SEED", GetParam(), 1); }
};
INSTANTIATE_TEST_SUITE_P(Seeds, FlatTest, ::testing::Values("0", "1", "2", "3"));

constexpr int64_t kCounts[] = {0, 1, 7, 8, 1023, 4099, 70001};

TEST_P(FlatTest, CopiesOfEveryPairRoundOnceAtAnyAlignment) {
  for (const int32_t from : {MT_F32, MT_F64, MT_BF16}) {
    for (const int32_t to : {MT_F32, MT_F64, MT_BF16}) {
      for (const int64_t count : kCounts) {
        for (const size_t offset : {size_t{0}, size_t{1}, size_t{3}}) {
          Memory source(static_cast<size_t>(count) * SizeOf(from), offset * SizeOf(from));
          FillRandom(source, from, count, 1);
          const size_t bytes = static_cast<size_t>(count) * SizeOf(to);
          Memory expected(bytes, 0), actual(bytes, offset * SizeOf(to));
          mt_copy_args args = {0, from, to, source.As<char>(), expected.As<char>(), count};
          Call(reference, MT_OP_COPY, args);
          args.destination = actual.As<char>();
          Call(emulated, MT_OP_COPY, args);
          EXPECT_EQ(actual.Contents(), expected.Contents())
              << from << " to " << to << ", " << count;
          EXPECT_TRUE(actual.Intact());
        }
      }
    }
  }
}

TEST_P(FlatTest, DoublesAreRoundedToBfloat16Once) {
  // 1 + 2^-8 lies between two bfloat16 values; a little more goes up, but is lost in a float on the way.
  const std::vector<double> values = {1 + 0x1p-8 + 0x1p-40,
                                      1 + 0x1p-8,
                                      -(1 + 0x1p-8 + 0x1p-40),
                                      1e300,
                                      -1e300,
                                      1e-300,
                                      -0.0,
                                      0x1.fep127 + 0x1p119 - 0x1p80,
                                      INFINITY,
                                      0x1p-133,
                                      0x1p-134,
                                      0x1.8p-134 + 0x1p-180};
  const std::vector<uint16_t> expected = {0x3f81, 0x3f80, 0xbf81, 0x7f80, 0xff80, 0x0000,
                                          0x8000, 0x7f7f, 0x7f80, 0x0001, 0x0000, 0x0001};
  std::vector<uint16_t> actual(values.size());
  Call(emulated, MT_OP_COPY,
       mt_copy_args{0, MT_F64, MT_BF16, values.data(), actual.data(),
                    static_cast<int64_t>(values.size())});
  EXPECT_EQ(actual, expected);
}

TEST_P(FlatTest, FillsWriteNothingBeyondTheEnd) {
  for (const int32_t type : {MT_F32, MT_F64, MT_BF16, MT_I32, MT_I64, MT_U8}) {
    for (const int64_t count : kCounts) {
      for (const size_t offset : {size_t{0}, size_t{1}}) {
        const size_t bytes = static_cast<size_t>(count) * SizeOf(type);
        Memory expected(bytes, 0), actual(bytes, offset * SizeOf(type));
        Call(reference, MT_OP_FILL, mt_fill_args{0, type, expected.As<char>(), count, 3.0});
        Call(emulated, MT_OP_FILL, mt_fill_args{0, type, actual.As<char>(), count, 3.0});
        EXPECT_EQ(actual.Contents(), expected.Contents()) << type;
        EXPECT_TRUE(actual.Intact());
      }
    }
  }
}

TEST_P(FlatTest, NormalsAreTheReferencesBitForBit) {
  for (const int32_t type : {MT_F32, MT_BF16}) {
    for (const uint64_t first : {uint64_t{0}, uint64_t{1}, (uint64_t{1} << 40) + 3}) {
      constexpr int64_t kRows = 5, kColumns = 33;
      const size_t bytes = kRows * kColumns * SizeOf(type);
      Memory expected(bytes, 0), actual(bytes, SizeOf(type));
      mt_fill_normal_args args = {
          0, type, expected.As<char>(), kRows, kColumns, first, 101, 7, 9, 0.25, 0.02};
      Call(reference, MT_OP_FILL_NORMAL, args);
      args.data = actual.As<char>();
      Call(emulated, MT_OP_FILL_NORMAL, args);
      EXPECT_EQ(actual.Contents(), expected.Contents());
      EXPECT_TRUE(actual.Intact());
    }
  }
}

TEST_P(FlatTest, SumsHaveTheSameBitsAtAnyAlignmentAndOrder) {
  for (const int32_t operation : {MT_OP_SUM, MT_OP_SQUARED_SUM}) {
    for (const int32_t type : {MT_F32, MT_BF16}) {
      for (const int64_t count : kCounts) {
        double aligned = 5, unaligned = 5, expected = 5, again = 5;
        Memory first(static_cast<size_t>(count) * SizeOf(type), 0),
            second(static_cast<size_t>(count) * SizeOf(type), SizeOf(type));
        FillRandom(first, type, count, 2);
        FillRandom(second, type, count, 2);
        Call(reference, operation,
             mt_squared_sum_args{0, type, first.As<char>(), count, &expected, 1});
        Call(emulated, operation,
             mt_squared_sum_args{0, type, first.As<char>(), count, &aligned, 1});
        Call(emulated, operation,
             mt_squared_sum_args{0, type, second.As<char>(), count, &unaligned, 1});
        EXPECT_EQ(aligned, unaligned);
        EXPECT_NEAR(aligned, expected, 1e-9 * (1 + static_cast<double>(count)));
        setenv("MT_EMULATOR_SEED", "12345", 1);
        Call(emulated, operation, mt_squared_sum_args{0, type, first.As<char>(), count, &again, 1});
        setenv("MT_EMULATOR_SEED", GetParam(), 1);
        EXPECT_EQ(aligned, again);
      }
    }
  }
}

TEST_P(FlatTest, ColumnSumsHaveTheSameBitsAtAnyAlignment) {
  struct Shape {
    int64_t rows, columns, stride;
  };
  for (const int32_t type : {MT_F32, MT_BF16}) {
    for (const auto& [rows, columns, stride] :
         {Shape{1, 1, 1}, Shape{33, 64, 64}, Shape{700, 24, 40}, Shape{65, 515, 515}}) {
      const auto count = rows * stride;
      Memory first(static_cast<size_t>(count) * SizeOf(type), 0),
          second(static_cast<size_t>(count) * SizeOf(type), SizeOf(type));
      FillRandom(first, type, count, 3);
      FillRandom(second, type, count, 3);
      const size_t bytes = static_cast<size_t>(columns) * 4;
      Memory expected(bytes, 0), aligned(bytes, 0), unaligned(bytes, 4);
      for (Memory* result : {&expected, &aligned, &unaligned})
        FillRandom(*result, MT_F32, columns, 4);
      mt_column_sum_args args = {0,       type,   MT_F32,           rows,
                                 columns, stride, first.As<char>(), expected.As<char>()};
      Call(reference, MT_OP_COLUMN_SUM, args);
      args.result = aligned.As<char>();
      Call(emulated, MT_OP_COLUMN_SUM, args);
      args.data = second.As<char>();
      args.result = unaligned.As<char>();
      Call(emulated, MT_OP_COLUMN_SUM, args);
      EXPECT_EQ(aligned.Contents(), unaligned.Contents());
      EXPECT_TRUE(unaligned.Intact());
      for (int64_t c = 0; c < columns; ++c)
        EXPECT_NEAR(aligned.As<float>()[c], expected.As<float>()[c], 1e-4) << rows << " " << c;
    }
  }
}

TEST_P(FlatTest, AmaxIsExactAndKeepsNaN) {
  for (const int32_t type : {MT_F32, MT_BF16}) {
    for (const int64_t count : kCounts) {
      Memory data(static_cast<size_t>(count) * SizeOf(type), SizeOf(type));
      FillRandom(data, type, count, 5);
      float expected = 0.125f, actual = 0.125f;
      Call(reference, MT_OP_AMAX, mt_amax_args{0, type, data.As<char>(), count, &expected});
      Call(emulated, MT_OP_AMAX, mt_amax_args{0, type, data.As<char>(), count, &actual});
      EXPECT_EQ(actual, expected);
      if (count == 0) continue;
      if (type == MT_F32)
        data.As<float>()[count / 2] = -std::nanf("");
      else
        data.As<uint16_t>()[count / 2] = 0xffc0;
      Call(emulated, MT_OP_AMAX, mt_amax_args{0, type, data.As<char>(), count, &actual});
      EXPECT_TRUE(std::isnan(actual));
    }
  }
}

TEST_P(FlatTest, ClipFactorFollowsNormAndLoss) {
  const auto factor = [](double squared_norm, const double* loss, double limit) {
    double expected = 0, actual = 0;
    Call(reference, MT_OP_CLIP_FACTOR,
         mt_clip_factor_args{0, &squared_norm, loss, &expected, limit});
    Call(emulated, MT_OP_CLIP_FACTOR, mt_clip_factor_args{0, &squared_norm, loss, &actual, limit});
    EXPECT_THAT(actual, NanSensitiveDoubleEq(expected));
    return actual;
  };
  const double good = 1, bad = NAN;
  EXPECT_EQ(factor(0.25, &good, 1), 1);
  EXPECT_NEAR(factor(16, nullptr, 1), 0.25, 1e-6);
  EXPECT_EQ(factor(16, &good, 0), 1);
  EXPECT_TRUE(std::isnan(factor(INFINITY, &good, 0)));
  EXPECT_TRUE(std::isnan(factor(NAN, &good, 1)));
  EXPECT_TRUE(std::isnan(factor(16, &bad, 1)));
}

struct Shard {
  Shard(int64_t count, int32_t dtype, size_t offset)
      : parameter(static_cast<size_t>(count) * SizeOf(dtype), offset * SizeOf(dtype)),
        master(static_cast<size_t>(count) * 4, offset * 4),
        gradient(static_cast<size_t>(count) * 4, offset * 4),
        m(static_cast<size_t>(count) * 4, offset * 4),
        v(static_cast<size_t>(count) * 4, offset * 4) {
    FillRandom(parameter, dtype, count, 6);
    FillRandom(master, MT_F32, count, 7);
    FillRandom(gradient, MT_F32, count, 8);
    FillRandom(m, MT_F32, count, 9, 0.1f);
    FillRandom(v, MT_F32, count, 10, 0.1f);
    for (int64_t i = 0; i < count; ++i) v.As<float>()[i] *= v.As<float>()[i];
  }
  mt_adamw_args Args(int64_t count, int32_t dtype, bool one_copy, const double* scale) {
    void* const copy = one_copy ? master.As<char>() : parameter.As<char>();
    return {0,
            dtype,
            MT_F32,
            MT_F32,
            count,
            copy,
            master.As<char>(),
            gradient.As<char>(),
            m.As<char>(),
            v.As<char>(),
            1e-3,
            0.9,
            0.95,
            1e-8,
            0.1,
            3,
            0.5,
            scale};
  }
  std::string Contents() const {
    return parameter.Contents() + master.Contents() + m.Contents() + v.Contents();
  }
  bool Intact() const { return parameter.Intact() && master.Intact() && m.Intact() && v.Intact(); }
  Memory parameter, master, gradient, m, v;
};

TEST_P(FlatTest, AdamWIsTheSameAtAnyAlignmentAndCloseToFloat64) {
  const double scale = 0.75;
  for (const int32_t dtype : {MT_F32, MT_BF16}) {
    for (const int64_t count : kCounts) {
      const bool one_copy = dtype == MT_F32 && count % 2 == 0;
      Shard expected(count, dtype, 0), aligned(count, dtype, 0), unaligned(count, dtype, 1);
      Call(reference, MT_OP_ADAMW, expected.Args(count, dtype, one_copy, &scale));
      Call(emulated, MT_OP_ADAMW, aligned.Args(count, dtype, one_copy, &scale));
      Call(emulated, MT_OP_ADAMW, unaligned.Args(count, dtype, one_copy, &scale));
      EXPECT_EQ(aligned.Contents(), unaligned.Contents());
      EXPECT_TRUE(aligned.Intact() && unaligned.Intact());
      for (int64_t i = 0; i < count; ++i) {
        EXPECT_NEAR(aligned.master.As<float>()[i], expected.master.As<float>()[i], 1e-6);
        EXPECT_NEAR(aligned.m.As<float>()[i], expected.m.As<float>()[i], 1e-6);
        EXPECT_NEAR(aligned.v.As<float>()[i], expected.v.As<float>()[i], 1e-6);
        if (dtype != MT_BF16) continue;
        // The working copy is the master rounded once.
        EXPECT_EQ(aligned.parameter.As<uint16_t>()[i],
                  mt_bf16_from_float(aligned.master.As<float>()[i]));
      }
    }
  }
}

TEST_P(FlatTest, AdamWChangesNothingWhereTheFactorIsNotFinite) {
  for (const double scale : {static_cast<double>(NAN), static_cast<double>(INFINITY)}) {
    Shard shard(1000, MT_BF16, 0);
    const std::string before = shard.Contents();
    Call(emulated, MT_OP_ADAMW, shard.Args(1000, MT_BF16, false, &scale));
    EXPECT_EQ(shard.Contents(), before);
  }
}

TEST_P(FlatTest, QuantisedCodesAreTheReferencesBitForBit) {
  struct Shape {
    int64_t rows, columns;
    size_t offset;
  };
  for (const int32_t type : {MT_F32, MT_BF16}) {
    for (const int32_t output_type : {MT_F8_E4M3, MT_F8_E5M2}) {
      for (const auto& [rows, columns, offset] :
           {Shape{1, 1, 0}, Shape{128, 128, 0}, Shape{16, 400, 0}, Shape{272, 144, 0},
            Shape{144, 272, 1}, Shape{131, 77, 0}}) {
        for (const float amax : {0.0f, 3.0f, 1e-38f, 1e-45f, INFINITY, NAN}) {
          for (const int outputs : {1, 2, 3}) {
            const auto count = static_cast<size_t>(rows * columns);
            Memory source(count * SizeOf(type), offset * SizeOf(type));
            FillRandom(source, type, rows * columns, 11);
            Memory output[2] = {{count, 0}, {count, offset}},
                   transposed[2] = {{count, 0}, {count, offset}};
            float scale[2] = {-1, -1};
            for (const int i : {0, 1}) {
              Call(i == 0 ? reference : emulated, MT_OP_QUANTIZE,
                   mt_quantize_args{0, type, output_type, rows, columns, source.As<char>(), &amax,
                                    outputs & 1 ? output[i].As<char>() : nullptr,
                                    outputs & 2 ? transposed[i].As<char>() : nullptr, &scale[i]});
            }
            EXPECT_EQ(output[0].Contents(), output[1].Contents())
                << rows << " x " << columns << " amax " << amax;
            EXPECT_EQ(transposed[0].Contents(), transposed[1].Contents())
                << rows << " x " << columns << " amax " << amax;
            EXPECT_TRUE(output[1].Intact() && transposed[1].Intact());
            EXPECT_THAT(scale[1], NanSensitiveFloatEq(scale[0]));
          }
        }
      }
    }
  }
}

int Main(int argc, char** argv) {
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

}  // namespace
}  // namespace mt::cuda

int main(int argc, char** argv) { return mt::cuda::Main(argc, argv); }
