/* What the zeros of mt_attention_args stand for, and which keys a query sees: the contract's rules, once for all backends. Plain C, on
 * the host. */
#ifndef MT_KERNELS_ABI_ATTENTION_SHAPE_H_
#define MT_KERNELS_ABI_ATTENTION_SHAPE_H_

#include "kernels/abi/mt_backend.h"

/* Elements of a head of v and o. */
static inline int64_t mt_attention_v_head_dim(const mt_attention_args* a) {
  return a->v_head_dim != 0 ? a->v_head_dim : a->head_dim;
}

/* Rows of k and v per sequence. */
static inline int64_t mt_attention_keys(const mt_attention_args* a) {
  return a->key_sequence != 0 ? a->key_sequence : a->sequence;
}

/* Where query 0 stands among the keys. */
static inline int64_t mt_attention_first_position(const mt_attention_args* a) {
  return mt_attention_keys(a) - a->sequence;
}

/* Query t of sequence b sees the keys [first_key, end); never none. `begin` is what sizes alone say of the first, without documents. */
static inline int64_t mt_attention_begin(const mt_attention_args* a, int64_t t) {
  const int64_t begin = mt_attention_first_position(a) + t + 1 - a->window;
  return a->window != 0 && begin > 0 ? begin : 0;
}
/* Reads document_start, which has to be host memory. Never falls along t. */
static inline int64_t mt_attention_first_key(const mt_attention_args* a, int64_t b, int64_t t) {
  const int64_t begin = mt_attention_begin(a, t),
                start = a->document_start != NULL ? a->document_start[t * a->batch + b] : 0;
  return start > begin ? start : begin;
}
static inline int64_t mt_attention_end(const mt_attention_args* a, int64_t t) {
  return a->causal ? mt_attention_first_position(a) + t + 1 : mt_attention_keys(a);
}

#endif /* MT_KERNELS_ABI_ATTENTION_SHAPE_H_ */
