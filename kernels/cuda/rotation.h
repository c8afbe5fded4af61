// Rotary embeddings by units: two packs of N elements of a head, which hold N pairs. Half-split, they are N elements of the first
// half and their partners in the second; interleaved, 2 N neighbours. Where a head is longer than what is rotated, further units
// have two neighbouring packs and are not turned. A head of d elements has d / 2N units, of which rotary / 2N are turned; both
// quotients are whole, or N is 1 (then one element may be left over: the last).
#pragma once

#include "kernels/cuda/packs.h"

namespace mt::cuda {

// Where the unit's two packs begin in the head, which has at most 2^16 elements.
struct UnitPlace {
  int first, second;
};
__host__ __device__ __forceinline__ UnitPlace PlaceOfUnit(int64_t unit, int pack_elements,
                                                          int64_t rotary, bool interleaved) {
  const int begin = static_cast<int>(unit) * pack_elements, turned = static_cast<int>(rotary);
  if (!interleaved && 2 * begin < turned) return {begin, turned / 2 + begin};
  return {2 * begin, 2 * begin + pack_elements};
}

// What a rotation needs to know of the tensor beside its memory.
struct Heads {
  int64_t rows;  // sequence * batch, < 2^31
  int64_t first_position;
  const int32_t* positions;  // (rows) or null, then the row's place after first_position
  uint32_t batch, heads;
  int64_t head_dim, rotary;
  const float* cos_sin;  // (positions, rotary)
};
template <typename Arguments>
Heads HeadsOf(const Arguments& args) {
  Heads heads = {};
  heads.rows = args.sequence * args.batch;
  heads.first_position = args.first_position;
  heads.positions = args.positions;
  heads.batch = static_cast<uint32_t>(args.batch);
  heads.heads = static_cast<uint32_t>(args.heads);
  heads.head_dim = args.head_dim;
  heads.rotary = args.rotary_dim != 0 ? args.rotary_dim : args.head_dim;
  heads.cos_sin = static_cast<const float*>(args.cos_sin);
  return heads;
}
// True if heads are whole units of packs of N elements and the table can be read in packs.
inline bool HasWholeUnits(const Heads& heads, int pack_elements) {
  return heads.head_dim % (2 * pack_elements) == 0 && heads.rotary % (2 * pack_elements) == 0 &&
         IsAligned(heads.cos_sin);
}
__device__ __forceinline__ const float* TableRow(const Heads& heads, int64_t row) {
  const int64_t position = heads.positions != nullptr
                               ? heads.positions[row]
                               : heads.first_position + static_cast<uint32_t>(row) / heads.batch;
  return heads.cos_sin + position * heads.rotary;
}

// The unit's N cosines and sines.
template <int N>
struct Angles {
  Pack<float, N> cosine, sine;
};
template <int N>
__device__ __forceinline__ Angles<N> LoadAngles(const Heads& heads, const float* table_row,
                                                int64_t unit) {
  const float* at = table_row + unit * N;
  return {LoadFloats<N>(at), LoadFloats<N>(at + heads.rotary / 2)};
}

// Turns the pairs of a unit: (a, b) -> (a cos - b sin, b cos + a sin), or back.
template <bool kInterleaved, int N>
__device__ __forceinline__ void Turn(float (&z)[2][N], const Angles<N>& angles, bool inverse) {
#pragma unroll
  for (int k = 0; k < N; ++k) {
    float& first = kInterleaved ? z[2 * k / N][2 * k % N] : z[0][k];
    float& second = kInterleaved ? z[(2 * k + 1) / N][(2 * k + 1) % N] : z[1][k];
    const float a = first, b = second, c = angles.cosine.at[k];
    const float s = inverse ? -angles.sine.at[k] : angles.sine.at[k];
    first = a * c - b * s;
    second = b * c + a * s;
  }
}

template <typename T, int N>
struct UnitPacks {
  Pack<T, N> first, second;
};
template <int N, typename T>
__device__ __forceinline__ UnitPacks<T, N> LoadUnit(const T* head, UnitPlace place) {
  return {LoadPack<N>(head + place.first), LoadPack<N>(head + place.second)};
}
template <typename T, int N>
__device__ __forceinline__ void Unpack(const UnitPacks<T, N>& unit, float (&z)[2][N]) {
#pragma unroll
  for (int k = 0; k < N; ++k) {
    z[0][k] = ToFloat(unit.first.at[k]);
    z[1][k] = ToFloat(unit.second.at[k]);
  }
}
template <typename T, int N>
__device__ __forceinline__ void StoreUnit(T* head, UnitPlace place, const float (&z)[2][N]) {
  Pack<T, N> first, second;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    first.at[k] = FromFloat<T>(z[0][k]);
    second.at[k] = FromFloat<T>(z[1][k]);
  }
  StorePack(head + place.first, first);
  StorePack(head + place.second, second);
}

}  // namespace mt::cuda
