/* Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011, "Parallel random numbers: as
 * easy as 1, 2, 3"). A number depends on (seed, stream, index) alone, so that any rank can make any
 * element of any tensor by itself.
 *
 * Layout: key = seed (low word, high word); counter = (block low, block high, stream low, stream
 * high). One block of four 32-bit words gives two uniforms of 52 bits and, by Box-Muller, two
 * normals; normal `index` is number index & 1 of block index >> 1. Plain C; MT_HOST_DEVICE may be
 * defined (to __host__ __device__) before inclusion.
 */
#ifndef MT_KERNELS_ABI_PHILOX_H_
#define MT_KERNELS_ABI_PHILOX_H_

#include <math.h>
#include <stdint.h>

#ifndef MT_HOST_DEVICE
#define MT_HOST_DEVICE
#endif

typedef struct mt_philox_block {
  uint32_t word[4];
} mt_philox_block;

/* Ten rounds; constants of table 2 of the paper. */
MT_HOST_DEVICE static inline mt_philox_block mt_philox(uint64_t key, uint64_t counter_low,
                                                       uint64_t counter_high) {
  uint32_t c0 = (uint32_t)counter_low, c1 = (uint32_t)(counter_low >> 32);
  uint32_t c2 = (uint32_t)counter_high, c3 = (uint32_t)(counter_high >> 32);
  uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = (uint64_t)0xD2511F53u * c0;
    const uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;
    const uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
    const uint32_t n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c1 = (uint32_t)p1;
    c3 = (uint32_t)p0;
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  mt_philox_block block;
  block.word[0] = c0;
  block.word[1] = c1;
  block.word[2] = c2;
  block.word[3] = c3;
  return block;
}

/* Uniform in (0, 1): 52 bits, shifted by half a step so that neither end is reached (log and
 * division are safe). */
MT_HOST_DEVICE static inline double mt_uniform_from_words(uint32_t low, uint32_t high) {
  const uint64_t bits = (((uint64_t)high << 32) | low) >> 12;
  return ((double)bits + 0.5) * (1.0 / 4503599627370496.0); /* 2^-52 */
}

/* Normals 2 * block and 2 * block + 1 of the stream. */
MT_HOST_DEVICE static inline void mt_normal_pair(uint64_t seed, uint64_t stream, uint64_t block,
                                                 double* even, double* odd) {
  const mt_philox_block w = mt_philox(seed, block, stream);
  const double u = mt_uniform_from_words(w.word[0], w.word[1]);
  const double angle =
      6.283185307179586476925286766559 * mt_uniform_from_words(w.word[2], w.word[3]);
  const double radius = sqrt(-2.0 * log(u));
  *even = radius * cos(angle);
  *odd = radius * sin(angle);
}

/* Standard normal number `index` of a stream, in float64. */
MT_HOST_DEVICE static inline double mt_normal(uint64_t seed, uint64_t stream, uint64_t index) {
  double even, odd;
  mt_normal_pair(seed, stream, index >> 1, &even, &odd);
  return (index & 1) ? odd : even;
}

#endif /* MT_KERNELS_ABI_PHILOX_H_ */
