// Fill, fill with normals, copy with cast, add, scale: one pass over flat memory each (flat.h).
//
// Bytes that cannot be avoided, for n elements of s bytes: fill n s; copy n (s + s'); add 3 n s; scale 2 n s.
// Determinism: no element depends on another.
#include "kernels/cuda/flat.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/status.h"
#include "kernels/cuda/types.h"

// After vendor.h, which makes its functions device code too.
#include "kernels/abi/philox.h"

namespace mt::cuda {
namespace {

// Values of any type to T, rounded once to nearest even.
template <typename T>
__host__ __device__ __forceinline__ T FromDouble(double x) {
  return static_cast<T>(x);
}
// Through a float that is rounded to odd: a nearest float would be rounded a second time.
template <>
__host__ __device__ __forceinline__ bf16 FromDouble<bf16>(double x) {
  const float near = static_cast<float>(x);
  uint32_t bits = mt_float_bits(near);
  if (static_cast<double>(near) != x) {
    if (fabs(static_cast<double>(near)) > fabs(x))
      --bits;  // towards zero; from infinity to the largest
    bits |= 1;
  }
  return {mt_bf16_from_float(mt_bits_float(bits))};
}

template <typename To>
__device__ __forceinline__ To Cast(float x) {
  return FromFloat<To>(x);
}
template <>
__device__ __forceinline__ double Cast<double>(float x) {
  return x;
}
template <typename To>
__device__ __forceinline__ To Cast(double x) {
  return FromDouble<To>(x);
}
template <typename To>
__device__ __forceinline__ To Cast(bf16 x) {
  return Cast<To>(ToFloat(x));
}

template <typename T>
struct FillWork {
  T* data;
  T value;
  struct Nothing {};
  template <int N>
  __device__ Nothing Load(int64_t) const {
    return {};
  }
  template <int N>
  __device__ void Store(int64_t i, Nothing) const {
    Pack<T, N> pack;
#pragma unroll
    for (int j = 0; j < N; ++j) pack.at[j] = value;
    StorePack(data + i, pack);
  }
};

template <typename T>
cudaError_t LaunchFill(const mt_fill_args& args, T value, const Launch& launch) {
  const FillWork<T> work = {static_cast<T*>(args.data), value};
  if (IsAligned(args.data)) return LaunchFlat<kPackElements<T>>(work, args.count, launch);
  return LaunchFlat<1>(work, args.count, launch);
}

template <typename From, typename To>
struct CopyWork {
  const From* source;
  To* destination;
  template <int N>
  __device__ auto Load(int64_t i) const {
    return LoadPack<true, From, N>(source + i);
  }
  template <int N>
  __device__ void Store(int64_t i, const Pack<From, N>& from) const {
    Pack<To, N> to;
#pragma unroll
    for (int j = 0; j < N; ++j) to.at[j] = Cast<To>(from.at[j]);
    StorePack(destination + i, to);
  }
};

template <typename From, typename To>
cudaError_t LaunchCopy(const mt_copy_args& args, const Launch& launch) {
  const CopyWork<From, To> work = {static_cast<const From*>(args.source),
                                   static_cast<To*>(args.destination)};
  constexpr int kElements = static_cast<int>(16 / std::max(sizeof(From), sizeof(To)));
  if (IsAligned(args.source, sizeof(From) * kElements) &&
      IsAligned(args.destination, sizeof(To) * kElements))
    return LaunchFlat<kElements>(work, args.count, launch);
  return LaunchFlat<1>(work, args.count, launch);
}

// Calls `function` with a value of the C++ type of `dtype`: F32, F64 or BF16.
template <typename Function>
cudaError_t WithFloatingType(int32_t dtype, Function&& function) {
  return dtype == MT_F64 ? function(double{}) : WithType(dtype, function);
}

template <typename T>
struct AddWork {
  const T* a;
  const T* b;
  T* destination;
  template <int N>
  struct Two {
    Pack<T, N> a, b;
  };
  template <int N>
  __device__ Two<N> Load(int64_t i) const {
    return {LoadPack<true, T, N>(a + i), LoadPack<true, T, N>(b + i)};
  }
  template <int N>
  __device__ void Store(int64_t i, const Two<N>& two) const {
    Pack<T, N> sum;
#pragma unroll
    for (int j = 0; j < N; ++j)
      sum.at[j] = FromFloat<T>(ToFloat(two.a.at[j]) + ToFloat(two.b.at[j]));
    StorePack(destination + i, sum);
  }
};

template <typename T>
struct ScaleWork {
  T* data;
  float factor;
  template <int N>
  __device__ Pack<T, N> Load(int64_t i) const {
    return LoadPack<true, T, N>(data + i);
  }
  template <int N>
  __device__ void Store(int64_t i, Pack<T, N> pack) const {
#pragma unroll
    for (int j = 0; j < N; ++j) pack.at[j] = FromFloat<T>(ToFloat(pack.at[j]) * factor);
    StorePack(data + i, pack);
  }
};

template <typename T, int N>
__global__ void __launch_bounds__(kFlatThreads)
    ScaleKernel(ScaleWork<T> work, const double* factor, int64_t count) {
  if (factor != nullptr) work.factor = static_cast<float>(*factor);
  FlatLoop<N, 4>(work, count);
}

// One thread makes the two normals of one Philox block. Bound by float64 arithmetic, and run once per training.
//
// The products and sums are those of the CPU backend, in float64 and unfused; log, sqrt, cos and sin come from the compiler's
// library, whose last bit may be another one than the C library's. After rounding to T that shows only where a value lies within
// that bit of the middle between two values of T: about one in 10^8 float32 values, fewer in bfloat16.
template <typename T>
__global__ void __launch_bounds__(kFlatThreads) FillNormalKernel(mt_fill_normal_args args) {
  T* const data = static_cast<T*>(args.data);
  const int64_t pairs = args.columns / 2 + 1;  // blocks that a row may touch
  const int64_t threads = int64_t{gridDim.x} * kFlatThreads;
  for (int64_t i = int64_t{blockIdx.x} * kFlatThreads + threadIdx.x; i < args.rows * pairs;
       i += threads) {
    const int64_t row = i / pairs;
    const uint64_t first = args.first_index + static_cast<uint64_t>(row) * args.row_stride;
    const uint64_t block = (first >> 1) + static_cast<uint64_t>(i - row * pairs);
    double normal[2];
    mt_normal_pair(args.seed, args.stream, block, &normal[0], &normal[1]);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int64_t column =
          static_cast<int64_t>(2 * block + j - first);  // -1: the first block's even number
      if (column >= 0 && column < args.columns)
        data[row * args.columns + column] =
            FromDouble<T>(__dadd_rn(args.mean, __dmul_rn(args.std, normal[j])));
    }
  }
}

}  // namespace

int32_t Fill(const mt_fill_args& args, const Launch& launch) {
  switch (args.dtype) {
    case MT_BF16:
      MT_CUDA(LaunchFill(args, FromDouble<bf16>(args.value), launch));
      break;
    case MT_F64:
      MT_CUDA(LaunchFill(args, args.value, launch));
      break;
    case MT_I32:
      MT_CUDA(LaunchFill(args, static_cast<int32_t>(args.value), launch));
      break;
    case MT_I64:
      MT_CUDA(LaunchFill(args, static_cast<int64_t>(args.value), launch));
      break;
    case MT_U8:
      MT_CUDA(LaunchFill(args, static_cast<uint8_t>(args.value), launch));
      break;
    default:
      MT_CUDA(LaunchFill(args, static_cast<float>(args.value), launch));
  }
  return MT_OK;
}

int32_t FillNormal(const mt_fill_normal_args& args, const Launch& launch) {
  if (args.rows == 0 || args.columns == 0) return MT_OK;
  const unsigned blocks = FlatBlocks(args.rows * (args.columns / 2 + 1), 1, launch);
  return WithType(args.dtype, [&](auto type) -> int32_t {
    auto* kernel = FillNormalKernel<decltype(type)>;
    MT_CUDA(MT_LAUNCH(kernel, dim3(blocks), dim3(kFlatThreads), 0, launch.stream, args));
    return MT_OK;
  });
}

int32_t Copy(const mt_copy_args& args, const Launch& launch) {
  if (args.count == 0) return MT_OK;
  MT_CUDA(WithFloatingType(args.source_dtype, [&](auto from) {
    return WithFloatingType(args.destination_dtype, [&](auto to) {
      return LaunchCopy<decltype(from), decltype(to)>(args, launch);
    });
  }));
  return MT_OK;
}

int32_t Add(const mt_add_args& args, const Launch& launch) {
  MT_CUDA(WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const AddWork<T> work = {static_cast<const T*>(args.a), static_cast<const T*>(args.b),
                             static_cast<T*>(args.destination)};
    if (IsAligned(args.a) && IsAligned(args.b) && IsAligned(args.destination))
      return LaunchFlat<kPackElements<T>>(work, args.count, launch);
    return LaunchFlat<1>(work, args.count, launch);
  }));
  return MT_OK;
}

int32_t Scale(const mt_scale_args& args, const Launch& launch) {
  if (args.count == 0) return MT_OK;
  MT_CUDA(WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const ScaleWork<T> work = {static_cast<T*>(args.data), static_cast<float>(args.factor)};
    const bool whole = IsAligned(args.data);
    auto* kernel = whole ? ScaleKernel<T, kPackElements<T>> : ScaleKernel<T, 1>;
    const unsigned blocks = FlatBlocks(args.count, 4 * (whole ? kPackElements<T> : 1), launch);
    return MT_LAUNCH(kernel, dim3(blocks), dim3(kFlatThreads), 0, launch.stream, work,
                     args.factor_pointer, args.count);
  }));
  return MT_OK;
}

}  // namespace mt::cuda
