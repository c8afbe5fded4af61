// The warp-level matrix instructions of sm_80 and later: bf16 products with float32 sums on the tensor cores, and the loads that
// feed them. With CUDA they are the instructions; with MT_VENDOR_HOST the same functions computed lane by lane from the layouts
// that the PTX ISA documents, so that a kernel's index arithmetic is proven without a device (mma_host.h). Other vendors have
// other instructions: this header is not for them.
//
// All 32 lanes of a warp call each function together. With lane = 4 g + t (the ISA's groupID g and threadID_in_group t):
//   A (16 x 16)  a[0]: row g,     columns 2t, 2t+1     a[1]: row g + 8, the same columns
//                a[2]: row g,     columns 2t+8, 2t+9   a[3]: row g + 8, columns 2t+8, 2t+9
//   B (16 x 8)   b0: rows 2t, 2t+1, column g           b1: rows 2t+8, 2t+9, column g
//   C (16 x 8)   c[0], c[1]: row g, columns 2t, 2t+1   c[2], c[3]: row g + 8, the same columns
// The element of the lower column (A) or row (B) is in the lower half of a register. C of two neighbours (columns 0..7 and
// 8..15) is A of the next product: {c[0], c[1]}, {c[2], c[3]} of the first, then of the second.
#pragma once

#include <cstdint>

#include "kernels/cuda/vendor/vendor.h"

#if defined(MT_VENDOR_HOST)
#include "kernels/cuda/vendor/mma_host.h"
#else

namespace mt::cuda::mma {

// An address in shared memory; adding bytes to it is cheap.
using SharedAddress = uint32_t;
__device__ __forceinline__ SharedAddress AddressOf(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// c += A B. PTX ISA, 9.7.14.5.8 "Matrix Fragments for mma.m16n8k16 with floating point type".
__device__ __forceinline__ void MultiplyAdd(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                            uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices: lane l brings the address of row l % 8 (16 bytes, aligned) of matrix l / 8, and gets in r[i] the elements
// (row g, columns 2t and 2t+1) of matrix i. PTX ISA, "Warp-level matrix load instruction: ldmatrix".
__device__ __forceinline__ void LoadMatrices(uint32_t (&r)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}
// The same with .trans: r[i] holds the elements (rows 2t and 2t+1, column g) of matrix i.
__device__ __forceinline__ void LoadMatricesTransposed(uint32_t (&r)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

// Starts to copy 16 bytes to shared memory, or zeros if not `present`; both addresses are aligned. PTX ISA, "cp.async".
__device__ __forceinline__ void CopyAsync(SharedAddress shared, const void* global, bool present) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(present ? 16 : 0)
               : "memory");
}
// The same of 4 bytes. The two go through other caches: no byte is copied by both.
__device__ __forceinline__ void CopyWordAsync(SharedAddress shared, const void* global,
                                              bool present) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared), "l"(global),
               "r"(present ? 4 : 0)
               : "memory");
}
// The copies that this thread started since the last call are one group. PTX ISA, "cp.async.commit_group".
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until all but the latest `kPending` groups of this thread have arrived; other threads see them after a barrier. PTX ISA,
// "cp.async.wait_group".
template <int kPending>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// 2^x to about 2 units in the last place; results below 2^-126 are 0. PTX ISA, "ex2".
__device__ __forceinline__ float Exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// Both rounded to nearest even, the first in the lower half. PTX ISA, "cvt".
__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  uint32_t result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}

}  // namespace mt::cuda::mma
#endif
