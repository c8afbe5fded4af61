#include "kernels/cuda/gemm_plan.h"

#include <algorithm>

#include "kernels/host/host.h"

namespace mt::cuda {
namespace {

bool IsFp8(int32_t type) { return type == MT_F8_E4M3 || type == MT_F8_E5M2; }

int32_t TypeOfB(const mt_matmul_args& args) {
  return args.b_dtype != 0 ? args.b_dtype : args.dtype;
}

const char* TypeName(int32_t type) {
  switch (type) {
    case MT_F32:
      return "f32";
    case MT_BF16:
      return "bf16";
    case MT_F8_E4M3:
      return "e4m3";
    case MT_F8_E5M2:
      return "e5m2";
    default:
      return "?";
  }
}

// The largest power of two, 16 at most, that divides both.
int32_t AlignmentOf(const void* pointer, int64_t column_bytes) {
  const uint64_t bits =
      reinterpret_cast<uintptr_t>(pointer) | static_cast<uint64_t>(column_bytes) | 16u;
  return static_cast<int32_t>(bits & (~bits + 1));
}

bool Refuse(const char* why, int64_t value) {
  host::Fail(MT_ERROR_UNSUPPORTED, MT_OP_MATMUL, "%s (%lld)", why, static_cast<long long>(value));
  return false;
}

// Micikevicius et al.'s types on tensor cores: both operands contiguous along k, everything in units of 16 bytes.
bool Fp8IsSupported(const mt_matmul_args& a) {
  if (a.dtype == MT_F8_E5M2 && TypeOfB(a) == MT_F8_E5M2)
    return Refuse("E5M2 times E5M2 is not provided", a.dtype);
  if (a.output_dtype != MT_BF16 && a.output_dtype != MT_F32)
    return Refuse("FP8 products give BF16 or F32; output_dtype", a.output_dtype);
  if (a.transpose_a || !a.transpose_b)
    return Refuse("FP8 products need transpose_a = 0 and transpose_b = 1; transpose_a",
                  a.transpose_a);
  if (a.k % 16 != 0) return Refuse("FP8 products need a multiple of 16; k", a.k);
  if (a.n % 16 != 0) return Refuse("FP8 products need a multiple of 16; n", a.n);
  if (a.lda % 16 != 0) return Refuse("FP8 products need a multiple of 16; lda", a.lda);
  if (a.ldb % 16 != 0) return Refuse("FP8 products need a multiple of 16; ldb", a.ldb);
  if (a.ldd * ElementBytes(a.output_dtype) % 16 != 0)
    return Refuse("FP8 products need rows of 16 bytes; ldd", a.ldd);
  if (a.bias != nullptr && a.output_dtype != MT_BF16)
    return Refuse("FP8 products add a bias to BF16 only; output_dtype", a.output_dtype);
  return true;
}

void Mix(size_t* hash, uint64_t value) {
  // A multiplicative hash; constants from splitmix64 (Steele, Lea & Flood 2014).
  uint64_t x = static_cast<uint64_t>(*hash) * 0x9e3779b97f4a7c15u + value;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  *hash = static_cast<size_t>(x ^ (x >> 27));
}

}  // namespace

int64_t ElementBytes(int32_t type) {
  switch (type) {
    case MT_F32:
      return 4;
    case MT_BF16:
      return 2;
    default:
      return 1;
  }
}

bool GemmIsSupported(const mt_matmul_args& args) {
  if (IsFp8(args.dtype) && IsFp8(TypeOfB(args))) return Fp8IsSupported(args);
  if (TypeOfB(args) != args.dtype)
    return Refuse("A and B have different types; b_dtype", args.b_dtype);
  if (args.dtype == MT_F32) {
    if (args.output_dtype != MT_F32)
      return Refuse("F32 products give F32; output_dtype", args.output_dtype);
  } else if (args.dtype == MT_BF16) {
    if (args.output_dtype != MT_BF16 && args.output_dtype != MT_F32)
      return Refuse("BF16 products give BF16 or F32; output_dtype", args.output_dtype);
  } else {
    return Refuse("no product of this type; dtype", args.dtype);
  }
  if (args.k == 0 && args.bias != nullptr) return Refuse("a bias without a product; k", args.k);
  return true;
}

GemmProblem MakeGemmProblem(const mt_matmul_args& args, bool tf32) {
  GemmProblem p;
  p.a_type = TypeOfB(args);
  p.b_type = args.dtype;
  p.d_type = args.output_dtype;
  p.transpose_a = args.transpose_b != 0;
  p.transpose_b = args.transpose_a != 0;
  p.rows = args.n;
  p.columns = args.m;
  p.depth = args.k;
  p.lda = args.ldb;
  p.ldb = args.lda;
  p.ldd = args.ldd;
  p.accumulate = args.beta != 0;
  p.bias = args.bias != nullptr;
  p.tf32 = tf32 && args.dtype == MT_F32;
  // Activations tolerate the short accumulator, as in Transformer Engine; gradients and what sums into float32 do not.
  p.fast_accumulation = p.a_type == MT_F8_E4M3 && p.b_type == MT_F8_E4M3 && p.d_type == MT_BF16;
  p.a_alignment = AlignmentOf(args.b, p.lda * ElementBytes(p.a_type));
  p.b_alignment = AlignmentOf(args.a, p.ldb * ElementBytes(p.b_type));
  p.d_alignment = AlignmentOf(args.d, p.ldd * ElementBytes(p.d_type));
  p.bias_alignment = AlignmentOf(args.bias, 16);
  return p;
}

GemmOperands MakeGemmOperands(const mt_matmul_args& args) {
  return {args.b, args.a, args.d, args.bias, args.b_scale, args.a_scale};
}

std::string GemmProblem::Text() const {
  std::string text;
  const auto number = [](int64_t value) { return std::to_string(value); };
  text += std::string(TypeName(a_type)) + (transpose_a ? ":t " : ":n ");
  text += std::string(TypeName(b_type)) + (transpose_b ? ":t " : ":n ") + TypeName(d_type);
  text += " " + number(rows) + "x" + number(columns) + "x" + number(depth);
  text += " ld " + number(lda) + "," + number(ldb) + "," + number(ldd);
  text += " align " + number(a_alignment) + "," + number(b_alignment) + "," + number(d_alignment) +
          "," + number(bias_alignment);
  if (accumulate) text += " beta";
  if (bias) text += " bias";
  if (tf32) text += " tf32";
  if (fast_accumulation) text += " fast";
  return text;
}

size_t GemmProblemHash::operator()(const GemmProblem& p) const {
  size_t hash = 0;
  for (const int64_t value :
       {int64_t{p.a_type}, int64_t{p.b_type}, int64_t{p.d_type}, p.rows, p.columns, p.depth, p.lda,
        p.ldb, p.ldd, int64_t{p.a_alignment}, int64_t{p.b_alignment}, int64_t{p.d_alignment},
        int64_t{p.bias_alignment}}) {
    Mix(&hash, static_cast<uint64_t>(value));
  }
  const uint64_t flags = uint64_t{p.transpose_a} | uint64_t{p.transpose_b} << 1 |
                         uint64_t{p.accumulate} << 2 | uint64_t{p.bias} << 3 |
                         uint64_t{p.tf32} << 4 | uint64_t{p.fast_accumulation} << 5;
  Mix(&hash, flags);
  return hash;
}

}  // namespace mt::cuda
