#include "kernels/reference/operations.h"

namespace mt::reference {

void EmbeddingForward(const mt_embedding_args& args) {
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const T* table = static_cast<const T*>(args.table);  // (vocab_rows, C)
    T* output = static_cast<T*>(args.output);            // (N, C)
    for (int64_t i = 0; i < args.rows; ++i) {
      const int64_t row = args.ids[i] - args.vocab_start;
      const bool here = row >= 0 && row < args.vocab_rows;
      for (int64_t c = 0; c < args.columns; ++c)
        output[i * args.columns + c] = here ? table[row * args.columns + c] : T{0};
    }
  });
}

void EmbeddingBackward(const mt_embedding_args& args) {
  WithType(args.dtype, [&](auto type) {
    WithType(args.gradient_dtype, [&](auto gradient_type) {
      using G = decltype(gradient_type);
      const auto* output_gradient =
          static_cast<const decltype(type)*>(args.output_gradient);  // (N, C)
      G* table_gradient = static_cast<G*>(args.table_gradient);      // (vocab_rows, C)
      for (int64_t i = 0; i < args.rows; ++i) {
        const int64_t row = args.ids[i] - args.vocab_start;
        if (row < 0 || row >= args.vocab_rows) continue;
        for (int64_t c = 0; c < args.columns; ++c) {
          G& element = table_gradient[row * args.columns + c];
          element = static_cast<G>(element + output_gradient[i * args.columns + c]);
        }
      }
    });
  });
}

}  // namespace mt::reference
