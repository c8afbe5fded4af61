// FP8 quantisation with one scale per tensor, and the transpose that FP8 matrix products want, in one pass.
//
// Bytes that cannot be avoided, for n elements of s bytes: read n s, write n for each of output and transposed.
// Determinism: no element depends on another.
//
// A block takes a tile of 128 x 128. Its thread (g, p) quantises the 8 x 8 block of rows 8 g.. and columns 8 p..: rows go out as
// they are, 8 bytes per thread and 128 per half-warp. For the transpose it turns its 8 x 8 bytes in registers and puts column c's
// 8 bytes at unit g ^ p of row c of the shared tile (16 units of 8 bytes per row): the sixteen threads of a half-warp, which
// have one g, then write sixteen different pairs of banks, and the eight threads that read a row of the transpose, 16 bytes
// each, read one whole row: neither has a bank conflict.
#include "kernels/cuda/flat.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/status.h"
#include "kernels/cuda/types.h"

namespace mt::cuda {
namespace {

constexpr int kTile = 128;               // rows and columns
constexpr int kPiece = 8;                // rows and columns of one thread
constexpr int kPieces = kTile / kPiece;  // per side of a tile
constexpr int kThreads = kPieces * kPieces;

// Two codes, the first in the low byte.
template <bool kE4M3>
__device__ __forceinline__ uint32_t Codes(float first, float second) {
#if defined(__CUDA_ARCH__)
  return __nv_cvt_float2_to_fp8x2(make_float2(first, second), __NV_SATFINITE,
                                  kE4M3 ? __NV_E4M3 : __NV_E5M2);
#else
  return kE4M3 ? mt_e4m3_from_float(first) | static_cast<uint32_t>(mt_e4m3_from_float(second)) << 8
               : mt_e5m2_from_float(first) | static_cast<uint32_t>(mt_e5m2_from_float(second)) << 8;
#endif
}

struct Scale {
  float scale, inverse;
};
// As mt_backend.h says; a tiny *amax has no finite inverse, the largest one serves.
template <bool kE4M3>
__device__ __forceinline__ Scale ScaleFrom(float amax) {
  constexpr float kLimit = kE4M3 ? MT_E4M3_LARGEST : MT_E5M2_LARGEST;
  if (!isfinite(amax)) return {__int_as_float(0x7fc00000), 1.0f};
  if (amax == 0) return {1.0f, 1.0f};
  const float inverse = kLimit / amax;
  return {amax / kLimit, isfinite(inverse) ? inverse : 3.402823466e+38f};
}

template <typename T>
struct Eight {
  T at[kPiece];
};
// Eight elements of a row from `column` on; zeros where there is no element. `kWhole`: all eight are there, and aligned.
template <bool kWhole, typename T>
__device__ __forceinline__ Eight<T> LoadEight(const T* row, int64_t column, int64_t columns) {
  Eight<T> eight;
  if constexpr (kWhole) {
    constexpr int N = kPackElements<T>;
#pragma unroll
    for (int j = 0; j < kPiece; j += N) {
      const Pack<T, N> pack = LoadPack<true, T, N>(row + column + j);
#pragma unroll
      for (int i = 0; i < N; ++i) eight.at[j + i] = pack.at[i];
    }
  } else {
#pragma unroll
    for (int j = 0; j < kPiece; ++j) eight.at[j] = column + j < columns ? row[column + j] : T{};
  }
  return eight;
}

template <bool kE4M3, typename T>
__device__ __forceinline__ uint2 QuantizeEight(const Eight<T>& x, float inverse) {
  uint32_t codes[kPiece / 2];
#pragma unroll
  for (int j = 0; j < kPiece / 2; ++j) {
    codes[j] = Codes<kE4M3>(ToFloat(x.at[2 * j]) * inverse, ToFloat(x.at[2 * j + 1]) * inverse);
  }
  return make_uint2(codes[0] | codes[1] << 16, codes[2] | codes[3] << 16);
}

// The codes of eight rows, 128 bytes per thread on their way at once.
template <bool kE4M3, bool kWhole, typename T>
__device__ __forceinline__ void QuantizePiece(const T* source, int64_t row, int64_t column,
                                              const mt_quantize_args& args, float inverse,
                                              uint2 (&codes)[kPiece]) {
  constexpr int kRows = static_cast<int>(128 / (kPiece * sizeof(T)));
#pragma unroll
  for (int first = 0; first < kPiece; first += kRows) {
    Eight<T> x[kRows] = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (kWhole || row + first + r < args.rows)
        x[r] = LoadEight<kWhole>(source + (row + first + r) * args.columns, column, args.columns);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) codes[first + r] = QuantizeEight<kE4M3>(x[r], inverse);
  }
}

// Byte j of eight rows' codes, row 0's lowest.
__device__ __forceinline__ uint2 Column(const uint2 (&rows)[kPiece], int j) {
  uint32_t words[2] = {0, 0};
#pragma unroll
  for (int r = 0; r < kPiece; ++r) {
    const uint32_t four = j < 4 ? rows[r].x : rows[r].y;
    words[r / 4] |= (four >> (8 * (j % 4)) & 0xffu) << (8 * (r % 4));
  }
  return make_uint2(words[0], words[1]);
}

__device__ __forceinline__ uint8_t ByteOf(uint2 eight, int j) {
  return static_cast<uint8_t>((j < 4 ? eight.x : eight.y) >> (8 * (j % 4)));
}

// Stores the tile's columns as rows of `transposed`; `tile` as the head of the file says.
template <bool kWhole>
__device__ __forceinline__ void StoreTransposed(const uint2* tile, int64_t first_row,
                                                int64_t first_column,
                                                const mt_quantize_args& args) {
  auto* const transposed = static_cast<uint8_t*>(args.transposed);
  constexpr int kUnits = kPieces / 2;  // of 16 bytes in a row of the tile
#pragma unroll
  for (int n = 0; n < kTile * kUnits / kThreads; ++n) {
    const int i = n * kThreads + static_cast<int>(threadIdx.x);
    const int c = i / kUnits, unit = i % kUnits, p = c / kPiece;
    const int64_t row = first_row + unit * 2 * kPiece, column = first_column + c;
    if (column >= args.columns || row >= args.rows) continue;
    const uint4 pair = reinterpret_cast<const uint4*>(tile)[c * kUnits + (unit ^ p / 2)];
    const uint2 low = make_uint2(pair.x, pair.y), high = make_uint2(pair.z, pair.w);
    const uint2 first = p % 2 == 0 ? low : high, second = p % 2 == 0 ? high : low;
    uint8_t* const to = transposed + column * args.rows + row;
    if constexpr (kWhole) {
      *reinterpret_cast<uint4*>(to) = make_uint4(first.x, first.y, second.x, second.y);
    } else {
      for (int j = 0; j < 2 * kPiece && row + j < args.rows; ++j)
        to[j] = j < kPiece ? ByteOf(first, j) : ByteOf(second, j - kPiece);
    }
  }
}

// kWhole: rows and columns are multiples of 16 and all pointers aligned.
template <typename T, bool kE4M3, bool kWhole>
__global__ void __launch_bounds__(kThreads)
    QuantizeKernel(mt_quantize_args args, int64_t tiles_across) {
  __shared__ uint4 tile[kTile * kPieces / 2];
  const Scale scale = ScaleFrom<kE4M3>(*args.amax);
  if (blockIdx.x == 0 && threadIdx.x == 0) *args.output_scale = scale.scale;
  const int64_t first_row = blockIdx.x / tiles_across * kTile,
                first_column = blockIdx.x % tiles_across * kTile;
  const int p = static_cast<int>(threadIdx.x) % kPieces,
            g = static_cast<int>(threadIdx.x) / kPieces;
  const int64_t row = first_row + g * kPiece, column = first_column + p * kPiece;
  const T* const source = static_cast<const T*>(args.source);
  uint2 codes[kPiece] = {};
  const bool inside = row < args.rows && column < args.columns;
  if (inside) QuantizePiece<kE4M3, kWhole>(source, row, column, args, scale.inverse, codes);
  if (args.output != nullptr && inside) {
#pragma unroll
    for (int r = 0; r < kPiece; ++r) {
      if (!kWhole && row + r >= args.rows) break;
      uint8_t* const to = static_cast<uint8_t*>(args.output) + (row + r) * args.columns + column;
      if constexpr (kWhole) {
        *reinterpret_cast<uint2*>(to) = codes[r];
      } else {
        for (int j = 0; j < kPiece && column + j < args.columns; ++j) to[j] = ByteOf(codes[r], j);
      }
    }
  }
  if (args.transposed == nullptr) return;
  auto* const units = reinterpret_cast<uint2*>(tile);
#pragma unroll
  for (int j = 0; j < kPiece; ++j) units[(p * kPiece + j) * kPieces + (g ^ p)] = Column(codes, j);
  __syncthreads();
  StoreTransposed<kWhole>(units, first_row, first_column, args);
}

template <typename T, bool kE4M3>
int32_t LaunchQuantize(const mt_quantize_args& args, const Launch& launch) {
  const bool whole = args.rows % 16 == 0 && args.columns % 16 == 0 && IsAligned(args.source) &&
                     IsAligned(args.output) && IsAligned(args.transposed);
  const int64_t down = (args.rows + kTile - 1) / kTile, across = (args.columns + kTile - 1) / kTile;
  auto* kernel = whole ? QuantizeKernel<T, kE4M3, true> : QuantizeKernel<T, kE4M3, false>;
  // An empty tensor has a scale too.
  const int64_t tiles = std::max<int64_t>(down * across, 1);
  MT_CUDA(MT_LAUNCH(kernel, dim3(static_cast<unsigned>(tiles)), dim3(kThreads), 0, launch.stream,
                    args, std::max<int64_t>(across, 1)));
  return MT_OK;
}

}  // namespace

int32_t Quantize(const mt_quantize_args& args, const Launch& launch) {
  return WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    return args.output_dtype == MT_F8_E4M3 ? LaunchQuantize<T, true>(args, launch)
                                           : LaunchQuantize<T, false>(args, launch);
  });
}

}  // namespace mt::cuda
