// Keys and values of multi-head latent attention: parts of a head move to where attention reads them.
#include <algorithm>

#include "kernels/reference/operations.h"

namespace mt::reference {

void MlaExpandForward(const mt_mla_expand_args& args) {
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t nope = args.nope_dim, rope = args.rope_dim, v = args.v_dim;
    for (int64_t head = 0; head < args.rows * args.heads; ++head) {
      const T* kv = static_cast<const T*>(args.kv) + head * (nope + v);
      T* key = static_cast<T*>(args.key) + head * (nope + rope);
      std::copy_n(kv, nope, key);
      std::copy_n(static_cast<const T*>(args.key_rope) + head / args.heads * rope, rope,
                  key + nope);
      std::copy_n(kv + nope, v, static_cast<T*>(args.value) + head * v);
    }
  });
}

void MlaExpandBackward(const mt_mla_expand_args& args) {
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t H = args.heads, nope = args.nope_dim, rope = args.rope_dim, v = args.v_dim;
    for (int64_t n = 0; n < args.rows; ++n) {
      const T* key = static_cast<const T*>(args.key) + n * H * (nope + rope);
      for (int64_t h = 0; h < H; ++h) {
        T* kv = static_cast<T*>(args.kv) + (n * H + h) * (nope + v);
        std::copy_n(key + h * (nope + rope), nope, kv);
        std::copy_n(static_cast<const T*>(args.value) + (n * H + h) * v, v, kv + nope);
      }
      for (int64_t j = 0; j < rope; ++j) {
        double sum = 0;
        for (int64_t h = 0; h < H; ++h) sum += key[h * (nope + rope) + nope + j];
        static_cast<T*>(args.key_rope)[n * rope + j] = static_cast<T>(sum);
      }
    }
  });
}

}  // namespace mt::reference
