// RMS norm of every head and rotation in one pass (Qwen3), with the formulas of mt_backend.h; units in rotation.h.
//
// Bytes that cannot be avoided, e = bytes of an element: forward 2 N H d e, backward 3 N H d e; rstd and the table are small.
//
// A team of kLanes lanes of a warp holds a head in registers, a unit per lane, and adds by shuffles. Heads that are not whole
// units of packs, or longer than 32 of them, are read twice by a warp, element by element.
//
// Deterministic: as in norm.h, the weight's gradient is summed in two stages, by PartialHeads blocks and then partial_rows.cu.
#include <algorithm>

#include "kernels/cuda/operations.h"
#include "kernels/cuda/partial_rows.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/rotation.h"
#include "kernels/cuda/status.h"

namespace mt::cuda {
namespace {

constexpr int kThreads = 128, kForwardBlocks = 7;  // of a multiprocessor, in 72 registers a thread

template <typename T>
struct QkNorm {
  Heads heads;
  const T *x, *weight;  // (N, x_stride), (d)
  T* y;                 // (N, y_stride)
  float* rstd;          // (N, heads)
  const T* output_gradient;
  T* input_gradient;
  float* partials;  // (gridDim.x, d)
  int64_t x_stride, y_stride;
  float eps, inverse_dim;
};

// Blocks that a backward pass has, hence rows of partial sums: five on each of 132 multiprocessors (H100, H200), or fewer if
// that leaves a block less than 16 heads. Of sizes alone.
int64_t PartialHeads(const mt_qk_norm_rope_args& args) {
  return std::clamp<int64_t>(DivideUp(args.sequence * args.batch * args.heads, 16), 1, 132 * 5);
}

// The sum over the kLanes lanes of a team; all 32 lanes of the warp take part.
template <int kLanes>
__device__ __forceinline__ float TeamSum(float value) {
#pragma unroll
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2)
    value += __shfl_xor_sync(kAllLanes, value, lanes, kWarpThreads);
  return value;
}

// Calls body(row, head, exists) for each head of the thread's team. Teams whose head does not exist take part too, because the
// others of their warp meet them in shuffles.
template <int kTeams, typename Body>
__device__ __forceinline__ void ForEachHead(const Heads& heads, int team, Body&& body) {
  const int64_t pieces = DivideUp(heads.rows * heads.heads, kTeams);
  for (int64_t piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
    const RowItem at = ItemAfter(FirstItem(piece, kTeams, heads.heads), team, heads.heads);
    body(at.row, at.item, at.row < heads.rows);
  }
}

template <typename T, int kLanes, bool kInterleaved>
__global__ void __launch_bounds__(kThreads, kForwardBlocks) QkNormForwardKernel(QkNorm<T> a) {
  constexpr int N = kPackElements<T>;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const bool used = lane < a.heads.head_dim / (2 * N), turned = lane < a.heads.rotary / (2 * N);
  const UnitPlace place = PlaceOfUnit(lane, N, a.heads.rotary, kInterleaved);
  float weight[2][N] = {};
  if (used) Unpack(LoadUnit<N>(a.weight, place), weight);
  ForEachHead<kThreads / kLanes>(
      a.heads, static_cast<int>(threadIdx.x) / kLanes, [&](int64_t row, uint32_t h, bool exists) {
        const bool mine = exists && used;
        float z[2][N] = {};
        Angles<N> angles = {};
        if (mine) Unpack(LoadUnit<N>(a.x + row * a.x_stride + h * a.heads.head_dim, place), z);
        if (mine && turned) angles = LoadAngles<N>(a.heads, TableRow(a.heads, row), lane);
        float square = 0;
#pragma unroll
        for (int k = 0; k < 2 * N; ++k) square += z[k / N][k % N] * z[k / N][k % N];
        const float rstd = rsqrtf(TeamSum<kLanes>(square) * a.inverse_dim + a.eps);
        if (!mine) return;
        if (lane == 0) a.rstd[row * a.heads.heads + h] = rstd;
#pragma unroll
        for (int k = 0; k < 2 * N; ++k) z[k / N][k % N] *= rstd * weight[k / N][k % N];
        if (turned) Turn<kInterleaved>(z, angles, false);
        StoreUnit(a.y + row * a.y_stride + h * a.heads.head_dim, place, z);
      });
}

// With g = dy turned back, h = x rstd: dx = rstd (w g - h mean(w g h)); dw += g h.
template <typename T, int kLanes, bool kInterleaved>
__global__ void __launch_bounds__(kThreads, 5) QkNormBackwardKernel(QkNorm<T> a) {
  constexpr int N = kPackElements<T>, kTeams = kThreads / kLanes;
  __shared__ float sums[kTeams][2 * N * kLanes];
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int team = static_cast<int>(threadIdx.x) / kLanes;
  const bool used = lane < a.heads.head_dim / (2 * N), turned = lane < a.heads.rotary / (2 * N);
  const UnitPlace place = PlaceOfUnit(lane, N, a.heads.rotary, kInterleaved);
  float weight[2][N] = {}, weight_sums[2][N] = {};
  if (used) Unpack(LoadUnit<N>(a.weight, place), weight);
  ForEachHead<kTeams>(a.heads, team, [&](int64_t row, uint32_t h, bool exists) {
    const bool mine = exists && used;
    const int64_t in_row = h * a.heads.head_dim;
    float x[2][N] = {}, g[2][N] = {}, rstd = 0;
    if (mine) {
      Unpack(LoadUnit<N>(a.x + row * a.x_stride + in_row, place), x);
      Unpack(LoadUnit<N>(a.output_gradient + row * a.y_stride + in_row, place), g);
      rstd = a.rstd[row * a.heads.heads + h];
      if (turned) Turn<kInterleaved>(g, LoadAngles<N>(a.heads, TableRow(a.heads, row), lane), true);
    }
    float mean = 0;
#pragma unroll
    for (int k = 0; k < 2 * N; ++k) {
      float& normed = x[k / N][k % N];
      float& gradient = g[k / N][k % N];
      normed *= rstd;
      weight_sums[k / N][k % N] += gradient * normed;
      gradient *= weight[k / N][k % N];
      mean += gradient * normed;
    }
    mean = TeamSum<kLanes>(mean) * a.inverse_dim;
    if (!mine) return;
#pragma unroll
    for (int k = 0; k < 2 * N; ++k)
      g[k / N][k % N] = rstd * (g[k / N][k % N] - x[k / N][k % N] * mean);
    StoreUnit(a.input_gradient + row * a.x_stride + in_row, place, g);
  });
  if (used) {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      sums[team][place.first + k] = weight_sums[0][k];
      sums[team][place.second + k] = weight_sums[1][k];
    }
  }
  __syncthreads();
  for (int j = static_cast<int>(threadIdx.x); j < a.heads.head_dim; j += kThreads) {
    float sum = 0;
#pragma unroll
    for (int t = 0; t < kTeams; ++t) sum += sums[t][j];
    a.partials[int64_t{blockIdx.x} * a.heads.head_dim + j] = sum;
  }
}

// ---- Any head, element by element; an odd head's last element is a unit of its own.

template <typename T, bool kInterleaved, typename Body>
__device__ __forceinline__ void ForEachUnit(const Heads& heads, int lane, int lanes, Body&& body) {
  for (int64_t unit = lane; unit < heads.head_dim / 2; unit += lanes)
    body(unit, PlaceOfUnit(unit, 1, heads.rotary, kInterleaved), 2 * unit < heads.rotary);
}

// g of a unit: dy turned back.
template <typename T, bool kInterleaved>
__device__ __forceinline__ void LoadGradient(const QkNorm<T>& a, int64_t row, uint32_t h,
                                             int64_t unit, UnitPlace place, bool turned,
                                             float (&g)[2][1]) {
  Unpack(LoadUnit<1>(a.output_gradient + row * a.y_stride + h * a.heads.head_dim, place), g);
  if (turned) Turn<kInterleaved>(g, LoadAngles<1>(a.heads, TableRow(a.heads, row), unit), true);
}

template <typename T, bool kInterleaved>
__global__ void __launch_bounds__(kThreads, kForwardBlocks) QkNormForwardAnyKernel(QkNorm<T> a) {
  constexpr int kTeams = kThreads / kWarpThreads;
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const bool odd = a.heads.head_dim % 2 != 0;
  ForEachHead<kTeams>(
      a.heads, static_cast<int>(threadIdx.x) / kWarpThreads,
      [&](int64_t row, uint32_t h, bool exists) {
        if (!exists) return;  // the whole warp
        const T* x = a.x + row * a.x_stride + h * a.heads.head_dim;
        T* y = a.y + row * a.y_stride + h * a.heads.head_dim;
        float square = 0;
        for (int64_t j = lane; j < a.heads.head_dim; j += kWarpThreads)
          square += ToFloat(x[j]) * ToFloat(x[j]);
        const float rstd = rsqrtf(TeamSum<kWarpThreads>(square) * a.inverse_dim + a.eps);
        ForEachUnit<T, kInterleaved>(
            a.heads, lane, kWarpThreads, [&](int64_t unit, UnitPlace place, bool turned) {
              float z[2][1], weight[2][1];
              Unpack(LoadUnit<1>(x, place), z);
              Unpack(LoadUnit<1>(a.weight, place), weight);
              z[0][0] *= rstd * weight[0][0];
              z[1][0] *= rstd * weight[1][0];
              if (turned)
                Turn<kInterleaved>(z, LoadAngles<1>(a.heads, TableRow(a.heads, row), unit), false);
              StoreUnit(y, place, z);
            });
        if (lane != 0) return;
        a.rstd[row * a.heads.heads + h] = rstd;
        const int64_t last = a.heads.head_dim - 1;
        if (odd) y[last] = FromFloat<T>(ToFloat(x[last]) * (rstd * ToFloat(a.weight[last])));
      });
}

// The partial sums come first, from a kernel of their own, because dx may be written over dy.
template <typename T, bool kInterleaved>
__global__ void __launch_bounds__(kThreads, 12) QkNormPartialSums(QkNorm<T> a) {
  float* partials = a.partials + int64_t{blockIdx.x} * a.heads.head_dim;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t last = a.heads.head_dim - 1;
  ForEachUnit<T, kInterleaved>(a.heads, thread, kThreads,
                               [&](int64_t unit, UnitPlace place, bool turned) {
                                 float first = 0, second = 0;
                                 ForEachHead<1>(a.heads, 0, [&](int64_t row, uint32_t h, bool) {
                                   float g[2][1];
                                   LoadGradient<T, kInterleaved>(a, row, h, unit, place, turned, g);
                                   const T* x = a.x + row * a.x_stride + h * a.heads.head_dim;
                                   const float rstd = a.rstd[row * a.heads.heads + h];
                                   first += g[0][0] * ToFloat(x[place.first]) * rstd;
                                   second += g[1][0] * ToFloat(x[place.second]) * rstd;
                                 });
                                 partials[place.first] = first;
                                 partials[place.second] = second;
                               });
  if (thread != 0 || a.heads.head_dim % 2 == 0) return;
  float sum = 0;
  ForEachHead<1>(a.heads, 0, [&](int64_t row, uint32_t h, bool) {
    const int64_t in_row = h * a.heads.head_dim + last;
    sum += ToFloat(a.output_gradient[row * a.y_stride + in_row]) *
           ToFloat(a.x[row * a.x_stride + in_row]) * a.rstd[row * a.heads.heads + h];
  });
  partials[last] = sum;
}

template <typename T, bool kInterleaved>
__global__ void __launch_bounds__(kThreads) QkNormBackwardAnyKernel(QkNorm<T> a) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const int64_t last = a.heads.head_dim - 1;
  const bool odd = a.heads.head_dim % 2 != 0;
  ForEachHead<kThreads / kWarpThreads>(
      a.heads, static_cast<int>(threadIdx.x) / kWarpThreads,
      [&](int64_t row, uint32_t h, bool exists) {
        if (!exists) return;  // the whole warp
        const int64_t in_row = h * a.heads.head_dim;
        const T* x = a.x + row * a.x_stride + in_row;
        const T* dy = a.output_gradient + row * a.y_stride + in_row;
        T* dx = a.input_gradient + row * a.x_stride + in_row;
        const float rstd = a.rstd[row * a.heads.heads + h];
        float mean = 0;
        ForEachUnit<T, kInterleaved>(
            a.heads, lane, kWarpThreads, [&](int64_t unit, UnitPlace place, bool turned) {
              float g[2][1];
              LoadGradient<T, kInterleaved>(a, row, h, unit, place, turned, g);
              mean += g[0][0] * ToFloat(a.weight[place.first]) * ToFloat(x[place.first]) * rstd;
              mean += g[1][0] * ToFloat(a.weight[place.second]) * ToFloat(x[place.second]) * rstd;
            });
        if (odd && lane == 0)
          mean += ToFloat(dy[last]) * ToFloat(a.weight[last]) * ToFloat(x[last]) * rstd;
        mean = TeamSum<kWarpThreads>(mean) * a.inverse_dim;
        const auto gradient = [&](float g, int64_t j) {
          return rstd * (g * ToFloat(a.weight[j]) - ToFloat(x[j]) * rstd * mean);
        };
        ForEachUnit<T, kInterleaved>(
            a.heads, lane, kWarpThreads, [&](int64_t unit, UnitPlace place, bool turned) {
              float g[2][1];
              LoadGradient<T, kInterleaved>(a, row, h, unit, place, turned, g);
              g[0][0] = gradient(g[0][0], place.first);
              g[1][0] = gradient(g[1][0], place.second);
              StoreUnit(dx, place, g);
            });
        if (odd && lane == 0) dx[last] = FromFloat<T>(gradient(ToFloat(dy[last]), last));
      });
}

template <typename T>
QkNorm<T> ArgumentsOf(const mt_qk_norm_rope_args& args) {
  QkNorm<T> a = {};
  a.heads = HeadsOf(args);
  a.x = static_cast<const T*>(args.x);
  a.weight = static_cast<const T*>(args.weight);
  a.y = static_cast<T*>(args.y);
  a.rstd = static_cast<float*>(args.rstd);
  a.output_gradient = static_cast<const T*>(args.output_gradient);
  a.input_gradient = static_cast<T*>(args.input_gradient);
  a.partials = static_cast<float*>(args.workspace);
  a.x_stride = args.x_stride;
  a.y_stride = args.y_stride;
  a.eps = static_cast<float>(args.eps);
  a.inverse_dim = 1.0f / static_cast<float>(args.head_dim);
  return a;
}

// Lanes of a team: the least of 4, 8, 16, 32 that has a unit each; 0 if packs do not fit.
template <typename T>
int LanesOf(const QkNorm<T>& a) {
  constexpr int N = kPackElements<T>;
  bool whole = HasWholeUnits(a.heads, N) && a.x_stride % N == 0 && a.y_stride % N == 0;
  for (const void* pointer :
       {static_cast<const void*>(a.x), static_cast<const void*>(a.weight),
        static_cast<const void*>(a.y), static_cast<const void*>(a.output_gradient),
        static_cast<const void*>(a.input_gradient)})
    whole = whole && IsAligned(pointer);
  if (!whole || a.heads.head_dim > 32 * 2 * N) return 0;
  int lanes = 4;
  while (lanes < a.heads.head_dim / (2 * N)) lanes *= 2;
  return lanes;
}

template <typename T, bool kInterleaved>
cudaError_t LaunchForward(const QkNorm<T>& a, const Launch& launch) {
  const int lanes = LanesOf(a);
  auto* kernel = QkNormForwardAnyKernel<T, kInterleaved>;
  if (lanes == 4) kernel = QkNormForwardKernel<T, 4, kInterleaved>;
  if (lanes == 8) kernel = QkNormForwardKernel<T, 8, kInterleaved>;
  if (lanes == 16) kernel = QkNormForwardKernel<T, 16, kInterleaved>;
  if (lanes == 32) kernel = QkNormForwardKernel<T, 32, kInterleaved>;
  const int teams = kThreads / (lanes == 0 ? kWarpThreads : lanes);
  // No more than run at once: a block loads the weight only once.
  const int64_t blocks = std::min(DivideUp(a.heads.rows * a.heads.heads, teams),
                                  int64_t{launch.multiprocessors} * kForwardBlocks);
  return MT_LAUNCH(kernel, GridOf(blocks), kThreads, 0, launch.stream, a);
}

template <typename T, bool kInterleaved>
cudaError_t LaunchBackward(const QkNorm<T>& a, int64_t blocks, cudaStream_t stream) {
  const int lanes = LanesOf(a);
  if (lanes == 0) {
    auto* sums = QkNormPartialSums<T, kInterleaved>;
    const cudaError_t error = MT_LAUNCH(sums, GridOf(blocks), kThreads, 0, stream, a);
    if (error != cudaSuccess) return error;
    auto* kernel = QkNormBackwardAnyKernel<T, kInterleaved>;
    const int64_t heads = a.heads.rows * a.heads.heads;
    return MT_LAUNCH(kernel, GridOf(DivideUp(heads, kThreads / kWarpThreads)), kThreads, 0, stream,
                     a);
  }
  auto* kernel = QkNormBackwardKernel<T, 4, kInterleaved>;
  if (lanes == 8) kernel = QkNormBackwardKernel<T, 8, kInterleaved>;
  if (lanes == 16) kernel = QkNormBackwardKernel<T, 16, kInterleaved>;
  if (lanes == 32) kernel = QkNormBackwardKernel<T, 32, kInterleaved>;
  return MT_LAUNCH(kernel, GridOf(blocks), kThreads, 0, stream, a);
}

int32_t CheckSize(const mt_qk_norm_rope_args& args, int32_t operation) {
  if (args.sequence * args.batch <= kMostItems) return MT_OK;
  return host::Fail(MT_ERROR_UNSUPPORTED, operation, "more than 2^31 - 1 rows");
}

bool IsEmpty(const mt_qk_norm_rope_args& args) {
  return args.sequence == 0 || args.batch == 0 || args.heads == 0;
}

}  // namespace

int32_t QkNormRopeForward(const mt_qk_norm_rope_args& args, const Launch& launch) {
  if (IsEmpty(args)) return MT_OK;
  if (const int32_t code = CheckSize(args, MT_OP_QK_NORM_ROPE_FORWARD); code != MT_OK) return code;
  MT_CUDA(WithType(args.dtype, [&](auto type) {
    const auto a = ArgumentsOf<decltype(type)>(args);
    return args.interleaved != 0 ? LaunchForward<decltype(type), true>(a, launch)
                                 : LaunchForward<decltype(type), false>(a, launch);
  }));
  return MT_OK;
}

int64_t QkNormRopeBackwardWorkspace(const mt_qk_norm_rope_args& args) {
  return PartialHeads(args) * args.head_dim * static_cast<int64_t>(sizeof(float));
}

int32_t QkNormRopeBackward(const mt_qk_norm_rope_args& args, const Launch& launch) {
  if (IsEmpty(args)) return MT_OK;
  if (const int32_t code = CheckSize(args, MT_OP_QK_NORM_ROPE_BACKWARD); code != MT_OK) return code;
  const int64_t blocks = PartialHeads(args);
  MT_CUDA(WithType(args.dtype, [&](auto type) {
    const auto a = ArgumentsOf<decltype(type)>(args);
    return args.interleaved != 0 ? LaunchBackward<decltype(type), true>(a, blocks, launch.stream)
                                 : LaunchBackward<decltype(type), false>(a, blocks, launch.stream);
  }));
  return AddPartialRows(static_cast<const float*>(args.workspace), blocks, args.head_dim,
                        static_cast<float*>(args.weight_gradient), launch);
}

}  // namespace mt::cuda
