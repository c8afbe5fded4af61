/* Which minor version of the contract a call needs. A backend ignores fields that are newer than itself (mt_backend.h), and would compute
 * something else than it was asked for: whoever calls one looks here first. Plain C. */
#ifndef MT_KERNELS_ABI_MINOR_VERSION_H_
#define MT_KERNELS_ABI_MINOR_VERSION_H_

#include "kernels/abi/mt_backend.h"

/* The name of the newest field that the arguments make use of, and since which minor version it exists; no name and 0 if all that they
 * use came with the operation itself (whose number an older backend refuses). Pointers are not followed. */
typedef struct mt_newest_field {
  const char* name;
  uint32_t minor;
} mt_newest_field;

static inline mt_newest_field mt_newest_field_of(int32_t operation, const void* args) {
  const mt_newest_field none = {NULL, 0};
#define MT_FIELD_SINCE(version, field, used)        \
  if (used) {                                       \
    const mt_newest_field found = {field, version}; \
    return found;                                   \
  }
  switch (operation) {
    case MT_OP_ROPE: {
      const mt_rope_args* a = (const mt_rope_args*)args;
      MT_FIELD_SINCE(3, "positions", a->positions != NULL)
      return none;
    }
    case MT_OP_QK_NORM_ROPE_FORWARD:
    case MT_OP_QK_NORM_ROPE_BACKWARD: {
      const mt_qk_norm_rope_args* a = (const mt_qk_norm_rope_args*)args;
      MT_FIELD_SINCE(3, "positions", a->positions != NULL)
      return none;
    }
    case MT_OP_ATTENTION_FORWARD:
    case MT_OP_ATTENTION_BACKWARD: {
      const mt_attention_args* a = (const mt_attention_args*)args;
      MT_FIELD_SINCE(3, "document_start", a->document_start != NULL)
      MT_FIELD_SINCE(2, "v_head_dim", a->v_head_dim != 0 && a->v_head_dim != a->head_dim)
      MT_FIELD_SINCE(2, "window", a->window != 0 && a->window < a->sequence)
      MT_FIELD_SINCE(2, "sinks", a->sinks != NULL)
      MT_FIELD_SINCE(2, "key_sequence", a->key_sequence != 0 && a->key_sequence != a->sequence)
      return none;
    }
    case MT_OP_SWIGLU_FORWARD:
    case MT_OP_SWIGLU_BACKWARD: {
      const mt_swiglu_args* a = (const mt_swiglu_args*)args;
      MT_FIELD_SINCE(2, "limit", a->limit != 0)
      MT_FIELD_SINCE(2, "alpha", a->alpha != 0 && a->alpha != 1)
      MT_FIELD_SINCE(2, "offset", a->offset != 0)
      return none;
    }
    case MT_OP_CROSS_ENTROPY_GRADIENT: {
      const mt_cross_entropy_args* a = (const mt_cross_entropy_args*)args;
      MT_FIELD_SINCE(3, "loss_scale_pointer", a->loss_scale_pointer != NULL)
      return none;
    }
    default:
      return none;
  }
#undef MT_FIELD_SINCE
}

#endif /* MT_KERNELS_ABI_MINOR_VERSION_H_ */
