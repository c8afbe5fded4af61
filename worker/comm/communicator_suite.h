// What every transport promises, as one suite: tests give it a way to run `size` members at once,
// each with a communicator.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/abi/small_floats.h"
#include "worker/comm/communicator.h"

namespace mt {

// Values over the whole range of exponents that a sum of a few stays finite in: rank order matters
// for almost all of them.
// uint16_t is BF16.
template <typename T>
std::vector<T> WildValues(int member, int64_t count, uint32_t seed) {
  std::mt19937 random(seed * 1000 + member);
  std::vector<T> values(count);
  for (T& value : values) {
    const double mantissa = static_cast<double>(random()) / 4294967296.0 - 0.5;
    const uint64_t bits = (static_cast<uint64_t>(random()) << 32) | random();
    const double wild = std::ldexp(mantissa, static_cast<int>(bits % 60) - 30);
    if constexpr (std::is_same_v<T, uint16_t>) {
      value = mt_bf16_from_float(static_cast<float>(wild));
    } else if constexpr (std::is_floating_point_v<T>) {
      value = static_cast<T>(wild);
    } else {
      value = static_cast<T>(bits);
    }
  }
  return values;
}

// What the interface promises, written out anew: in rank order, BF16 in float32 with one rounding at the end.
template <typename T>
std::vector<T> RankOrderResult(int size, int64_t count, uint32_t seed, ReduceOp op) {
  std::vector<std::vector<T>> values;
  for (int i = 0; i < size; ++i) values.push_back(WildValues<T>(i, count, seed));
  std::vector<T> result(count);
  for (int64_t at = 0; at < count; ++at) {
    if constexpr (std::is_same_v<T, uint16_t>) {
      float sum = mt_float_from_bf16(values[0][at]);
      for (int i = 1; i < size; ++i) {
        const float value = mt_float_from_bf16(values[i][at]);
        sum = op == ReduceOp::kSum ? sum + value : std::max(sum, value);
      }
      result[at] = mt_bf16_from_float(sum);
    } else {
      T sum = values[0][at];
      for (int i = 1; i < size; ++i) {
        const T value = values[i][at];
        if (op == ReduceOp::kMax) {
          sum = std::max(sum, value);
        } else if constexpr (std::is_floating_point_v<T>) {
          sum += value;
        } else {
          sum = static_cast<T>(static_cast<uint64_t>(sum) + static_cast<uint64_t>(value));
        }
      }
      result[at] = sum;
    }
  }
  return result;
}

#define MT_SUITE_CHECK(condition)                                                             \
  do {                                                                                        \
    if (!(condition))                                                                         \
      return absl::InternalError(absl::StrCat("suite: ", #condition, " at line ", __LINE__)); \
  } while (false)

// Bytes are carried as they are, whatever their type.
inline absl::Status RunGathersOfBytes(Communicator* comm) {
  for (const mt_dtype dtype : {MT_F8_E4M3, MT_F8_E5M2, MT_U8}) {
    const int64_t count = 5;
    std::vector<uint8_t> output(count * comm->size()), mine(count);
    for (int64_t i = 0; i < count; ++i) mine[i] = static_cast<uint8_t>(0xf0 + 3 * i + comm->rank());
    MT_RETURN_IF_ERROR(comm->AllGather(mine.data(), output.data(), count, dtype));
    for (size_t i = 0; i < output.size(); ++i)
      MT_SUITE_CHECK(output[i] == static_cast<uint8_t>(0xf0 + 3 * (i % count) + i / count));
    MT_RETURN_IF_ERROR(comm->Broadcast(mine.data(), count, dtype, comm->size() - 1));
    MT_SUITE_CHECK(mine[1] == static_cast<uint8_t>(0xf3 + comm->size() - 1));
  }
  return absl::OkStatus();
}

// One member's part: every operation, compared with the rank-order result, bit for bit. Returns the
// first difference.
template <typename T>
absl::Status RunCollectives(Communicator* comm, mt_dtype dtype,
                            const std::vector<int64_t>& counts) {
  const int size = comm->size(), rank = comm->rank();
  uint32_t seed = 7;
  const auto same = [](const T* a, const T* b, int64_t count) {
    return count == 0 || std::memcmp(a, b, count * sizeof(T)) == 0;
  };
  for (const int64_t count : counts) {
    for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kMax}) {
      ++seed;
      std::vector<T> data = WildValues<T>(rank, count, seed);
      MT_RETURN_IF_ERROR(comm->AllReduce(data.data(), count, dtype, op));
      MT_SUITE_CHECK(same(data.data(), RankOrderResult<T>(size, count, seed, op).data(), count));
    }
    {  // reduce-scatter, apart and in place
      ++seed;
      const std::vector<T> input = WildValues<T>(rank, count * size, seed);
      const std::vector<T> sum = RankOrderResult<T>(size, count * size, seed, ReduceOp::kSum);
      std::vector<T> output(count);
      MT_RETURN_IF_ERROR(comm->ReduceScatter(input.data(), output.data(), count, dtype));
      MT_SUITE_CHECK(same(output.data(), sum.data() + rank * count, count));
      std::vector<T> in_place = input;
      MT_RETURN_IF_ERROR(
          comm->ReduceScatter(in_place.data(), in_place.data() + rank * count, count, dtype));
      MT_SUITE_CHECK(same(in_place.data() + rank * count, sum.data() + rank * count, count));
    }
    {  // all-gather, apart and in place
      ++seed;
      std::vector<T> expected;
      for (int i = 0; i < size; ++i) {
        const std::vector<T> part = WildValues<T>(i, count, seed);
        expected.insert(expected.end(), part.begin(), part.end());
      }
      const std::vector<T> input = WildValues<T>(rank, count, seed);
      std::vector<T> output(count * size);
      MT_RETURN_IF_ERROR(comm->AllGather(input.data(), output.data(), count, dtype));
      MT_SUITE_CHECK(same(output.data(), expected.data(), count * size));
      std::vector<T> in_place(count * size);
      std::copy(input.begin(), input.end(), in_place.begin() + rank * count);
      MT_RETURN_IF_ERROR(
          comm->AllGather(in_place.data() + rank * count, in_place.data(), count, dtype));
      MT_SUITE_CHECK(same(in_place.data(), expected.data(), count * size));
    }
    for (int root = 0; root < size; ++root) {
      ++seed;
      std::vector<T> data = WildValues<T>(rank, count, seed);
      MT_RETURN_IF_ERROR(comm->Broadcast(data.data(), count, dtype, root));
      MT_SUITE_CHECK(same(data.data(), WildValues<T>(root, count, seed).data(), count));
    }
    MT_RETURN_IF_ERROR(comm->Barrier());
  }
  return absl::OkStatus();
}

// Both neighbours send kSendAhead messages of `bytes` before either receives, then receive in
// order; a ring of all members.
inline absl::Status RunCrossingSends(Communicator* comm, int64_t bytes) {
  const int size = comm->size(), rank = comm->rank();
  const auto message = [&](int from, int to, int number) {
    std::vector<char> data(bytes);
    for (int64_t i = 0; i < bytes; ++i)
      data[i] = static_cast<char>(i * 31 + from * 7 + to * 3 + number);
    return data;
  };
  for (int round = 0; round < 2; ++round) {
    for (int distance = 1; distance < size; ++distance) {
      for (int number = 0; number < Communicator::kSendAhead; ++number) {
        const int to = (rank + distance) % size;
        std::vector<char> data = message(rank, to, number);
        MT_RETURN_IF_ERROR(comm->Send(data.data(), bytes, to));
        std::fill(data.begin(), data.end(),
                  '\xff');  // Send has returned: the memory is the caller's again
      }
    }
    for (int distance = 1; distance < size; ++distance) {
      for (int number = 0; number < Communicator::kSendAhead; ++number) {
        const int from = (rank + size - distance) % size;
        std::vector<char> data(bytes);
        MT_RETURN_IF_ERROR(comm->Receive(data.data(), bytes, from));
        MT_SUITE_CHECK(data == message(from, rank, number));
      }
    }
    MT_RETURN_IF_ERROR(comm->Barrier());
  }
  return absl::OkStatus();
}

}  // namespace mt
