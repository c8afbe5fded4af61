// SwiGLU (Shazeer 2020, arXiv 2002.05202) and GELU (Hendrycks & Gimpel 2016, arXiv 1606.08415), with the formulas of
// mt_backend.h. One pass; no element depends on another, so the bits depend on nothing else.
//
// Bytes that cannot be avoided, e = bytes of an element: SwiGLU forward 3 N D e, backward 5 N D e, or 6 N D e when it makes the
// output again; GELU forward 2 N C e, backward 3 N C e.
//
// Every thread loads all its packs before it stores the first, and stores where it alone has loaded: results may lie exactly
// over inputs, as the contract allows.
#include "kernels/cuda/amax.h"
#include "kernels/cuda/exponential.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/packs.h"
#include "kernels/cuda/status.h"

namespace mt::cuda {
namespace {

template <typename T>
struct SwigluArguments {
  const T* gate_up;          // (N, 2D)
  T* output;                 // (N, D); null in a backward pass that does not make it again
  const T* output_gradient;  // (N, D)
  T* gate_up_gradient;       // (N, 2D)
  int64_t rows, columns;     // N, D
  float* amax;
  float limit, alpha, offset;  // not read by the plain kernels: limit infinite if there is none
};

template <typename T>
struct GeluArguments {
  const T *x, *bias;         // (N, C), (C) or null
  T* output;                 // (N, C): the input's gradient in the backward pass
  const T* output_gradient;  // (N, C)
  int64_t rows, columns;     // N, C
  float* amax;
};

// Packs of one thread that are on their way together.
template <int N>
inline constexpr int kInFlight = N == 1 ? 4 : 2;

// One element's gate and up as the formula takes them. Comparisons, not min and max, which would make a number of a NaN.
template <bool kPlain>
struct SwigluInput {
  float gate, up;  // cut to the limits, the offset added
  bool gate_cut, up_cut;
};
template <bool kPlain, typename T>
__device__ __forceinline__ SwigluInput<kPlain> SwigluInputOf(const SwigluArguments<T>& a,
                                                             float gate, float up) {
  if constexpr (kPlain) return {gate, up, false, false};
  const bool gate_cut = gate > a.limit, above = up > a.limit, below = up < -a.limit;
  return {gate_cut ? a.limit : gate,
          (above   ? a.limit
           : below ? -a.limit
                   : up) +
              a.offset,
          gate_cut, above || below};
}
template <typename T, bool kPlain>
__device__ __forceinline__ float GateSigmoid(const SwigluArguments<T>& a, float gate) {
  return Sigmoid<T>(kPlain ? gate : a.alpha * gate);
}

template <typename T, int N, bool kPlain>
__global__ void __launch_bounds__(kStreamThreads) SwigluForwardKernel(SwigluArguments<T> a) {
  constexpr int kItems = kInFlight<N>;
  int most = 0;
  ForEachPiece<kItems>(
      a.rows, static_cast<uint32_t>(a.columns / N), [&](const RowItem(&items)[kItems]) {
        Pack<T, N> gate[kItems], up[kItems];
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
          if (items[i].row >= a.rows) continue;
          const T* at = a.gate_up + items[i].row * 2 * a.columns + int64_t{items[i].item} * N;
          gate[i] = LoadPack<N>(at);
          up[i] = LoadPack<N>(at + a.columns);
        }
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
          if (items[i].row >= a.rows) continue;
          Pack<T, N> output;
#pragma unroll
          for (int k = 0; k < N; ++k) {
            const auto in = SwigluInputOf<kPlain>(a, ToFloat(gate[i].at[k]), ToFloat(up[i].at[k]));
            output.at[k] = FromFloat<T>(in.gate * GateSigmoid<T, kPlain>(a, in.gate) * in.up);
            most = max(most, MagnitudeBits(output.at[k]));
          }
          StorePack(a.output + items[i].row * a.columns + int64_t{items[i].item} * N, output);
        }
      });
  if (a.amax != nullptr) StoreAmax<kStreamThreads>(a.amax, most);
}

// With s = sigmoid(alpha g): d (g s) / dg = s (1 + alpha g (1 - s)).
template <typename T, int N, bool kPlain>
__global__ void __launch_bounds__(kStreamThreads) SwigluBackwardKernel(SwigluArguments<T> a) {
  constexpr int kItems = kInFlight<N>;
  int most = 0;
  ForEachPiece<kItems>(
      a.rows, static_cast<uint32_t>(a.columns / N), [&](const RowItem(&items)[kItems]) {
        Pack<T, N> gate[kItems], up[kItems], dy[kItems];
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
          if (items[i].row >= a.rows) continue;
          const int64_t column = int64_t{items[i].item} * N;
          const T* at = a.gate_up + items[i].row * 2 * a.columns + column;
          gate[i] = LoadPack<N>(at);
          up[i] = LoadPack<N>(at + a.columns);
          dy[i] = LoadPack<N>(a.output_gradient + items[i].row * a.columns + column);
        }
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
          if (items[i].row >= a.rows) continue;
          Pack<T, N> gate_gradient, up_gradient, output;
#pragma unroll
          for (int k = 0; k < N; ++k) {
            const auto in = SwigluInputOf<kPlain>(a, ToFloat(gate[i].at[k]), ToFloat(up[i].at[k]));
            const float g = in.gate, u = in.up;
            const float d = ToFloat(dy[i].at[k]), sigmoid = GateSigmoid<T, kPlain>(a, g);
            const float slope = kPlain ? g : a.alpha * g;
            const float dg = d * u * sigmoid * (1.0f + slope * (1.0f - sigmoid));
            const float du = d * g * sigmoid;
            gate_gradient.at[k] = FromFloat<T>(in.gate_cut ? 0.0f : dg);
            up_gradient.at[k] = FromFloat<T>(in.up_cut ? 0.0f : du);
            output.at[k] = FromFloat<T>(g * sigmoid * u);
            most = max(most, MagnitudeBits(gate_gradient.at[k]));
            most = max(most, MagnitudeBits(up_gradient.at[k]));
          }
          const int64_t column = int64_t{items[i].item} * N;
          T* at = a.gate_up_gradient + items[i].row * 2 * a.columns + column;
          StorePack(at, gate_gradient);
          StorePack(at + a.columns, up_gradient);
          if (a.output != nullptr) StorePack(a.output + items[i].row * a.columns + column, output);
        }
      });
  if (a.amax != nullptr) StoreAmax<kStreamThreads>(a.amax, most);
}

constexpr float kInverseRoot2 = 0.70710678118654752f;     // 1 / sqrt(2)
constexpr float kInverseRoot2Pi = 0.39894228040143268f;   // 1 / sqrt(2 pi)
constexpr float kTwiceRoot2OverPi = 1.5957691216057308f;  // 2 sqrt(2 / pi)
constexpr float kCubic = 0.044715f;

// 0.5 (1 + tanh(y)) is sigmoid(2 y), which loses no digits where tanh is near -1.
template <typename T, bool kTanh>
__device__ __forceinline__ float GeluFactor(float z) {
  if constexpr (kTanh) return Sigmoid<T>(kTwiceRoot2OverPi * (z + kCubic * z * z * z));
  return 0.5f * (1.0f + erff(z * kInverseRoot2));
}
template <typename T, bool kTanh>
__device__ __forceinline__ float GeluDerivative(float z) {
  const float factor = GeluFactor<T, kTanh>(z);
  if constexpr (kTanh) {
    const float slope = kTwiceRoot2OverPi * (1.0f + 3.0f * kCubic * z * z);
    return factor + z * factor * (1.0f - factor) * slope;
  }
  return factor + z * kInverseRoot2Pi * Exp<T>(-0.5f * z * z);
}

template <typename T, int N, bool kTanh, bool kBackward>
__global__ void __launch_bounds__(kStreamThreads) GeluKernel(GeluArguments<T> a) {
  constexpr int kItems = kInFlight<N>;
  int most = 0;
  ForEachPiece<kItems>(
      a.rows, static_cast<uint32_t>(a.columns / N), [&](const RowItem(&items)[kItems]) {
        Pack<T, N> x[kItems] = {}, bias[kItems] = {}, dy[kItems] = {};
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
          if (items[i].row >= a.rows) continue;
          const int64_t column = int64_t{items[i].item} * N;
          x[i] = LoadPack<N>(a.x + items[i].row * a.columns + column);
          if (a.bias != nullptr) bias[i] = LoadPack<N>(a.bias + column);
          if constexpr (kBackward)
            dy[i] = LoadPack<N>(a.output_gradient + items[i].row * a.columns + column);
        }
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
          if (items[i].row >= a.rows) continue;
          Pack<T, N> result;
#pragma unroll
          for (int k = 0; k < N; ++k) {
            const float z = ToFloat(x[i].at[k]) + ToFloat(bias[i].at[k]);
            if constexpr (kBackward) {
              result.at[k] = FromFloat<T>(ToFloat(dy[i].at[k]) * GeluDerivative<T, kTanh>(z));
            } else {
              result.at[k] = FromFloat<T>(z * GeluFactor<T, kTanh>(z));
            }
            most = max(most, MagnitudeBits(result.at[k]));
          }
          StorePack(a.output + items[i].row * a.columns + int64_t{items[i].item} * N, result);
        }
      });
  if (a.amax != nullptr) StoreAmax<kStreamThreads>(a.amax, most);
}

// Launches `wide` if every row is whole packs at 16-byte boundaries, else `single` for single elements.
template <typename T, typename Arguments, typename Kernel>
int32_t LaunchPieces(int32_t operation, const Arguments& a, std::initializer_list<const void*> data,
                     Kernel* wide, Kernel* single, const Launch& launch) {
  if (a.rows == 0 || a.columns == 0) return MT_OK;
  constexpr int N = kPackElements<T>;
  if (a.columns > kMostItems) {
    return host::Fail(MT_ERROR_UNSUPPORTED, operation, "columns = %lld is more than 2^31 - 1",
                      static_cast<long long>(a.columns));
  }
  bool aligned = a.columns % N == 0;
  for (const void* pointer : data) aligned = aligned && IsAligned(pointer);
  const int64_t items = a.rows * (aligned ? a.columns / N : a.columns);
  const int64_t each = int64_t{kStreamThreads} * (aligned ? kInFlight<N> : kInFlight<1>);
  MT_CUDA(MT_LAUNCH(aligned ? wide : single, GridOf(DivideUp(items, each)), kStreamThreads, 0,
                    launch.stream, a));
  return MT_OK;
}

template <typename T>
SwigluArguments<T> SwigluOf(const mt_swiglu_args& args) {
  SwigluArguments<T> a = {};
  a.gate_up = static_cast<const T*>(args.gate_up);
  a.output = static_cast<T*>(args.output);
  a.output_gradient = static_cast<const T*>(args.output_gradient);
  a.gate_up_gradient = static_cast<T*>(args.gate_up_gradient);
  a.rows = args.rows;
  a.columns = args.columns;
  a.amax = args.amax;
  a.limit = args.limit > 0 ? static_cast<float>(args.limit) : __builtin_huge_valf();
  a.alpha = args.alpha != 0 ? static_cast<float>(args.alpha) : 1.0f;
  a.offset = static_cast<float>(args.offset);
  return a;
}
// Without limit, alpha and offset the kernels are those of a plain SwiGLU: nothing is tested per element.
bool IsPlain(const mt_swiglu_args& args) {
  return args.limit == 0 && (args.alpha == 0 || args.alpha == 1) && args.offset == 0;
}

template <bool kTanh, bool kBackward>
int32_t Gelu(const mt_gelu_args& args, const Launch& launch) {
  return WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    GeluArguments<T> a = {};
    a.x = static_cast<const T*>(args.x);
    a.bias = static_cast<const T*>(args.bias);
    a.output = static_cast<T*>(kBackward ? args.input_gradient : args.output);
    a.output_gradient = kBackward ? static_cast<const T*>(args.output_gradient) : nullptr;
    a.rows = args.rows;
    a.columns = args.columns;
    a.amax = args.amax;
    return LaunchPieces<T>(kBackward ? MT_OP_GELU_BACKWARD : MT_OP_GELU_FORWARD, a,
                           {a.x, a.bias, a.output, a.output_gradient},
                           GeluKernel<T, kPackElements<T>, kTanh, kBackward>,
                           GeluKernel<T, 1, kTanh, kBackward>, launch);
  });
}

}  // namespace

int32_t SwigluForward(const mt_swiglu_args& args, const Launch& launch) {
  return WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int N = kPackElements<T>;
    const SwigluArguments<T> a = SwigluOf<T>(args);
    const bool plain = IsPlain(args);
    return LaunchPieces<T>(
        MT_OP_SWIGLU_FORWARD, a, {a.gate_up, a.output},
        plain ? SwigluForwardKernel<T, N, true> : SwigluForwardKernel<T, N, false>,
        plain ? SwigluForwardKernel<T, 1, true> : SwigluForwardKernel<T, 1, false>, launch);
  });
}

int32_t SwigluBackward(const mt_swiglu_args& args, const Launch& launch) {
  return WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int N = kPackElements<T>;
    const SwigluArguments<T> a = SwigluOf<T>(args);
    const bool plain = IsPlain(args);
    return LaunchPieces<T>(
        MT_OP_SWIGLU_BACKWARD, a, {a.gate_up, a.output, a.output_gradient, a.gate_up_gradient},
        plain ? SwigluBackwardKernel<T, N, true> : SwigluBackwardKernel<T, N, false>,
        plain ? SwigluBackwardKernel<T, 1, true> : SwigluBackwardKernel<T, 1, false>, launch);
  });
}

int32_t GeluForward(const mt_gelu_args& args, const Launch& launch) {
  return args.tanh_approximation != 0 ? Gelu<true, false>(args, launch)
                                      : Gelu<false, false>(args, launch);
}

int32_t GeluBackward(const mt_gelu_args& args, const Launch& launch) {
  return args.tanh_approximation != 0 ? Gelu<true, true>(args, launch)
                                      : Gelu<false, true>(args, launch);
}

}  // namespace mt::cuda
