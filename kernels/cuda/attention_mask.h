// Which keys a query sees, and which whole tiles therefore nobody has to visit: the index arithmetic of all attention kernels.
//
// Where documents follow each other in a sample (document_start), a query's first key never falls from one query to the next. So the
// first query of a tile has the earliest first key of all, its last query the latest, and the queries that see a key are the
// neighbours from the key on. Costs follow the documents' lengths: tiles between two documents are not read.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/abi/attention_shape.h"
#include "kernels/cuda/vendor/vendor.h"

namespace mt::cuda {

struct AttentionMask {
  int queries, keys, first_position, window, causal, batch;
  const int32_t* document_start;  // (T, B), or null

  // The first key of the document of a query of sequence b; a query past the end is as the last.
  __device__ __forceinline__ int DocumentStart(int b, int query) const {
    return document_start == nullptr
               ? 0
               : document_start[static_cast<int64_t>(min(query, queries - 1)) * batch + b];
  }
  // Of one key and one query, whose document starts at `start`.
  __device__ __forceinline__ bool Sees(int query, int key, int start) const {
    const int position = first_position + query;
    return query < queries && key < keys &&
           (!causal || (key <= position && key > position - window && key >= start));
  }
};

inline AttentionMask MaskOf(const mt_attention_args& args) {
  const int64_t keys = mt_attention_keys(&args);
  return {.queries = static_cast<int>(args.sequence),
          .keys = static_cast<int>(keys),
          .first_position = static_cast<int>(mt_attention_first_position(&args)),
          .window = static_cast<int>(args.window != 0 ? std::min(args.window, keys) : keys),
          .causal = args.causal,
          .batch = static_cast<int>(args.batch),
          .document_start = args.document_start};
}

// The keys that some of kQueries queries from first_query on see: from the tile of kKeys that begins at `begin` to before `end`.
struct KeyRange {
  int begin, end;
};
template <int kQueries, int kKeys>
__device__ __forceinline__ KeyRange KeysOf(const AttentionMask& mask, int b, int first_query) {
  if (!mask.causal) return {0, mask.keys};
  const int position = mask.first_position + first_query,
            begin = max(position + 1 - mask.window, mask.DocumentStart(b, first_query));
  return {max(begin, 0) / kKeys * kKeys, min(position + kQueries, mask.keys)};
}

// The tiles of kQueries queries of which some see some of kKeys keys from first_key on. There are as many queries as keys.
struct QueryTiles {
  int first, count;
};
template <int kQueries, int kKeys>
__device__ __forceinline__ QueryTiles QueriesOf(const AttentionMask& mask, int b, int first_key) {
  const int first = mask.causal ? first_key / kQueries : 0;
  // The last that sees a key is its window after it.
  const int last_query =
      mask.causal ? min(mask.queries - 1, first_key + kKeys - 2 + mask.window) : mask.queries - 1;
  int count = last_query / kQueries + 1 - first;
  if (mask.document_start == nullptr) return {first, count};
  // Of the tiles after the first those whose first query's document had begun when the last key came.
  const int last_key = min(first_key + kKeys, mask.keys) - 1;
  int low = 1;
  while (low < count) {
    const int middle = (low + count) / 2;
    if (mask.DocumentStart(b, (first + middle) * kQueries) <= last_key) {
      low = middle + 1;
    } else {
      count = middle;
    }
  }
  return {first, count};
}

// Whether some of kQueries queries from first_query on may not see some of kKeys keys from first_key on; `latest` is the DocumentStart of
// the last of these queries.
template <int kQueries, int kKeys>
__device__ __forceinline__ bool NeedsMask(const AttentionMask& mask, int first_query, int latest,
                                          int first_key) {
  const int position = mask.first_position + first_query;
  return first_key + kKeys > mask.keys ||
         (mask.causal && (first_key + kKeys - 1 > position || first_key < latest ||
                          first_key <= position + kQueries - 1 - mask.window));
}

}  // namespace mt::cuda
