// Token embedding, vocabulary-parallel: each tensor rank looks up the ids that are its own; the sum
// over ranks is the whole.
#pragma once

#include "common/status.h"
#include "worker/model/context.h"

namespace mt {

// stream (stream_rows, C) = table[ids]; ids (N) int32; table (vocab_rows, C); partial (N, C) is
// scratch.
absl::Status EmbeddingForward(ModelContext& context, const int32_t* ids, const void* table,
                              void* partial, void* stream);

// table_gradient[ids[i]] += gradient[i], gradient (stream_rows, C); full (N, C) is scratch under
// sequence parallelism.
absl::Status EmbeddingBackward(ModelContext& context, const int32_t* ids, const void* gradient,
                               void* full, void* table_gradient);

}  // namespace mt
