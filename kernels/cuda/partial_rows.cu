#include "kernels/cuda/partial_rows.h"

#include "kernels/cuda/packs.h"
#include "kernels/cuda/status.h"

namespace mt::cuda {
namespace {

constexpr int kColumns = 32, kLanes = 16;

// A block has 32 columns. Lane l of a column adds the rows l, l + 16, ... in that order; then the lanes are added in order.
__global__ void __launch_bounds__(kColumns* kLanes)
    AddPartialRowsKernel(const float* partials, int64_t rows, int64_t columns, float* destination) {
  __shared__ float sums[kLanes][kColumns + 1];
  const int x = static_cast<int>(threadIdx.x) % kColumns,
            lane = static_cast<int>(threadIdx.x) / kColumns;
  for (int64_t first = int64_t{blockIdx.x} * kColumns; first < columns;
       first += int64_t{gridDim.x} * kColumns) {
    const int64_t column = first + x;
    float sum = 0;
    if (column < columns) {
#pragma unroll 8
      for (int64_t row = lane; row < rows; row += kLanes) sum += partials[row * columns + column];
    }
    sums[lane][x] = sum;
    __syncthreads();
    if (lane == 0 && column < columns) {
      float total = 0;
#pragma unroll
      for (int l = 0; l < kLanes; ++l) total += sums[l][x];
      destination[column] += total;
    }
    __syncthreads();  // before the next columns' sums
  }
}

}  // namespace

int32_t AddPartialRows(const float* partials, int64_t rows, int64_t columns, float* destination,
                       const Launch& launch) {
  MT_CUDA(MT_LAUNCH(AddPartialRowsKernel, GridOf(DivideUp(columns, kColumns)), kColumns * kLanes, 0,
                    launch.stream, partials, rows, columns, destination));
  return MT_OK;
}

}  // namespace mt::cuda
