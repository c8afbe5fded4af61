/* bfloat16 and the two FP8 types in plain C: bit-exact conversions to and from float32, round to nearest even. What the host
 * backends compute with, and what device code is checked against. MT_HOST_DEVICE may be defined (to __host__ __device__) before
 * inclusion.
 *
 *   bf16    1 sign, 8 exponent, 7 mantissa bits: the upper half of a float32
 *   E4M3    1, 4, 3; bias 7; no infinity; NaN is 0x7f; largest 448          (Micikevicius et al. 2022, arXiv 2209.05433)
 *   E5M2    1, 5, 2; bias 15; IEEE-like, infinity 0x7c; largest 57344
 */
#ifndef MT_KERNELS_ABI_SMALL_FLOATS_H_
#define MT_KERNELS_ABI_SMALL_FLOATS_H_

#include <stdint.h>
#include <string.h>

#ifndef MT_HOST_DEVICE
#define MT_HOST_DEVICE
#endif

#define MT_E4M3_LARGEST 448.0f
#define MT_E5M2_LARGEST 57344.0f

MT_HOST_DEVICE static inline uint32_t mt_float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
MT_HOST_DEVICE static inline float mt_bits_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

MT_HOST_DEVICE static inline float mt_float_from_bf16(uint16_t bits) {
  return mt_bits_float((uint32_t)bits << 16);
}
/* NaN stays NaN (0x7fff); beyond the largest finite value the result is infinite, as IEEE rounding says. */
MT_HOST_DEVICE static inline uint16_t mt_bf16_from_float(float value) {
  const uint32_t bits = mt_float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
/* One rounding from float64: to float32 rounded to odd (towards zero, with the last bit set if anything was lost), which rounds
 * on as the float64 itself would (Boldo & Melquiond 2008). */
MT_HOST_DEVICE static inline uint16_t mt_bf16_from_double(double value) {
  const float nearest = (float)value;
  if ((double)nearest == value || value != value) return mt_bf16_from_float(nearest);
  uint32_t bits = mt_float_bits(nearest);
  const double size = nearest < 0 ? -(double)nearest : (double)nearest;
  if (size > (value < 0 ? -value : value)) --bits;
  return mt_bf16_from_float(mt_bits_float(bits | 1u));
}

/* A small float of `mantissa` bits and the given bias; values beyond `largest` in magnitude, infinities too, saturate to it; NaN
 * gives `nan`. */
MT_HOST_DEVICE static inline uint8_t mt_small_from_float(float value, int mantissa, int bias,
                                                         float largest, uint8_t nan) {
  const uint32_t bits = mt_float_bits(value);
  const uint8_t sign = (uint8_t)((bits >> 24) & 0x80u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return nan;
  float size = mt_bits_float(magnitude);
  if (size > largest) size = largest;
  /* Adding 2^(e - mantissa + 23) aligns the last kept bit with a float's last bit, and the addition rounds to nearest even. */
  int exponent = (int)(mt_float_bits(size) >> 23) - 127;
  if (exponent < 1 - bias) exponent = 1 - bias; /* subnormal */
  const float magic = mt_bits_float((uint32_t)(exponent - mantissa + 23 + 127) << 23);
  volatile float aligned = size + magic;
  const uint32_t units =
      (uint32_t)((aligned - magic) * mt_bits_float((uint32_t)(mantissa - exponent + 127) << 23));
  /* units counts steps of 2^(exponent - mantissa); 2^mantissa and above is normal, and a carry moves into the exponent. */
  const uint32_t code = (uint32_t)(exponent + bias - 1) * (1u << mantissa) + units;
  return (uint8_t)(sign | code);
}
MT_HOST_DEVICE static inline float mt_float_from_small(uint8_t code, int mantissa, int bias) {
  const uint32_t exponent = (uint32_t)(code & 0x7fu) >> mantissa;
  const uint32_t fraction = code & ((1u << mantissa) - 1u);
  const int shift = (exponent == 0 ? 1 : (int)exponent) - bias - mantissa;
  const float units = (float)(exponent == 0 ? fraction : fraction + (1u << mantissa));
  const float size = units * mt_bits_float((uint32_t)(shift + 127) << 23);
  return (code & 0x80u) ? -size : size;
}

MT_HOST_DEVICE static inline uint8_t mt_e4m3_from_float(float value) {
  return mt_small_from_float(value, 3, 7, MT_E4M3_LARGEST, 0x7f);
}
MT_HOST_DEVICE static inline uint8_t mt_e5m2_from_float(float value) {
  return mt_small_from_float(value, 2, 15, MT_E5M2_LARGEST, 0x7f);
}
MT_HOST_DEVICE static inline float mt_float_from_e4m3(uint8_t code) {
  if ((code & 0x7f) == 0x7f) return mt_bits_float(0x7fc00000u);
  return mt_float_from_small(code, 3, 7);
}
MT_HOST_DEVICE static inline float mt_float_from_e5m2(uint8_t code) {
  if ((code & 0x7f) > 0x7c) return mt_bits_float(0x7fc00000u);
  if ((code & 0x7f) == 0x7c) return mt_bits_float((code & 0x80u) ? 0xff800000u : 0x7f800000u);
  return mt_float_from_small(code, 2, 15);
}

#endif /* MT_KERNELS_ABI_SMALL_FLOATS_H_ */
