// The instruction set's part of attention, and the packing of heads.
#include "kernels/cpu/attention_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_rows.cc"
#include "hwy/foreach_target.h"
// After foreach_target:
#include <cmath>
#include <limits>

#include "hwy/highway.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/operations.h"

HWY_BEFORE_NAMESPACE();
namespace mt::cpu::HWY_NAMESPACE {

// attention_rows.h, for rows that see the first `visible` keys of the block.
float Softmax(float* scores, int64_t visible, int64_t width, float scale, float* maximum,
              float* sum) {
  const Full d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  if (visible <= 0) {
    std::fill(scores, scores + width, 0.0f);
    return 1.0f;
  }
  const Vector lowest = hn::Set(d, std::numeric_limits<float>::lowest());
  const Vector factor = hn::Set(d, scale);
  Vector largest = lowest;
  int64_t c = 0;
  for (; c + lanes <= visible; c += lanes)
    largest = hn::Max(largest, hn::Mul(hn::LoadU(d, scores + c), factor));
  if (c < visible) {
    const auto mask = hn::FirstN(d, static_cast<size_t>(visible - c));
    largest =
        hn::Max(largest, hn::IfThenElse(mask, hn::Mul(hn::LoadU(d, scores + c), factor), lowest));
  }
  const float before = *maximum;
  *maximum = std::max(before, Maximum(largest));
  const Vector m = hn::Set(d, *maximum);
  Vector total = hn::Zero(d);
  for (c = 0; c + lanes <= visible; c += lanes) {
    const Vector p = Exp(d, hn::MulSub(hn::LoadU(d, scores + c), factor, m));
    total = hn::Add(total, p);
    hn::StoreU(p, d, scores + c);
  }
  if (c < visible) {
    const auto mask = hn::FirstN(d, static_cast<size_t>(visible - c));
    const Vector p =
        hn::IfThenElseZero(mask, Exp(d, hn::MulSub(hn::LoadU(d, scores + c), factor, m)));
    total = hn::Add(total, p);
    hn::StoreU(p, d, scores + c);
    c += lanes;
  }
  if (c < width) std::fill(scores + c, scores + width, 0.0f);
  const float rescale = std::isinf(before) ? 0.0f : std::exp(before - *maximum);
  *sum = *sum * rescale + Sum(total);
  return rescale;
}

// attention_rows.h, likewise.
void ScoreGradient(float* scores, float* d_p, int64_t visible, int64_t width, float scale,
                   float lse, float delta) {
  const Full d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const Vector factor = hn::Set(d, scale), l = hn::Set(d, lse), shift = hn::Set(d, delta);
  int64_t c = 0;
  for (; c + lanes <= visible; c += lanes) {
    const Vector p = Exp(d, hn::MulSub(hn::LoadU(d, scores + c), factor, l));
    hn::StoreU(p, d, scores + c);
    hn::StoreU(hn::Mul(hn::Mul(p, factor), hn::Sub(hn::LoadU(d, d_p + c), shift)), d, d_p + c);
  }
  if (c < visible) {
    const auto mask = hn::FirstN(d, static_cast<size_t>(visible - c));
    const Vector p =
        hn::IfThenElseZero(mask, Exp(d, hn::MulSub(hn::LoadU(d, scores + c), factor, l)));
    const Vector ds = hn::Mul(hn::Mul(p, factor), hn::Sub(hn::LoadU(d, d_p + c), shift));
    hn::StoreU(p, d, scores + c);
    hn::StoreU(hn::IfThenElseZero(mask, ds), d, d_p + c);
    c += lanes;
  }
  if (c < width) {
    std::fill(scores + c, scores + width, 0.0f);
    std::fill(d_p + c, d_p + width, 0.0f);
  }
}

}  // namespace mt::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <dnnl.h>

#include "kernels/host/host.h"

namespace mt::cpu {
HWY_EXPORT(Softmax);
HWY_EXPORT(ScoreGradient);

float SoftmaxRow(float* scores, const VisibleKeys& keys, int64_t width, float scale, float* maximum,
                 float* sum) {
  std::fill(scores, scores + keys.begin, 0.0f);
  return HWY_DYNAMIC_DISPATCH(Softmax)(scores + keys.begin, keys.end - keys.begin,
                                       width - keys.begin, scale, maximum, sum);
}

void ScoreGradientRow(float* scores, float* d_p, const VisibleKeys& keys, int64_t width,
                      float scale, float lse, float delta) {
  std::fill(scores, scores + keys.begin, 0.0f);
  std::fill(d_p, d_p + keys.begin, 0.0f);
  HWY_DYNAMIC_DISPATCH(ScoreGradient)
  (scores + keys.begin, d_p + keys.begin, keys.end - keys.begin, width - keys.begin, scale, lse,
   delta);
}

VisibleKeys KeysOfBlock(const mt_attention_args& args, int64_t b, int64_t t, int64_t key,
                        int64_t width) {
  const int64_t begin = std::clamp<int64_t>(mt_attention_first_key(&args, b, t) - key, 0, width);
  return {begin, std::clamp<int64_t>(mt_attention_end(&args, t) - key, begin, width)};
}

int64_t TilePositions(const mt_attention_args& args) {
  return std::max<int64_t>(16, 128 / (args.heads / args.kv_heads));
}

void HeadRows::Pack(const void* tensor, int64_t b, int64_t head, int64_t first, int64_t count,
                    float* packed) const {
  for (int64_t t = 0; t < count; ++t) {
    const int64_t at = At(first + t, b, head);
    if (dtype == MT_BF16) {
      Widen(static_cast<const Bf16*>(tensor) + at, head_dim, packed + t * head_dim);
    } else {
      std::copy_n(static_cast<const float*>(tensor) + at, head_dim, packed + t * head_dim);
    }
  }
}

void HeadRows::Unpack(const float* packed, int64_t b, int64_t head, int64_t first, int64_t count,
                      void* tensor) const {
  for (int64_t t = 0; t < count; ++t) {
    const int64_t at = At(first + t, b, head);
    if (dtype == MT_BF16) {
      Narrow(packed + t * head_dim, head_dim, static_cast<Bf16*>(tensor) + at);
    } else {
      std::copy_n(packed + t * head_dim, head_dim, static_cast<float*>(tensor) + at);
    }
  }
}

Matrix HeadRows::View(const void* tensor, int64_t b, int64_t head, int64_t first, int64_t count,
                      float* scratch) const {
  if (dtype == MT_F32)
    return {static_cast<const float*>(tensor) + At(first, b, head), batch * stride};
  Pack(tensor, b, head, first, count, scratch);
  return {scratch, head_dim};
}

float Element(int32_t dtype, const void* data, int64_t index) {
  float value;
  if (dtype == MT_BF16) {
    Widen(static_cast<const Bf16*>(data) + index, 1, &value);
  } else {
    value = static_cast<const float*>(data)[index];
  }
  return value;
}

void Multiplier::operator()(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k,
                            const Matrix& a, const Matrix& b, float beta, float* c,
                            int64_t ldc) const {
  const dnnl_status_t status = dnnl_sgemm(transpose_a, transpose_b, m, n, k, 1.0f, a.data, a.stride,
                                          b.data, b.stride, beta, c, ldc);
  if (status != dnnl_success) *failed = status;
}

int32_t Outcome(int failed, int32_t operation) {
  if (failed == dnnl_success) return MT_OK;
  return host::Fail(failed == dnnl_out_of_memory ? MT_ERROR_MEMORY : MT_ERROR_DEVICE, operation,
                    "dnnl_sgemm returned %d", failed);
}

}  // namespace mt::cpu
#endif  // HWY_ONCE
