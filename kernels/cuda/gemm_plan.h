// Matrix products as cuBLASLt sees them. Host code without CUDA, tested everywhere.
//
// The contract is row-major, D[m,n] = alpha op(A) op(B) + beta D + bias[n]; cuBLASLt is column-major. A row-major (r, c) matrix is
// the same memory as a column-major (c, r) one, so we ask for D^T = op(B)^T op(A)^T: the operands change places, each keeps its
// transpose flag and its stride, and the bias, one value per column of D, becomes one per row of D^T, which is the direction in
// which the library's epilogue spreads it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/abi/mt_backend.h"

namespace mt::cuda {

// D(rows, columns) = alpha op(A)(rows, depth) op(B)(depth, columns) + beta D + bias(rows), all column-major: element (i, j) of a
// stored matrix is at i + j * ld. Here A is the contract's B. Everything that decides which algorithm is best, and nothing else:
// this is the key of a plan.
struct GemmProblem {
  int32_t a_type = 0, b_type = 0, d_type = 0;  // mt_dtype
  bool transpose_a = false, transpose_b = false;
  int64_t rows = 0, columns = 0, depth = 0;
  int64_t lda = 0, ldb = 0, ldd = 0;
  bool accumulate = false;  // beta = 1
  bool bias = false;
  bool tf32 = false;  // float32 products may round their inputs to TF32
  bool fast_accumulation =
      false;  // FP8: partial sums may stay in the tensor core's shorter accumulator
  // In bytes, powers of two up to 16: of the pointer and of every column.
  int32_t a_alignment = 16, b_alignment = 16, d_alignment = 16, bias_alignment = 16;

  bool operator==(const GemmProblem&) const = default;
  // "bf16:n bf16:t f32 4096x8192x2048 ld 4096,8192,4096 align 16,16,16,16 beta bias": the key in files.
  std::string Text() const;
};
struct GemmProblemHash {
  size_t operator()(const GemmProblem& problem) const;
};

// The problem's operands, in its order.
struct GemmOperands {
  const void* a = nullptr;
  const void* b = nullptr;
  void* d = nullptr;
  const void* bias = nullptr;
  const float* a_scale = nullptr;
  const float* b_scale = nullptr;
};

// True if cuBLASLt has this product; else false and the reason in host::ErrorMessage. Pointers are ignored; the arguments have
// been checked against the contract.
bool GemmIsSupported(const mt_matmul_args& args);

// Null pointers count as aligned: a plan can be made before there is memory.
GemmProblem MakeGemmProblem(const mt_matmul_args& args, bool tf32);
GemmOperands MakeGemmOperands(const mt_matmul_args& args);

// Columns of the stored A and B: what lda and ldb are multiplied with.
inline int64_t StoredColumnsOfA(const GemmProblem& p) { return p.transpose_a ? p.rows : p.depth; }
inline int64_t StoredColumnsOfB(const GemmProblem& p) {
  return p.transpose_b ? p.depth : p.columns;
}
int64_t ElementBytes(int32_t type);

}  // namespace mt::cuda
