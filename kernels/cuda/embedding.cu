// Vocabulary-parallel embedding, with the formulas of mt_backend.h.
//
// Bytes that cannot be avoided, e = bytes of an element: forward 2 N C e; backward N C e and 8 C bytes for every id that occurs.
//
// Backward is deterministic and has no atomics: row numbers are sorted by id (sort_rows.h), and the rows of one id are added in
// increasing order in float32, in pieces of 32 rows whose sums are then added in increasing order (embedding.h). So a frequent id
// has many blocks, and the result depends on nothing but the id's own rows.
#include "kernels/cuda/embedding.h"

#include "kernels/cuda/operations.h"
#include "kernels/cuda/packs.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/sort_rows.h"
#include "kernels/cuda/status.h"

namespace mt::cuda {
namespace {

constexpr int kItems = 4;         // packs of a thread in the forward pass
constexpr int kRowsInFlight = 8;  // of a piece

template <typename T>
struct Gather {
  const int32_t* ids;  // (N)
  const T* table;      // (vocab_rows, C)
  T* output;           // (N, C)
  int64_t rows, columns, vocab_start, vocab_rows;
};

template <typename T, int N>
__global__ void __launch_bounds__(kStreamThreads) GatherKernel(Gather<T> a) {
  ForEachPiece<kItems>(
      a.rows, static_cast<uint32_t>(a.columns / N), [&](const RowItem(&items)[kItems]) {
        Pack<T, N> packs[kItems] = {};
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
          if (items[i].row >= a.rows) continue;
          const int64_t id = a.ids[items[i].row] - a.vocab_start;
          if (id >= 0 && id < a.vocab_rows)
            packs[i] = LoadPack<N>(a.table + id * a.columns + int64_t{items[i].item} * N);
        }
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
          if (items[i].row < a.rows)
            StorePack(a.output + items[i].row * a.columns + int64_t{items[i].item} * N, packs[i]);
        }
      });
}

// Rows sorted by id; see SortedRows.
template <typename T>
struct Scatter {
  const int32_t *keys, *rows;  // (count)
  const int32_t* run_starts;   // (count): the first position of a position's run
  const T* output_gradient;    // (N, C)
  float* table_gradient;       // (vocab_rows, C)
  float* partials;             // (PartialPieces, C)
  int64_t count, columns, vocab_rows;
};

// By bisection of the sorted keys: a run may be as long as all rows.
__global__ void __launch_bounds__(kStreamThreads)
    RunStartsKernel(const int32_t* keys, int64_t count, int32_t* run_starts) {
  const int64_t step = int64_t{gridDim.x} * kStreamThreads;
  for (int64_t i = int64_t{blockIdx.x} * kStreamThreads + threadIdx.x; i < count; i += step) {
    const int32_t key = keys[i];
    int64_t low = 0, high = i;  // the first position with this key is in [low, high]
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (keys[middle] == key) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    run_starts[i] = static_cast<int32_t>(low);
  }
}

template <int N>
__device__ __forceinline__ void AddFloats(float* address, const float (&values)[N]) {
  const Pack<float, N> before = LoadFloats<N>(address);
  float sums[N];
#pragma unroll
  for (int k = 0; k < N; ++k) sums[k] = before.at[k] + values[k];
  StoreFloats(address, sums);
}

// A block takes blockDim.x packs of columns of the piece that begins at a position, if one does.
template <typename T, int N>
__global__ void __launch_bounds__(kStreamThreads) AddPiecesKernel(Scatter<T> a) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const int64_t column_blocks = DivideUp(a.columns / N, blockDim.x);
  for (int64_t block = blockIdx.x; block < a.count * column_blocks; block += gridDim.x) {
    const int64_t position = block / column_blocks;
    const int32_t key = a.keys[position];
    const int64_t start = a.run_starts[position];
    if (key >= a.vocab_rows || (position - start) % kPieceRows != 0) continue;
    const int64_t c = ((block - position * column_blocks) * blockDim.x + threadIdx.x) * N;
    const bool same = position + lane < a.count && a.keys[position + lane] == key;
    const int rows = __popc(__ballot_sync(kAllLanes, same));
    if (c >= a.columns) continue;  // after the ballot
    float sums[N] = {};
    for (int first = 0; first < rows; first += kRowsInFlight) {
      Pack<T, N> packs[kRowsInFlight] = {};
#pragma unroll
      for (int i = 0; i < kRowsInFlight; ++i) {
        if (first + i < rows)
          packs[i] = LoadPack<N>(a.output_gradient + a.rows[position + first + i] * a.columns + c);
      }
#pragma unroll
      for (int i = 0; i < kRowsInFlight; ++i) {
#pragma unroll
        for (int k = 0; k < N; ++k) sums[k] += ToFloat(packs[i].at[k]);  // zeros past the piece
      }
    }
    const bool is_long = position != start ||
                         (position + kPieceRows < a.count && a.keys[position + kPieceRows] == key);
    if (is_long) {
      StoreFloats(a.partials + PartialPiece(position, start) * a.columns + c, sums);
    } else {
      AddFloats(a.table_gradient + int64_t{key} * a.columns + c, sums);
    }
  }
}

// A block takes blockDim.x packs of columns of the long run that begins in a window of kPieceRows positions; there is at most one.
template <typename T, int N>
__global__ void __launch_bounds__(kStreamThreads) AddRunsKernel(Scatter<T> a) {
  static_assert(kPieceRows == kWarpThreads);
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const int64_t column_blocks = DivideUp(a.columns / N, blockDim.x);
  const int64_t windows = DivideUp(a.count, kPieceRows);
  for (int64_t block = blockIdx.x; block < windows * column_blocks; block += gridDim.x) {
    const int64_t window = block / column_blocks, position = window * kPieceRows + lane;
    const bool begins = position + kPieceRows < a.count && a.run_starts[position] == position &&
                        a.keys[position] < a.vocab_rows &&
                        a.keys[position + kPieceRows] == a.keys[position];
    const unsigned votes = __ballot_sync(kAllLanes, begins);
    if (votes == 0) continue;
    const int64_t start = window * kPieceRows + __ffs(static_cast<int>(votes)) - 1;
    const int32_t key = a.keys[start];
    const int64_t c = ((block - window * column_blocks) * blockDim.x + threadIdx.x) * N;
    float sums[N] = {};
    // 32 pieces at a time: a lane looks whether its piece exists.
    for (int64_t first = start;;) {
      const int64_t piece = first + int64_t{lane} * kPieceRows;
      const bool exists = piece < a.count && a.keys[piece] == key;
      const int pieces = __popc(__ballot_sync(kAllLanes, exists));
      if (c < a.columns) {
#pragma unroll 4
        for (int i = 0; i < pieces; ++i) {
          const int64_t partial = PartialPiece(first + int64_t{i} * kPieceRows, start);
          const Pack<float, N> part = LoadFloats<N>(a.partials + partial * a.columns + c);
#pragma unroll
          for (int k = 0; k < N; ++k) sums[k] += part.at[k];
        }
      }
      if (pieces < kWarpThreads) break;
      first += int64_t{kWarpThreads} * kPieceRows;
    }
    if (c < a.columns) AddFloats(a.table_gradient + int64_t{key} * a.columns + c, sums);
  }
}

// Threads for `packs` packs of columns: no more warps than have work.
unsigned ColumnThreads(int64_t packs) {
  return static_cast<unsigned>(
      std::min<int64_t>(DivideUp(packs, kWarpThreads) * kWarpThreads, kStreamThreads));
}

template <typename T, int N, int kFloats>
int32_t AddRows(const Scatter<T>& a, const Launch& launch) {
  const unsigned threads = ColumnThreads(a.columns / N);
  auto* pieces = AddPiecesKernel<T, N>;
  MT_CUDA(MT_LAUNCH(pieces, GridOf(a.count * DivideUp(a.columns / N, threads)), threads, 0,
                    launch.stream, a));
  const unsigned run_threads = ColumnThreads(a.columns / kFloats);
  auto* runs = AddRunsKernel<T, kFloats>;
  MT_CUDA(MT_LAUNCH(
      runs, GridOf(DivideUp(a.count, kPieceRows) * DivideUp(a.columns / kFloats, run_threads)),
      run_threads, 0, launch.stream, a));
  return MT_OK;
}

// Elements of four bytes in front of the partial sums, which begin at a 16-byte boundary.
int64_t SortRoom(const mt_embedding_args& args) {
  return DivideUp(SortElements(PlanSort(args.rows, args.vocab_rows)), 4) * 4;
}

int32_t CheckSize(const mt_embedding_args& args, int32_t operation) {
  if (args.rows <= kMostItems && args.columns <= kMostItems) return MT_OK;
  return host::Fail(MT_ERROR_UNSUPPORTED, operation, "more than 2^31 - 1 rows or columns");
}

}  // namespace

int32_t EmbeddingForward(const mt_embedding_args& args, const Launch& launch) {
  if (args.rows == 0) return MT_OK;
  if (const int32_t code = CheckSize(args, MT_OP_EMBEDDING_FORWARD); code != MT_OK) return code;
  MT_CUDA(WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int N = kPackElements<T>;
    const Gather<T> a = {args.ids,
                         static_cast<const T*>(args.table),
                         static_cast<T*>(args.output),
                         args.rows,
                         args.columns,
                         args.vocab_start,
                         args.vocab_rows};
    const bool whole = args.columns % N == 0 && IsAligned(args.table) && IsAligned(args.output);
    auto* kernel = whole ? GatherKernel<T, N> : GatherKernel<T, 1>;
    const int64_t items = args.rows * (whole ? args.columns / N : args.columns);
    return MT_LAUNCH(kernel, GridOf(DivideUp(items, int64_t{kStreamThreads} * kItems)),
                     kStreamThreads, 0, launch.stream, a);
  }));
  return MT_OK;
}

int64_t EmbeddingBackwardWorkspace(const mt_embedding_args& args) {
  return static_cast<int64_t>(sizeof(float)) *
         (SortRoom(args) + PartialPieces(args.rows) * args.columns);
}

int32_t EmbeddingBackward(const mt_embedding_args& args, const Launch& launch) {
  if (args.rows == 0 || args.vocab_rows == 0) return MT_OK;
  if (const int32_t code = CheckSize(args, MT_OP_EMBEDDING_BACKWARD); code != MT_OK) return code;
  SortedRows sorted = {};
  if (const int32_t code = SortRows(args.ids, args.rows, args.vocab_start, args.vocab_rows,
                                    static_cast<int32_t*>(args.workspace), &sorted, launch);
      code != MT_OK)
    return code;
  MT_CUDA(MT_LAUNCH(RunStartsKernel, GridOf(DivideUp(args.rows, kStreamThreads)), kStreamThreads, 0,
                    launch.stream, sorted.keys, args.rows, sorted.free));
  return WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int N = kPackElements<T>;
    Scatter<T> a = {};
    a.keys = sorted.keys;
    a.rows = sorted.rows;
    a.run_starts = sorted.free;
    a.output_gradient = static_cast<const T*>(args.output_gradient);
    a.table_gradient = static_cast<float*>(args.table_gradient);
    a.partials = static_cast<float*>(args.workspace) + SortRoom(args);
    a.count = args.rows;
    a.columns = args.columns;
    a.vocab_rows = args.vocab_rows;
    const bool whole = args.columns % N == 0 && IsAligned(args.output_gradient) &&
                       IsAligned(args.table_gradient) && IsAligned(args.workspace);
    return whole ? AddRows<T, N, 4>(a, launch) : AddRows<T, 1, 1>(a, launch);
  });
}

}  // namespace mt::cuda
