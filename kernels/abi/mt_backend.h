/* The backend contract: plain C, versioned. A backend is a shared library `libmt_backend_<name>.so` that exports one
 * symbol, `mt_backend_entry_v1`. It is loaded with RTLD_NOW | RTLD_LOCAL and never unloaded.
 *
 * Rules
 *  - Structs start with their own size; a reader accepts larger ones and ignores what it does not know. So nobody hands a backend
 *    of an older minor version a field that is newer than it: minor_version.h tells which a call needs.
 *  - A backend whose major version differs is refused; minor versions only add operations, at the end of the enum, and fields, at
 *    the end of structs, whose zero or null is what was before them.
 *  - All memory is in the backend's device memory (host memory for CPU backends). Row-major, element strides where given.
 *  - Calls enqueue on a stream and may return before the work is done; CPU backends finish first. Calls on one stream
 *    run in order; streams are independent of each other except through events. The null stream is the backend's compute
 *    stream. Functions are thread-safe as long as two threads do not use one stream at the same time.
 *  - Nothing allocates in `run`; scratch comes from `workspace` (size from `workspace_bytes`).
 *  - Results are deterministic: the same call with the same inputs gives the same bits, whatever the number of threads.
 *  - Types. "dtype" is of the data. Sums, exponentials and statistics (rstd, lse, row losses, cross-entropy statistics, the
 *    rotation table) are float64 for F64 data and float32 for every other type: the *statistic type*. BF16 data are computed
 *    in float32 at least and rounded once, to nearest even, when stored. Weight gradients have gradient_dtype (F32 with BF16
 *    data: main gradients) and are added to in that type.
 *  - FP8 data carry a scale: the real value is element * scale, one float32 on the device per tensor (`*_scale` fields).
 *  - Errors are MT_OK or a negative code; `error_message` then tells call, place and cause for the calling thread.
 */
#ifndef MT_KERNELS_ABI_MT_BACKEND_H_
#define MT_KERNELS_ABI_MT_BACKEND_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MT_BACKEND_ABI_MAJOR 1
#define MT_BACKEND_ABI_MINOR 3
#define MT_BACKEND_ENTRY_SYMBOL "mt_backend_entry_v1"

enum mt_status_code {
  MT_OK = 0,
  MT_ERROR_INVALID = -1,     /* arguments break the operation's contract */
  MT_ERROR_UNSUPPORTED = -2, /* operation, type or shape is not provided */
  MT_ERROR_MEMORY = -3,
  MT_ERROR_DEVICE = -4, /* the device or a library failed */
};

enum mt_dtype {
  MT_F32 = 1,
  MT_F64 = 2,
  MT_BF16 = 3,
  MT_F8_E4M3 = 4,
  MT_F8_E5M2 = 5,
  MT_I32 = 6,
  MT_I64 = 7,
  MT_U8 = 8
};

/* Stable numbers: never reused, never reordered. T tokens per sequence, B sequences, N = T*B rows; row index = t*B + b
 * (sequence-major, as in Megatron, so that sequence-parallel shards are contiguous rows). */
enum mt_operation {
  MT_OP_FILL = 1,                      /* mt_fill_args */
  MT_OP_FILL_NORMAL = 2,               /* mt_fill_normal_args */
  MT_OP_COPY = 3,                      /* mt_copy_args: with cast */
  MT_OP_ADD = 4,                       /* mt_add_args */
  MT_OP_SCALE = 5,                     /* mt_scale_args */
  MT_OP_SQUARED_SUM = 6,               /* mt_squared_sum_args */
  MT_OP_MATMUL = 7,                    /* mt_matmul_args */
  MT_OP_EMBEDDING_FORWARD = 8,         /* mt_embedding_args */
  MT_OP_EMBEDDING_BACKWARD = 9,        /* mt_embedding_args */
  MT_OP_RMSNORM_FORWARD = 10,          /* mt_rmsnorm_args */
  MT_OP_RMSNORM_BACKWARD = 11,         /* mt_rmsnorm_args */
  MT_OP_ROPE = 12,                     /* mt_rope_args */
  MT_OP_ATTENTION_FORWARD = 13,        /* mt_attention_args */
  MT_OP_ATTENTION_BACKWARD = 14,       /* mt_attention_args */
  MT_OP_SWIGLU_FORWARD = 15,           /* mt_swiglu_args */
  MT_OP_SWIGLU_BACKWARD = 16,          /* mt_swiglu_args */
  MT_OP_CROSS_ENTROPY_STATISTICS = 17, /* mt_cross_entropy_args */
  MT_OP_CROSS_ENTROPY_GRADIENT = 18,   /* mt_cross_entropy_args */
  MT_OP_ADAMW = 19,                    /* mt_adamw_args */
  MT_OP_CROSS_ENTROPY_COMBINE = 20,    /* mt_cross_entropy_combine_args */
  /* since 1.1 */
  MT_OP_SUM = 21,                   /* mt_squared_sum_args */
  MT_OP_CLIP_FACTOR = 22,           /* mt_clip_factor_args */
  MT_OP_COLUMN_SUM = 23,            /* mt_column_sum_args: bias gradients */
  MT_OP_LAYERNORM_FORWARD = 24,     /* mt_layernorm_args */
  MT_OP_LAYERNORM_BACKWARD = 25,    /* mt_layernorm_args */
  MT_OP_GELU_FORWARD = 26,          /* mt_gelu_args */
  MT_OP_GELU_BACKWARD = 27,         /* mt_gelu_args */
  MT_OP_QK_NORM_ROPE_FORWARD = 28,  /* mt_qk_norm_rope_args */
  MT_OP_QK_NORM_ROPE_BACKWARD = 29, /* mt_qk_norm_rope_args */
  MT_OP_AMAX = 30,                  /* mt_amax_args */
  MT_OP_QUANTIZE = 31,              /* mt_quantize_args */
  /* since 1.2 */
  MT_OP_MOE_ROUTE_FORWARD = 32,    /* mt_moe_route_args */
  MT_OP_MOE_ROUTE_BACKWARD = 33,   /* mt_moe_route_args */
  MT_OP_MOE_SORT = 34,             /* mt_moe_sort_args */
  MT_OP_MOE_GATHER = 35,           /* mt_moe_rows_args */
  MT_OP_MOE_COMBINE = 36,          /* mt_moe_rows_args */
  MT_OP_MOE_COMBINE_BACKWARD = 37, /* mt_moe_rows_args */
  MT_OP_GROUPED_MATMUL = 38,       /* mt_grouped_matmul_args */
  MT_OP_GROUPED_COLUMN_SUM = 39,   /* mt_grouped_column_sum_args: bias gradients */
  MT_OP_MLA_EXPAND_FORWARD = 40,   /* mt_mla_expand_args */
  MT_OP_MLA_EXPAND_BACKWARD = 41,  /* mt_mla_expand_args */
  MT_OP_BALANCE_UPDATE = 42,       /* mt_balance_update_args */
  MT_OP_END                        /* one past the last */
};

/* value -> data[0..count) */
typedef struct mt_fill_args {
  uint32_t struct_size;
  int32_t dtype;
  void* data;
  int64_t count;
  double value;
} mt_fill_args;

/* data[i] = mean + std * normal(seed, stream, first_index + i): philox.h's mt_normal, computed in float64 and rounded once, so
 * that a tensor's element has the same value under any sharding. The shard is a box of `rows` rows of `columns` elements whose
 * element (r, c) has global index first_index + r * row_stride + c. */
typedef struct mt_fill_normal_args {
  uint32_t struct_size;
  int32_t dtype;
  void* data;
  int64_t rows, columns;
  uint64_t first_index;
  uint64_t row_stride;
  uint64_t seed;
  uint64_t stream;
  double mean;
  double std;
} mt_fill_normal_args;

/* destination[i] = cast(source[i]) */
typedef struct mt_copy_args {
  uint32_t struct_size;
  int32_t source_dtype, destination_dtype;
  const void* source;
  void* destination;
  int64_t count;
} mt_copy_args;
/* destination[i] = a[i] + b[i]; may alias exactly */
typedef struct mt_add_args {
  uint32_t struct_size;
  int32_t dtype;
  const void* a;
  const void* b;
  void* destination;
  int64_t count;
} mt_add_args;
/* data[i] *= factor, or *= *factor_pointer (a float64 on the device) when it is not null */
typedef struct mt_scale_args {
  uint32_t struct_size;
  int32_t dtype;
  void* data;
  int64_t count;
  double factor;
  const double* factor_pointer;
} mt_scale_args;
/* SQUARED_SUM: *result (float64, device) = (accumulate ? *result : 0) + sum of data[i]^2, added in a fixed order.
 * SUM: the same of data[i]. */
typedef struct mt_squared_sum_args {
  uint32_t struct_size;
  int32_t dtype;
  const void* data;
  int64_t count;
  double* result;
  int32_t accumulate;
  void* workspace;
  size_t workspace_bytes;
} mt_squared_sum_args;

/* The factor that clips a gradient to norm `limit` (Pascanu et al. 2013, as torch.nn.utils.clip_grad_norm_):
 * *factor = limit > 0 ? min(1, limit / (sqrt(*squared_norm) + 1e-6)) : 1, and NaN if *squared_norm or *loss (may be null) is not
 * finite, which makes ADAMW leave everything as it was. All on the device: clipping costs no round trip to the host. */
typedef struct mt_clip_factor_args {
  uint32_t struct_size;
  const double* squared_norm;
  const double* loss;
  double* factor;
  double limit;
} mt_clip_factor_args;

/* result[c] (gradient_dtype) += sum over rows of data[r * row_stride + c], rows added in a fixed order. */
typedef struct mt_column_sum_args {
  uint32_t struct_size;
  int32_t dtype, gradient_dtype;
  int64_t rows, columns, row_stride;
  const void* data /* (N, C) */;
  void* result /* (C) */;
  void* workspace;
  size_t workspace_bytes;
} mt_column_sum_args;

/* D[m,n] = alpha * op(A)[m,k] op(B)[k,n] + beta * D + bias[n]. op = transpose if the flag is set; lda.. are row strides of the stored
 * matrices. dtype is of A and B; output_dtype of D (F32 for BF16 inputs with float32 main gradients). beta is 0 or 1.
 * FP8: b_dtype is B's type where it differs from A's (0 = the same); op(A) op(B) is multiplied by *a_scale * *b_scale; a backend
 * may ask for transpose_a = 0, transpose_b = 1 (both operands contiguous along k) and k, n, lda, ldb multiples of 16. D is BF16
 * or F32. bias (may be null) has output_dtype and is added after alpha and scales. */
typedef struct mt_matmul_args {
  uint32_t struct_size;
  int32_t dtype, output_dtype;
  int32_t transpose_a, transpose_b;
  int64_t m, n, k;
  const void* a;
  int64_t lda;
  const void* b;
  int64_t ldb;
  void* d;
  int64_t ldd;
  double alpha, beta;
  void* workspace;
  size_t workspace_bytes;
  int32_t b_dtype;
  const float* a_scale;
  const float* b_scale;
  const void* bias;
} mt_matmul_args;

/* Vocabulary-parallel: this rank holds rows [vocab_start, vocab_start + vocab_rows) of the table.
 * Forward: output[i] = table[ids[i] - vocab_start], or zeros if outside. Backward: table gradient (accumulated, gradient_dtype)
 * [ids[i] - vocab_start] += output_gradient[i], the rows of one id added in increasing i, or in fixed groups of neighbours. */
typedef struct mt_embedding_args {
  uint32_t struct_size;
  int32_t dtype, gradient_dtype;
  const int32_t* ids /* (N) */;
  int64_t rows /* N */;
  int64_t columns /* C */;
  int64_t vocab_start, vocab_rows;
  const void* table /* (vocab_rows, C) */;
  void* output /* (N, C) */;
  const void* output_gradient /* (N, C) */;
  void* table_gradient /* (vocab_rows, C) */;
  void* workspace;
  size_t workspace_bytes;
} mt_embedding_args;

/* Forward: s = x + residual (residual may be null; then s = x), sum[i] = s (may be null, may alias x or residual),
 * rstd = 1/sqrt(mean(s^2) + eps) (float32, or float64 for F64), output = s * rstd * weight.
 * Backward: input `sum` = s as saved. dx = rstd * (w*dy - s * rstd^2 * mean(w*dy*s)), plus residual_gradient if not null;
 * input_gradient may alias residual_gradient or output_gradient. weight_gradient += sum over rows of dy * s * rstd.
 * amax (may be null): *amax = max(*amax, max |output|), of what was stored (forward), or of input_gradient (backward). */
typedef struct mt_rmsnorm_args {
  uint32_t struct_size;
  int32_t dtype, gradient_dtype;
  int64_t rows, columns;
  double eps;
  const void* x;
  const void* residual;
  void* sum;
  const void* weight /* (C) */;
  void* output;
  void* rstd /* (N) */;
  const void* output_gradient;
  const void* residual_gradient;
  void* input_gradient;
  void* weight_gradient /* (C) */;
  void* workspace;
  size_t workspace_bytes;
  float* amax;
} mt_rmsnorm_args;

/* Ba, Kiros & Hinton 2016. As rmsnorm with s = x + residual, but output = (s - mean) * rstd * weight + bias,
 * rstd = 1/sqrt(mean((s - mean)^2) + eps). Backward, with h = (s - mean) rstd and g = w dy:
 * dx = rstd * (g - mean(g) - h * mean(g h)) plus residual_gradient if not null; weight_gradient += sum over rows of dy h;
 * bias_gradient += sum over rows of dy. mean and rstd (N) have the statistic type. */
typedef struct mt_layernorm_args {
  uint32_t struct_size;
  int32_t dtype, gradient_dtype;
  int64_t rows, columns;
  double eps;
  const void* x;
  const void* residual;
  void* sum;
  const void* weight /* (C) */;
  const void* bias /* (C) */;
  void* output;
  void* mean /* (N) */;
  void* rstd /* (N) */;
  const void* output_gradient;
  const void* residual_gradient;
  void* input_gradient;
  void* weight_gradient /* (C) */;
  void* bias_gradient /* (C) */;
  void* workspace;
  size_t workspace_bytes;
  float* amax;
} mt_layernorm_args;

/* In place, rotation of the first r = rotary_dim (0 = d) elements of every head (Su et al. 2021): for pair j < r/2 at position p,
 * angle = p * theta^(-2j/r); (a, b) -> (a cos - b sin, b cos + a sin), where (a, b) = (x[j], x[j + r/2]) (half-split, as in
 * transformers' Llama), or (x[2j], x[2j + 1]) if `interleaved`. inverse = 1 rotates back (backward).
 * Element (t, b, h, j) is at data + ((t * batch + b) * row_stride + h * d + j). Position of row t is first_position + t.
 * cos_sin: table (positions, r) of the statistic type, [p, j] = cos, [p, r/2 + j] = sin, made by the caller in float64.
 * Since 1.3: positions (T, B), if not null, is each row's position in the table, in place of first_position + t. */
typedef struct mt_rope_args {
  uint32_t struct_size;
  int32_t dtype;
  void* data;
  int64_t sequence /* T */, batch /* B */, heads, head_dim, row_stride;
  int64_t first_position;
  const void* cos_sin;
  int32_t inverse;
  int32_t rotary_dim;
  int32_t interleaved;
  const int32_t* positions /* (T, B) */;
} mt_rope_args;

/* Per-head RMS norm and rotation in one pass (Qwen3): y = rope(x * rstd * weight), with rope as above, rstd (N, heads) =
 * 1/sqrt(mean over d of x^2 + eps), weight (d) shared by all heads. x and y are not the same memory: backward reads x.
 * Backward: dy (strides of y) -> dx (strides of x; may be dy), weight_gradient (d) += sum over rows and heads. */
typedef struct mt_qk_norm_rope_args {
  uint32_t struct_size;
  int32_t dtype, gradient_dtype;
  int64_t sequence, batch, heads, head_dim;
  int64_t x_stride, y_stride;
  int64_t first_position;
  int32_t rotary_dim, interleaved;
  double eps;
  const void* cos_sin;
  const void* weight /* (d) */;
  const void* x;
  void* y;
  void* rstd /* (N, heads) */;
  const void* output_gradient;
  void* input_gradient;
  void* weight_gradient /* (d) */;
  void* workspace;
  size_t workspace_bytes;
  const int32_t* positions /* (T, B), as mt_rope_args; since 1.3 */;
} mt_qk_norm_rope_args;

/* Causal grouped-query attention. Query head h reads key/value head h / (heads / kv_heads). q, k, v may be views of one packed
 * (T, B, (H + 2K) d) tensor: element (t, b, h, j) of q is at q + ((t * batch + b) * q_stride + h * d + j); k, v, o likewise.
 * scale is applied to q k^T. lse (statistic type) is (B, H, T): log of the sum of exponentials of scaled scores.
 * Backward overwrites dq, dk, dv (strides as q, k, v's: dq_stride, ...).
 * Since 1.2, zero or null where not used:
 *  v_head_dim: heads of v and o have this many elements (0 = head_dim): MLA.
 *  window: query t sees keys (t - window, t] (0 = all before it). Needs causal.
 *  sinks (heads), data type: one more logit per head, not scaled, which takes part in the softmax (and in lse) and has no
 *    value: o = sum_s exp(score_s) v_s / (sum_s exp(score_s) + exp(sink)). Backward: sinks_gradient[h] (sinks_gradient_dtype) -= sum
 *    over b, t of exp(sink - lse) * sum_j dO O, added in a fixed order.
 *  key_sequence: forward only; keys and values have this many rows per sequence (0 = sequence), and query t stands at position
 *    key_sequence - sequence + t: new tokens against a cache.
 * Since 1.3, null where not used:
 *  document_start (T, B) int32: query t of sequence b sees no key before document_start[t * batch + b]. The caller promises
 *    0 <= document_start[t] <= t, and that it never falls along t: documents that follow each other in a sample. Needs causal, and
 *    as many keys as queries. With a window, the later of the two begins. */
typedef struct mt_attention_args {
  uint32_t struct_size;
  int32_t dtype;
  int64_t sequence, batch, heads, kv_heads, head_dim;
  double scale;
  int32_t causal;
  const void* q;
  int64_t q_stride;
  const void* k;
  int64_t k_stride;
  const void* v;
  int64_t v_stride;
  void* o;
  int64_t o_stride;
  void* lse;
  const void* o_gradient;
  int64_t o_gradient_stride;
  void* dq;
  int64_t dq_stride;
  void* dk;
  int64_t dk_stride;
  void* dv;
  int64_t dv_stride;
  void* workspace;
  size_t workspace_bytes;
  int64_t v_head_dim;
  int64_t window;
  const void* sinks /* (heads) */;
  void* sinks_gradient /* (heads) */;
  int32_t sinks_gradient_dtype;
  int64_t key_sequence;
  const int32_t* document_start /* (T, B) */;
} mt_attention_args;

/* gate_up is (N, 2D): gate in the first D columns, up in the others. Forward: output = silu(gate) * up.
 * Backward: gate_up_gradient (N, 2D), may alias gate_up; if output is not null there, it is recomputed into it.
 * amax (may be null): *amax = max(*amax, max |output|) forward; backward max |gate_up_gradient|, of what was stored.
 * Since 1.2: output = g sigmoid(alpha g) (u + offset), with g = min(gate, limit), u = max(-limit, min(up, limit)); limit 0 = no
 * limit, alpha 0 = 1. A gate or an up that the limit cut has no gradient. */
typedef struct mt_swiglu_args {
  uint32_t struct_size;
  int32_t dtype;
  int64_t rows, columns /* D */;
  const void* gate_up;
  void* output /* (N, D) */;
  const void* output_gradient;
  void* gate_up_gradient;
  float* amax;
  double limit, alpha, offset;
} mt_swiglu_args;

/* y = gelu(x + bias), bias (C) may be null. tanh_approximation = 1: 0.5 z (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3))), as GPT-2;
 * 0: 0.5 z (1 + erf(z / sqrt 2)) (Hendrycks & Gimpel 2016). Backward: input_gradient = output_gradient * gelu'(x + bias), may
 * alias x or output_gradient; the gradient of the bias is its COLUMN_SUM. */
typedef struct mt_gelu_args {
  uint32_t struct_size;
  int32_t dtype;
  int64_t rows, columns;
  const void* x;
  const void* bias;
  void* output;
  const void* output_gradient;
  void* input_gradient;
  int32_t tanh_approximation;
  float* amax;
} mt_gelu_args;

/* *amax (float32, device) = max(*amax, max |data[i]|); NaN if any is NaN. The caller clears it. */
typedef struct mt_amax_args {
  uint32_t struct_size;
  int32_t dtype;
  const void* data;
  int64_t count;
  float* amax;
} mt_amax_args;

/* Per-tensor current scaling to FP8 (Micikevicius et al. 2022, arXiv 2209.05433): with L the largest finite value of output_dtype
 * (448 for E4M3, 57344 for E5M2), scale = *amax / L (1 if *amax is 0), computed in float32; output[r, c] =
 * saturate(round to nearest even(source[r, c] / scale)), the division done as a product with L / *amax in float32 (at most
 * the largest float32, so that zeros stay zeros however small *amax is);
 * *output_scale = scale. transposed[c, r] = output[r, c]; either of the two may be null. *amax is at least max |source|; a NaN or
 * infinite *amax makes the scale NaN, so that the trouble is seen in the loss and not hidden. */
typedef struct mt_quantize_args {
  uint32_t struct_size;
  int32_t dtype, output_dtype;
  int64_t rows, columns;
  const void* source /* (rows, columns) */;
  const float* amax;
  void* output /* (rows, columns) */;
  void* transposed /* (columns, rows) */;
  float* output_scale;
} mt_quantize_args;

/* One chunk of rows of vocabulary-parallel logits. targets are global ids; this rank's columns are
 * [vocab_start, vocab_start + columns); columns at or past `valid_columns` are padding and count as -infinity.
 * STATISTICS: maximum[i] = max_j logits, sum[i] = sum_j exp(logits - maximum[i]), target_logit[i] = logits[target] or 0 if absent.
 * COMBINE (20): from all ranks' (world, rows) statistics, in rank order, gives the global lse[i] and
 *   row_loss[i] = target < 0 ? 0 : lse - target_logit + z_loss * lse^2.
 * GRADIENT: logits -> loss_scale * (softmax * (1 + 2 z_loss lse) - onehot) in place, zeros for rows with target < 0 and padding.
 * Since 1.3: loss_scale is multiplied by *loss_scale_pointer (float64, on the device) when that is not null.
 * Statistics have the statistic type; COMBINE's dtype is that of the logits. */
typedef struct mt_cross_entropy_args {
  uint32_t struct_size;
  int32_t dtype;
  int64_t rows, columns, valid_columns, row_stride;
  int64_t vocab_start;
  void* logits;
  const int32_t* targets;
  void* maximum;
  void* sum;
  void* target_logit;
  const void* lse;
  double loss_scale, z_loss;
  const double* loss_scale_pointer;
} mt_cross_entropy_args;
typedef struct mt_cross_entropy_combine_args {
  uint32_t struct_size;
  int32_t dtype;
  int64_t rows, world;
  const void* maximum;
  const void* sum;
  const void* target_logit;
  const int32_t* targets;
  void* lse;
  void* row_loss;
  double z_loss;
} mt_cross_entropy_combine_args;

/* Over a flat shard: AdamW (Loshchilov & Hutter 2019, as torch.optim.AdamW): p -= lr * weight_decay * p;
 * m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; p -= lr * (m / (1-b1^step)) / (sqrt(v / (1-b2^step)) + eps), g = gradient * gradient_scale
 * (* *gradient_scale_pointer when not null; if that is not finite, nothing is changed). master, exp_avg, exp_avg_sq: state_dtype;
 * parameter (working copy = master rounded once, may equal master): dtype. */
typedef struct mt_adamw_args {
  uint32_t struct_size;
  int32_t dtype, state_dtype, gradient_dtype;
  int64_t count;
  void* parameter;
  void* master;
  const void* gradient;
  void* exp_avg;
  void* exp_avg_sq;
  double lr, beta1, beta2, eps, weight_decay;
  int64_t step;
  double gradient_scale;
  const double* gradient_scale_pointer;
} mt_adamw_args;

/* ---- Mixture of experts. N rows, E experts, k = top_k choices per row. Router arithmetic has the statistic type S.
 *
 * ROUTE FORWARD. From logits (N, E) of type S:
 *   score: softmax over E (MT_MOE_SOFTMAX), the logits themselves (MT_MOE_SOFTMAX_TOP_K) or sigmoid (MT_MOE_SIGMOID). NaN counts
 *   as less than every number: ids are always in [0, E) and distinct within a row.
 *   choice = score + selection_bias (may be null). With groups > 1: each group of E / groups experts is worth its largest choice
 *   (group_top_2 = 0) or the sum of its two largest (1); only the top_groups best groups are chosen from.
 *   ids (N, k) int32: the k largest choices, largest first, the lower id among equals (groups alike).
 *   weight[n, j] = score of ids[n, j] (without selection_bias); with MT_MOE_SOFTMAX_TOP_K the softmax of the k chosen logits;
 *   then, if `normalize`, divided by the k's sum + 1e-20; then times `scale`. weights (N, k) of type S.
 *   expert_load (E) float64 += number of rows that chose the expert. score_sum (E) float64, may be null: += sum over rows of the
 *   score normalised to sum 1 over E (softmax over all E, or with MT_MOE_SIGMOID sigmoid / its sum over E). Both for metrics and
 *   balance losses, in a fixed order; row n belongs to sequence n % batch, and sequence s adds at s * statistics_stride (elements;
 *   0 = all sequences together). z_sum (float64, may be null) += sum over rows of logsumexp(logits)^2.
 * ROUTE BACKWARD. weight_gradient (N, k) of type S -> logits_gradient (N, E) of type S, overwritten: through scale, normalize and
 *   score (ids are constants), plus, for every expert e, the constant balance_gradient[s * balance_stride + e] (float64, may be
 *   null) that the loss has with respect to the normalised score (as in score_sum) of each row of sequence s, plus
 *   z_scale * 2 lse * softmax(logits). */
enum mt_moe_score { MT_MOE_SOFTMAX = 1, MT_MOE_SOFTMAX_TOP_K = 2, MT_MOE_SIGMOID = 3 };
typedef struct mt_moe_route_args {
  uint32_t struct_size;
  int32_t dtype; /* S: F32 or F64 */
  int64_t rows, batch, experts, top_k;
  int32_t score, normalize;
  double scale;
  int64_t groups, top_groups; /* groups 0 or 1 = none */
  int32_t group_top_2;
  const void* logits /* (N, E) */;
  const void* selection_bias /* (E) of type S */;
  int32_t* ids /* (N, k) */;
  void* weights /* (N, k) */;
  double* expert_load /* (E) or (B, E) */;
  double* score_sum /* (E) or (B, E) */;
  int64_t statistics_stride;
  double* z_sum;
  const void* weight_gradient /* (N, k) */;
  void* logits_gradient /* (N, E) */;
  const double* balance_gradient;
  int64_t balance_stride;
  double z_scale;
  void* workspace;
  size_t workspace_bytes;
} mt_moe_route_args;

/* Sorts the N k choices by expert, stably (by n, then j). position (N, k) int32: where choice (n, j) lies among the sorted rows,
 * or -1 if dropped; source (N k) int32: the choice n * k + j that lies at a sorted row; rows from offsets[E] on have -1.
 * offsets (E + 1) int32: expert e has sorted rows [offsets[e], offsets[e + 1]).
 * capacity > 0: an expert keeps at most that many: those first in order (drop_lightest = 0), or those with the largest weights,
 * the earlier among equals, still in stable order (1). dropped (float64, may be null) += number of choices that were dropped. */
typedef struct mt_moe_sort_args {
  uint32_t struct_size;
  int32_t dtype; /* of weights: F32 or F64 */
  int64_t rows, experts, top_k;
  const int32_t* ids /* (N, k) */;
  const void* weights /* (N, k), read only to drop the lightest */;
  int64_t capacity;
  int32_t drop_lightest;
  int32_t* position /* (N, k) */;
  int32_t* source /* (N k) */;
  int32_t* offsets /* (E + 1) */;
  double* dropped;
  void* workspace;
  size_t workspace_bytes;
} mt_moe_sort_args;

/* Rows between tokens (N, C) and experts (R, C), R = N k sorted rows, of which offsets[E] are used.
 * GATHER: sorted[i] = tokens[source[i] / k]; rows with source -1 become zeros.
 * COMBINE: tokens[n] = (accumulate ? tokens[n] : 0) + sum over j, in order, of weight[n, j] sorted[position[n, j]], positions -1
 *   left out; weights null = 1 (then it is GATHER's backward). Summed in the statistic type, rounded once.
 * COMBINE_BACKWARD: from tokens_gradient = `tokens` (N, C) and `sorted` (R, C) as COMBINE read it:
 *   sorted_gradient[position[n, j]] = weight[n, j] tokens[n] (zeros in rows with source -1),
 *   weight_gradient[n, j] = <tokens[n], sorted[position[n, j]]>, 0 where dropped. sorted_gradient may alias sorted. */
typedef struct mt_moe_rows_args {
  uint32_t struct_size;
  int32_t dtype; /* of tokens and sorted */
  int64_t rows /* N */, columns /* C */, top_k;
  const int32_t* position /* (N, k) */;
  const int32_t* source /* (N k) */;
  const void* weights /* (N, k) of the statistic type */;
  void* tokens;
  void* sorted;
  void* sorted_gradient;
  void* weight_gradient /* (N, k) of the statistic type */;
  int32_t accumulate;
} mt_moe_rows_args;

/* One product per group (expert) e over its rows [offsets[e], offsets[e + 1]) of `rows` sorted rows (offsets on the device, so
 * that nothing waits for the host). Group e's matrix W_e (out, in) is at weight + e * weight_group_stride elements, row-major,
 * row stride `in`.
 *   FORWARD          y (rows, out) = x (rows, in) W_e^T + bias_e   (bias: (E, out), group stride bias_group_stride; may be null)
 *   INPUT_GRADIENT   x (rows, in)  = y (rows, out) W_e
 *   WEIGHT_GRADIENT  W_e (gradient_dtype) = beta W_e + y^T x over the group's rows; a group without rows becomes beta W_e
 * Rows at or past offsets[E] of what is written are zeros. dtype is of x, y, weight and bias (weight has gradient_dtype in
 * WEIGHT_GRADIENT). A backend may ask for `in` and `out` multiples of 8 with BF16. */
enum mt_grouped_mode {
  MT_GROUPED_FORWARD = 1,
  MT_GROUPED_INPUT_GRADIENT = 2,
  MT_GROUPED_WEIGHT_GRADIENT = 3
};
typedef struct mt_grouped_matmul_args {
  uint32_t struct_size;
  int32_t dtype, gradient_dtype, mode;
  int64_t groups /* E */, rows, in, out;
  const int32_t* offsets /* (E + 1) */;
  void* x;
  void* y;
  void* weight;
  int64_t weight_group_stride;
  const void* bias;
  int64_t bias_group_stride;
  double beta; /* WEIGHT_GRADIENT: 0 or 1 */
  void* workspace;
  size_t workspace_bytes;
} mt_grouped_matmul_args;

/* result[e * result_group_stride + c] (gradient_dtype) += sum over the group's rows of data[r * columns + c], in a fixed order. */
typedef struct mt_grouped_column_sum_args {
  uint32_t struct_size;
  int32_t dtype, gradient_dtype;
  int64_t groups, rows, columns;
  const int32_t* offsets;
  const void* data /* (rows, C) */;
  void* result;
  int64_t result_group_stride;
  void* workspace;
  size_t workspace_bytes;
} mt_grouped_column_sum_args;

/* Keys and values of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434). kv (N, H (nope + v)): per head nope numbers of
 * the key, then v of the value. key_rope (N, rope): rotated, shared by all heads. FORWARD: key (N, H (nope + rope)), per head its
 * nope numbers, then key_rope; value (N, H v). BACKWARD: from the gradients of key and value (in `key` and `value`) kv and
 * key_rope are overwritten with theirs, key_rope with the sum over heads, in order. */
typedef struct mt_mla_expand_args {
  uint32_t struct_size;
  int32_t dtype;
  int64_t rows, heads, nope_dim, rope_dim, v_dim;
  void* kv;
  void* key_rope;
  void* key;
  void* value;
} mt_mla_expand_args;

/* Balance without a loss (Wang et al. 2024, arXiv 2408.15664): bias[i] (state_dtype) += rate * sign(target - load[i]), load of
 * type gradient_dtype; parameter[i] (dtype) = bias[i] rounded (may be the same memory). If *gradient_scale_pointer (may be null)
 * is not finite, nothing is changed, as in ADAMW. */
typedef struct mt_balance_update_args {
  uint32_t struct_size;
  int32_t dtype, state_dtype, gradient_dtype;
  int64_t count;
  void* parameter;
  void* bias;
  const void* load;
  double rate, target;
  const double* gradient_scale_pointer;
} mt_balance_update_args;

typedef struct mt_stream_s* mt_stream; /* null = the backend's compute stream */
typedef struct mt_event_s* mt_event;
typedef struct mt_graph_s* mt_graph;
typedef struct mt_communicator_s* mt_communicator;

typedef struct mt_device_info {
  uint32_t struct_size;
  char name[128];
  int32_t device_count;
  int64_t memory_bytes;
  int32_t cores;
  uint32_t capabilities;
  double peak_flops; /* measured or nominal for the default type; 0 = unknown */
  char detail[256];  /* instruction set, compute capability, driver */
  /* since 1.1; nominal, 0 = unknown */
  double bf16_flops, fp8_flops;
  double memory_bytes_per_second;
} mt_device_info;
enum mt_capability {
  MT_CAPABILITY_FAST_BF16 = 1,
  MT_CAPABILITY_FP8 = 2,
  MT_CAPABILITY_GRAPHS = 4,
  MT_CAPABILITY_HOST_MEMORY = 8
};

/* Collectives between the devices of several processes (NCCL and its kin). A communicator belongs to the device that `open` bound.
 * Calls enqueue on a stream and return; an error of a peer shows in `state` where the library notices it: a connection to another
 * machine breaks, but a member of this one that waits is told nothing. Buffers are device memory. Reductions are deterministic
 * for a given group and topology; their order is the library's. Sum of BF16 is rounded at every hop. */
enum mt_reduce_op { MT_REDUCE_SUM = 0, MT_REDUCE_MAX = 1 };
#define MT_UNIQUE_ID_BYTES 128
#define MT_IN_PROGRESS 1
typedef struct mt_collectives {
  uint32_t struct_size;
  const char* name;    /* "nccl" */
  const char* version; /* of the library that was found */
  /* Made by one member and carried to the others. */
  int32_t (*unique_id)(char id[MT_UNIQUE_ID_BYTES]);
  /* Begins to join and returns; poll `state` until it is MT_OK. */
  int32_t (*create)(const char id[MT_UNIQUE_ID_BYTES], int32_t rank, int32_t size,
                    mt_communicator* communicator);
  /* MT_OK, MT_IN_PROGRESS, or a negative code once anything has failed. Thread-safe. */
  int32_t (*state)(mt_communicator communicator);
  int32_t (*all_reduce)(mt_communicator communicator, const void* input, void* output,
                        int64_t count, int32_t dtype, int32_t reduce_op, mt_stream stream);
  /* output: `count` elements, the sum of everyone's part `rank` of input (size * count) */
  int32_t (*reduce_scatter)(mt_communicator communicator, const void* input, void* output,
                            int64_t count, int32_t dtype, mt_stream stream);
  int32_t (*all_gather)(mt_communicator communicator, const void* input, void* output,
                        int64_t count, int32_t dtype, mt_stream stream);
  int32_t (*broadcast)(mt_communicator communicator, void* data, int64_t count, int32_t dtype,
                       int32_t root, mt_stream stream);
  int32_t (*send)(mt_communicator communicator, const void* data, int64_t bytes, int32_t peer,
                  mt_stream stream);
  int32_t (*receive)(mt_communicator communicator, void* data, int64_t bytes, int32_t peer,
                     mt_stream stream);
  /* Calls between the two are one: needed where two members send to each other. */
  int32_t (*group_begin)(void);
  int32_t (*group_end)(void);
  /* Ends what this member has in flight: whatever here waits for a peer is let go within a second. The call itself returns later:
   * it may wait for the members on this machine until they have aborted too or their processes have ended, for ten seconds at
   * most, after which what the communicator holds is given up. Nobody else is told: the caller sees to it that the other members
   * abort or end. Thread-safe, and called for several communicators at once, each on a thread of its own. The communicator can
   * only be destroyed, once this has returned. */
  int32_t (*abort)(mt_communicator communicator);
  /* May wait for the members on this machine until they destroy theirs or end, for ten seconds at most: members that share
   * several communicators destroy them in one order. After an abort it waits for nobody. */
  int32_t (*destroy)(mt_communicator communicator);
} mt_collectives;

typedef struct mt_backend {
  uint32_t struct_size;
  uint32_t abi_major, abi_minor;
  const char* name; /* "cpu" */
  const char* version;
  /* Score > 0 if usable here (higher wins among equals), 0 with a reason in info->detail if not. Fast, without side effects;
   * after `open` it may measure peak_flops, once (tens of milliseconds). */
  int32_t (*probe)(mt_device_info* info);
  /* Binds the calling process to a device; `threads` for CPU backends (0 = all cores). Once per process and device. */
  int32_t (*open)(int32_t device, int32_t threads);
  const char* (*error_message)(void);
  /* 1 if `run` would accept these types and shapes. `args` is the operation's struct. Pointers are not followed and may be null;
   * but where null means that a field is not used, another value means that it will be. */
  int32_t (*supports)(int32_t operation, const void* args);
  const char* (*kernel_name)(int32_t operation,
                             const void* args); /* e.g. "onednn:brg:avx512_core"; static storage */
  int64_t (*workspace_bytes)(int32_t operation, const void* args); /* negative = error */
  int32_t (*run)(int32_t operation, const void* args, mt_stream stream);
  /* Memory and streams. Host backends may implement the copies as memcpy. */
  int32_t (*allocate)(size_t bytes, void** pointer); /* 64-byte aligned at least */
  int32_t (*free)(void* pointer);
  int32_t (*copy_to_device)(void* destination, const void* source, size_t bytes, mt_stream stream);
  int32_t (*copy_to_host)(void* destination, const void* source, size_t bytes, mt_stream stream);
  int32_t (*stream_create)(mt_stream* stream);
  int32_t (*stream_synchronize)(mt_stream stream);
  int32_t (*stream_destroy)(mt_stream stream);

  /* ---- since 1.1. A backend in host memory finishes every call at once: its events are numbers and its graphs unsupported. */
  /* Before `open`. Keys: "attention" = auto | cudnn | flash; "gemm_cache" = path of a file that remembers which algorithm was
   * best, empty = none; "tf32" = 0 | 1 (default 0: F32 means float32). MT_ERROR_INVALID names what is allowed; a key that a
   * backend does not know is MT_ERROR_UNSUPPORTED. */
  int32_t (*configure)(const char* key, const char* value);
  /* Host memory that the device copies to and from without a stop between; ordinary memory on host backends. */
  int32_t (*allocate_host)(size_t bytes, void** pointer);
  int32_t (*free_host)(void* pointer);
  /* Bytes of device memory that are free, and of all. */
  int32_t (*memory_info)(int64_t* free_bytes, int64_t* total_bytes);
  int32_t (*event_create)(mt_event* event);
  int32_t (*event_record)(mt_event event, mt_stream stream);
  int32_t (*event_wait)(
      mt_event event,
      mt_stream stream); /* what is enqueued later on `stream` waits for the event */
  int32_t (*event_query)(mt_event event); /* MT_OK, MT_IN_PROGRESS or an error */
  int32_t (*event_synchronize)(mt_event event);
  int32_t (*event_milliseconds)(mt_event first, mt_event last, float* milliseconds);
  int32_t (*event_destroy)(mt_event event);
  /* What is run on `stream` between begin and end is recorded, not run. Every operation that was run once before can be
   * recorded; nothing else may be called but operations and copies. MT_CAPABILITY_GRAPHS tells whether there are graphs. */
  int32_t (*graph_begin)(mt_stream stream);
  int32_t (*graph_end)(mt_stream stream, mt_graph* graph);
  int32_t (*graph_launch)(mt_graph graph, mt_stream stream);
  int32_t (*graph_destroy)(mt_graph graph);
  /* Null if there are none here; after `open`. `error_message` says which library is missing or too old. */
  const mt_collectives* (*collectives)(void);
} mt_backend;

/* The exported symbol: returns static storage; null only if the library cannot work at all. */
typedef const mt_backend* (*mt_backend_entry)(void);

#ifdef __cplusplus
}
#endif
#endif /* MT_KERNELS_ABI_MT_BACKEND_H_ */
