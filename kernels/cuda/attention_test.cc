// attention_test REFERENCE_LIBRARY BACKEND_LIBRARY [CHOICE]: attention of a backend of these kernels against the reference in
// float64, on sizes at which tiles, groups and strides go wrong; CHOICE is what "attention" is configured to. Runs on the
// processor (emulated backend) and, as it is, on a device. MT_CONFORMANCE_SEED=<n> or `random` for other inputs.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/abi/small_floats.h"
#include "kernels/conformance/runner.h"

namespace mt {
namespace {

const mt_backend* reference = nullptr;
const mt_backend* backend = nullptr;
uint64_t seed = 0;

struct Shape {
  int64_t T, B, H, K, d;
  bool causal;
  int32_t dtype;
  int64_t padding;  // elements between rows
  int64_t v_head_dim = 0, window = 0;
  bool sinks = false;
  int64_t document = 0;  // tokens of each, all others' sequences shifted by a third
  int64_t keys = 0;      // forward alone, if not as many as T

  int64_t rows() const { return std::max(T, keys); }
  int64_t d_v() const { return v_head_dim != 0 ? v_head_dim : d; }
  // Elements of a row of q, k, v, and of o.
  int64_t width() const { return (H + K) * d + K * d_v(); }
  int64_t o_width() const { return H * d_v(); }
};

// Elements of one type in a backend's memory, between two guards, everything poisoned (all bits set: NaN) until written.
class Array {
 public:
  Array(const mt_backend* owner, int32_t dtype, int64_t count)
      : owner_(owner),
        dtype_(dtype),
        bytes_(static_cast<size_t>(count) * Size()),
        host_(bytes_ + 2 * kGuard, '\xff') {
    EXPECT_EQ(owner->allocate(host_.size(), &data_), MT_OK);
    Upload();
  }
  Array(const mt_backend* owner, int32_t dtype, const std::vector<double>& values)
      : Array(owner, dtype, static_cast<int64_t>(values.size())) {
    for (size_t i = 0; i < values.size(); ++i) Put(i, values[i]);
    Upload();
  }
  ~Array() { owner_->free(data_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  char* at(int64_t element = 0) const {
    return static_cast<char*>(data_) + kGuard + element * static_cast<int64_t>(Size());
  }
  size_t bytes() const { return bytes_; }
  std::vector<double> Read() {
    EXPECT_EQ(owner_->copy_to_host(host_.data(), data_, host_.size(), nullptr), MT_OK);
    EXPECT_EQ(owner_->stream_synchronize(nullptr), MT_OK) << owner_->error_message();
    for (size_t i = 0; i < kGuard; ++i) {
      if (host_[i] != '\xff' || host_[host_.size() - 1 - i] != '\xff') {
        ADD_FAILURE() << "written outside";
        break;
      }
    }
    std::vector<double> values(bytes_ / Size());
    for (size_t i = 0; i < values.size(); ++i) values[i] = Get(i);
    return values;
  }

 private:
  static constexpr size_t kGuard = 4096;
  size_t Size() const {
    return dtype_ == MT_F64                       ? 8
           : dtype_ == MT_F32 || dtype_ == MT_I32 ? 4
           : dtype_ == MT_BF16                    ? 2
                                                  : 1;
  }
  void Upload() {
    EXPECT_EQ(owner_->copy_to_device(data_, host_.data(), host_.size(), nullptr), MT_OK);
    EXPECT_EQ(owner_->stream_synchronize(nullptr), MT_OK);
  }
  template <typename T>
  void PutAs(size_t i, T value) {
    std::memcpy(host_.data() + kGuard + i * sizeof value, &value, sizeof value);
  }
  template <typename T>
  T GetAs(size_t i) const {
    T value;
    std::memcpy(&value, host_.data() + kGuard + i * sizeof value, sizeof value);
    return value;
  }
  void Put(size_t i, double value) {
    if (dtype_ == MT_F64) PutAs(i, value);
    if (dtype_ == MT_F32) PutAs(i, static_cast<float>(value));
    if (dtype_ == MT_I32) PutAs(i, static_cast<int32_t>(value));
    if (dtype_ == MT_BF16) PutAs(i, mt_bf16_from_float(static_cast<float>(value)));
  }
  double Get(size_t i) const {
    if (dtype_ == MT_F64) return GetAs<double>(i);
    if (dtype_ == MT_F32) return static_cast<double>(GetAs<float>(i));
    if (dtype_ == MT_I32) return GetAs<int32_t>(i);
    if (dtype_ == MT_BF16) return static_cast<double>(mt_float_from_bf16(GetAs<uint16_t>(i)));
    return 0;
  }

  const mt_backend* owner_;
  int32_t dtype_;
  size_t bytes_;
  std::vector<char> host_;
  void* data_ = nullptr;
};

struct Results {
  std::vector<double> o, lse, gradient, sinks_gradient;
};
struct Inputs {
  std::vector<double> qkv, o_gradient, sinks;
};

mt_attention_args SizesOf(const Shape& s, int32_t dtype) {
  mt_attention_args a = {.struct_size = sizeof(mt_attention_args),
                         .dtype = dtype,
                         .sequence = s.T,
                         .batch = s.B,
                         .heads = s.H,
                         .kv_heads = s.K,
                         .head_dim = s.d,
                         .scale = 1 / std::sqrt(static_cast<double>(s.d)),
                         .causal = s.causal,
                         .v_head_dim = s.v_head_dim,
                         .window = s.window,
                         .key_sequence = s.keys};
  a.q_stride = a.k_stride = a.v_stride = a.dq_stride = a.dk_stride = a.dv_stride =
      s.width() + s.padding;
  a.o_stride = a.o_gradient_stride = s.o_width() + s.padding;
  return a;
}

// Documents of equal length, (T, B); those of sequence b begin b thirds of a document later.
std::vector<double> Starts(const Shape& s) {
  std::vector<double> starts;
  for (int64_t t = 0; s.document != 0 && t < s.T; ++t) {
    for (int64_t b = 0; b < s.B; ++b) {
      const int64_t shift = b * s.document / 3;
      starts.push_back(
          static_cast<double>(std::max<int64_t>(0, (t + shift) / s.document * s.document - shift)));
    }
  }
  return starts;
}

// q, k, v in one row of `width` elements, o and its gradient in rows of their own; forward, then backward from `o` and `lse` if
// given, else from forward's.
Results Compute(const mt_backend* on, const Shape& s, int32_t dtype, const Inputs& inputs,
                const Results* saved) {
  const int64_t width = s.width() + s.padding, o_width = s.o_width() + s.padding, rows = s.T * s.B;
  const int32_t statistic = dtype == MT_F64 ? MT_F64 : MT_F32;
  Array qkv(on, dtype, inputs.qkv), o_gradient(on, dtype, inputs.o_gradient);
  Array o(on, dtype, rows * o_width), lse(on, statistic, s.B * s.H * s.T),
      gradient(on, dtype, rows * width);
  Array sinks(on, dtype, inputs.sinks),
      sinks_gradient(on, statistic, std::vector<double>(inputs.sinks.size(), 0.5));
  Array starts(on, MT_I32, Starts(s));
  mt_attention_args a = SizesOf(s, dtype);
  a.sinks = s.sinks ? sinks.at() : nullptr;
  a.document_start = s.document != 0 ? reinterpret_cast<const int32_t*>(starts.at()) : nullptr;
  a.q = qkv.at();
  a.k = qkv.at(s.H * s.d);
  a.v = qkv.at((s.H + s.K) * s.d);
  a.o = o.at();
  a.lse = lse.at();
  const auto run = [&](int32_t operation) {
    const int64_t bytes = on->workspace_bytes(operation, &a);
    EXPECT_GE(bytes, 0) << on->error_message();
    Array workspace(on, MT_U8, bytes);
    a.workspace = workspace.at();
    a.workspace_bytes = workspace.bytes();
    EXPECT_EQ(on->run(operation, &a, nullptr), MT_OK) << on->error_message();
    workspace.Read();
  };
  run(MT_OP_ATTENTION_FORWARD);
  Results results{o.Read(), lse.Read(), {}, {}};
  if (s.keys != 0) return results;
  Array saved_o(on, dtype, saved == nullptr ? results.o : saved->o);
  Array saved_lse(on, statistic, saved == nullptr ? results.lse : saved->lse);
  a.o = saved_o.at();
  a.lse = saved_lse.at();
  a.o_gradient = o_gradient.at();
  a.dq = gradient.at();
  a.dk = gradient.at(s.H * s.d);
  a.dv = gradient.at((s.H + s.K) * s.d);
  a.sinks_gradient = s.sinks ? sinks_gradient.at() : nullptr;
  a.sinks_gradient_dtype = s.sinks ? statistic : 0;
  run(MT_OP_ATTENTION_BACKWARD);
  results.gradient = gradient.Read();
  results.sinks_gradient = sinks_gradient.Read();
  return results;
}

// ||actual - expected|| / ||expected|| of what the operation writes; everything else must be as poisoned as it was.
double RelativeError(const std::vector<double>& actual, const std::vector<double>& expected,
                     int64_t width, int64_t used) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    if (static_cast<int64_t>(i) % width >= used) {
      EXPECT_TRUE(std::isnan(actual[i])) << "written between rows, at " << i;
      continue;
    }
    difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  return std::sqrt(difference / (size > 0 ? size : 1));
}

double LargestError(const std::vector<double>& actual, const std::vector<double>& expected) {
  double largest = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double error = std::abs(actual[i] - expected[i]);
    largest = std::isnan(error) ? INFINITY : std::max(largest, error);
  }
  return largest;
}

void PrintTo(const Shape& s, std::ostream* out) {
  *out << "T " << s.T << " B " << s.B << " H " << s.H << " K " << s.K << " d " << s.d;
}

class AttentionTest : public ::testing::TestWithParam<Shape> {};

Inputs MakeInputs(const Shape& s) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  const auto make = [&](int64_t count) {
    std::vector<double> values(static_cast<size_t>(count));
    for (double& value : values)
      value = static_cast<double>(
          mt_float_from_bf16(mt_bf16_from_float(static_cast<float>(normal(random)))));
    return values;
  };
  return {make(s.rows() * s.B * (s.width() + s.padding)),
          make(s.T * s.B * (s.o_width() + s.padding)), make(s.H)};
}

TEST_P(AttentionTest, AgreesWithFloat64AndRepeatsItsBits) {
  const Shape s = GetParam();
  const mt_attention_args sizes = SizesOf(s, s.dtype);
  for (const int32_t operation : {MT_OP_ATTENTION_FORWARD, MT_OP_ATTENTION_BACKWARD}) {
    if (!backend->supports(operation, &sizes)) GTEST_SKIP() << backend->error_message();
  }
  std::printf("%s, backward %s\n", backend->kernel_name(MT_OP_ATTENTION_FORWARD, &sizes),
              backend->kernel_name(MT_OP_ATTENTION_BACKWARD, &sizes));
  const Inputs inputs = MakeInputs(s);
  const Results exact = Compute(reference, s, MT_F64, inputs, nullptr);
  Results first;
  // Seeds of the emulated backend, of both parities (vendor/mma_host.h); a device has an order of its own every time.
  for (const char* order : {"0", "1", "6"}) {
    ASSERT_EQ(setenv("MT_EMULATOR_SEED", order, 1), 0);
    const Results actual = Compute(backend, s, s.dtype, inputs, nullptr);
    if (first.o.empty()) {
      first = actual;
      const int64_t width = s.width(), o_width = s.o_width();
      // bf16 rounds P, dS and the results, each by up to 2^-9; dS once more from the rounded O.
      const double tolerance = s.dtype == MT_BF16 ? 5e-3 : 3e-6;
      EXPECT_LT(RelativeError(actual.o, exact.o, o_width + s.padding, o_width), tolerance)
          << "seed " << seed;
      EXPECT_LT(RelativeError(actual.gradient, exact.gradient, width + s.padding, width),
                2 * tolerance)
          << "seed " << seed;
      EXPECT_LT(LargestError(actual.lse, exact.lse), 1e-5) << "seed " << seed;
      EXPECT_LT(RelativeError(actual.sinks_gradient, exact.sinks_gradient, 1, 1), 2 * tolerance)
          << "seed " << seed;
    } else {
      EXPECT_EQ(0, std::memcmp(first.o.data(), actual.o.data(), first.o.size() * 8))
          << "seed " << seed;
      EXPECT_EQ(0, std::memcmp(first.lse.data(), actual.lse.data(), first.lse.size() * 8))
          << "seed " << seed;
      EXPECT_EQ(first.sinks_gradient, actual.sinks_gradient) << "seed " << seed;
      EXPECT_EQ(
          0, std::memcmp(first.gradient.data(), actual.gradient.data(), first.gradient.size() * 8))
          << "seed " << seed;
    }
  }
}

std::string NameOf(const ::testing::TestParamInfo<Shape>& info) {
  const Shape& s = info.param;
  return std::string(s.dtype == MT_BF16 ? "bf16" : "f32") + "_t" + std::to_string(s.T) + "_b" +
         std::to_string(s.B) + "_h" + std::to_string(s.H) + "_k" + std::to_string(s.K) + "_d" +
         std::to_string(s.d) + (s.causal ? "_causal" : "_full") + "_padding" +
         std::to_string(s.padding) +
         (s.document != 0 ? "_documents" + std::to_string(s.document) : "");
}

// Groups of 1, 2 and 8; lengths at, before and after the borders of tiles of 32, 64 and 128; head sizes with kernels of their own,
// in between and odd; rows with a gap, which may break the alignment (13).
std::vector<Shape> Shapes() {
  std::vector<Shape> shapes;
  for (const bool causal : {true, false}) {
    shapes.push_back({130, 2, 2, 1, 64, causal, MT_BF16, 0});
    shapes.push_back({193, 1, 2, 2, 128, causal, MT_BF16, 8});
    shapes.push_back({70, 1, 8, 1, 128, causal, MT_BF16, 16});
    shapes.push_back({128, 1, 2, 1, 96, causal, MT_BF16, 0});
    shapes.push_back({65, 1, 2, 1, 80, causal, MT_BF16, 0});
    shapes.push_back({63, 3, 2, 1, 8, causal, MT_BF16, 0});
    shapes.push_back({1, 2, 2, 1, 64, causal, MT_BF16, 0});
    shapes.push_back({97, 1, 2, 1, 192, causal, MT_BF16, 0});
    shapes.push_back({67, 1, 1, 1, 256, causal, MT_BF16, 0});
    shapes.push_back({66, 2, 4, 2, 64, causal, MT_BF16, 13});
    shapes.push_back({67, 1, 2, 1, 33, causal, MT_BF16, 0});
    for (const int64_t d : {20, 33, 64, 128, 256})
      shapes.push_back({67, 2, 2, 1, d, causal, MT_F32, d == 64 ? 13 : 0});
  }
  for (const int32_t dtype : {MT_BF16, MT_F32}) {
    shapes.push_back({140, 1, 2, 1, 64, true, dtype, 0, 0, 32, true});
    shapes.push_back({200, 1, 2, 2, 192, true, dtype, 0, 128});
    shapes.push_back({97, 1, 2, 2, 192, false, dtype, 8, 128, 0, true});
    shapes.push_back({150, 2, 2, 1, 192, true, dtype, 0, 128, 65});
    shapes.push_back({150, 2, 1, 1, 64, true, dtype, 0, 0, 0, false, 40});
    shapes.push_back({97, 2, 2, 1, 128, true, dtype, 8, 0, 40, true, 64});
    shapes.push_back({66, 1, 2, 2, 192, true, dtype, 0, 128, 0, false, 3});
  }
  shapes.push_back({330, 1, 2, 1, 64, true, MT_BF16, 0});
  shapes.push_back({290, 1, 1, 1, 128, true, MT_BF16, 0});
  return shapes;
}
INSTANTIATE_TEST_SUITE_P(Shapes, AttentionTest, ::testing::ValuesIn(Shapes()), NameOf);

// Scores so far apart that one key has all the weight, and so large that exponentials of them would overflow.
TEST(AttentionExtremesTest, LargeScoresDoNotOverflow) {
  const Shape s{100, 1, 1, 1, 64, true, MT_BF16, 0};
  Inputs inputs = MakeInputs(s);
  for (double& value : inputs.qkv) value *= 16;
  const Results exact = Compute(reference, s, MT_F64, inputs, nullptr),
                actual = Compute(backend, s, MT_BF16, inputs, nullptr);
  EXPECT_LT(RelativeError(actual.o, exact.o, s.d, s.d), 5e-3) << "seed " << seed;
  EXPECT_LT(LargestError(actual.lse, exact.lse), 0.02)
      << "seed " << seed;  // of scores of some thousands
}

// What one tile of keys hands to the next is exact while the maximum stays: else a hundred tiles multiply its error. The scores are
// exact sums of halves and quarters; lse, about 70, is rounded to 4e-6.
TEST(AttentionExtremesTest, ManyKeysWithLargeScoresDoNotDrift) {
  for (const int32_t dtype : {MT_BF16, MT_F32}) {
    Shape s{16, 1, 1, 1, 64, true, dtype, 0};
    s.keys = 8192;
    const mt_attention_args sizes = SizesOf(s, dtype);
    const bool supported = backend->supports(MT_OP_ATTENTION_FORWARD, &sizes) != 0;
    const std::string kernel = supported ? backend->kernel_name(MT_OP_ATTENTION_FORWARD, &sizes)
                                         : backend->error_message();
    if (!supported || kernel.rfind("cudnn", 0) == 0) {
      std::printf("not a kernel of ours: %s\n", kernel.c_str());
      continue;
    }
    Inputs inputs = MakeInputs(s);
    for (double& value : inputs.qkv) value = std::round(value * 8) / 2;
    const Results exact = Compute(reference, s, MT_F64, inputs, nullptr),
                  actual = Compute(backend, s, dtype, inputs, nullptr);
    EXPECT_GT(exact.lse[0], 40);
    EXPECT_LT(LargestError(actual.lse, exact.lse), 2e-5) << kernel << ", seed " << seed;
    EXPECT_LT(RelativeError(actual.o, exact.o, s.d, s.d), 5e-3) << kernel << ", seed " << seed;
  }
}

// A key head and its queries know nothing of the others: by themselves they give what they give among them. On a device a sequence
// is taken that is too long for cuDNN's workspace, which then cuts it over its heads; another number of heads may have another
// engine, so there the last bits may differ.
TEST(AttentionHeadsTest, AreIndependent) {
  mt_device_info info = {};
  info.struct_size = sizeof info;
  backend->probe(&info);
  const bool device = (info.capabilities & MT_CAPABILITY_HOST_MEMORY) == 0;
  const Shape s = device ? Shape{8192, 1, 16, 4, 128, true, MT_BF16, 0}
                         : Shape{130, 1, 4, 2, 64, true, MT_BF16, 0};
  const mt_attention_args sizes = SizesOf(s, s.dtype);
  for (const int32_t operation : {MT_OP_ATTENTION_FORWARD, MT_OP_ATTENTION_BACKWARD}) {
    if (!backend->supports(operation, &sizes)) GTEST_SKIP() << backend->error_message();
  }
  std::printf("backward %s\n", backend->kernel_name(MT_OP_ATTENTION_BACKWARD, &sizes));
  const Inputs inputs = MakeInputs(s);
  const Results all = Compute(backend, s, s.dtype, inputs, nullptr);

  const int64_t group = s.H / s.K, width = s.width(), o_width = s.o_width();
  Array qkv(backend, s.dtype, inputs.qkv), o_gradient(backend, s.dtype, inputs.o_gradient);
  Array o(backend, s.dtype, s.T * o_width), lse(backend, MT_F32, s.H * s.T),
      gradient(backend, s.dtype, s.T * width);
  for (int64_t k = 0; k < s.K; ++k) {
    mt_attention_args a = sizes;
    a.heads = group;
    a.kv_heads = 1;
    a.q = qkv.at(k * group * s.d);
    a.k = qkv.at((s.H + k) * s.d);
    a.v = qkv.at((s.H + s.K + k) * s.d);
    a.o = o.at(k * group * s.d);
    a.lse = static_cast<char*>(lse.at()) + 4 * k * group * s.T;
    a.o_gradient = o_gradient.at(k * group * s.d);
    a.dq = gradient.at(k * group * s.d);
    a.dk = gradient.at((s.H + k) * s.d);
    a.dv = gradient.at((s.H + s.K + k) * s.d);
    for (const int32_t operation : {MT_OP_ATTENTION_FORWARD, MT_OP_ATTENTION_BACKWARD}) {
      Array workspace(backend, MT_U8, backend->workspace_bytes(operation, &a));
      a.workspace = workspace.at();
      a.workspace_bytes = workspace.bytes();
      ASSERT_EQ(backend->run(operation, &a, nullptr), MT_OK) << backend->error_message();
      workspace.Read();
    }
  }
  const auto same = [device](const std::vector<double>& a, const std::vector<double>& b) {
    if (device) return RelativeError(a, b, 1, 1) < 5e-3;
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
  };
  EXPECT_TRUE(same(o.Read(), all.o)) << "seed " << seed;
  EXPECT_TRUE(same(lse.Read(), all.lse)) << "seed " << seed;
  EXPECT_TRUE(same(gradient.Read(), all.gradient)) << "seed " << seed;
}

}  // namespace
}  // namespace mt

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (argc < 3) {
    std::fprintf(stderr, "usage: attention_test REFERENCE_LIBRARY BACKEND_LIBRARY [CHOICE]\n");
    return 2;
  }
  mt::seed = mt::conformance::SeedFromEnvironment();
  std::string error;
  for (auto [library, path] :
       {std::pair{&mt::reference, argv[1]}, std::pair{&mt::backend, argv[2]}}) {
    *library = mt::conformance::LoadLibrary(path, &error);
    if (*library == nullptr) {
      std::fprintf(stderr, "%s: %s\n", path, error.c_str());
      return 2;
    }
    mt_device_info info = {};
    info.struct_size = sizeof info;
    if ((*library)->probe(&info) <= 0) {
      std::printf("skipped: %s: %s\n", path, info.detail);
      return 0;
    }
    if (argc > 3 && library == &mt::backend &&
        (*library)->configure("attention", argv[3]) != MT_OK) {
      std::fprintf(stderr, "%s\n", (*library)->error_message());
      return 2;
    }
    if ((*library)->open(0, 0) != MT_OK) {
      std::fprintf(stderr, "%s: %s\n", path, (*library)->error_message());
      return 2;
    }
  }
  return RUN_ALL_TESTS();
}
