// What a block knows of the world: its shapes, its tensor group, and how to run an operation.
// Blocks are written once, for any mesh: whatever differs between layouts (which rows are here,
// what has to be summed or gathered) is in this class.
//
// The residual stream has `stream_rows` rows on this rank. Without sequence parallelism that is all
// N rows, the same on every tensor rank; with it, member r holds rows [r N/T, (r+1) N/T). A
// column-parallel product needs all rows (GatherRows) and its input gradient is a partial sum; a
// row-parallel product's output is a partial sum (SumToStream). Gather and sum are each other's
// transpose, which is all that the backward pass needs to know.
//
// While `planning`, operations are declared to the table instead of run, communication and copies
// are skipped, and pointers are not followed: the same code that runs a step tells beforehand which
// shapes it will use.
#pragma once

#include <cstring>

#include "common/spec/activation_plan.h"
#include "common/status.h"
#include "worker/backend/operations.h"
#include "worker/comm/communicator.h"
#include "worker/model/number_types.h"

namespace mt {

class ModelContext {
 public:
  ModelContext(const RankShape& shape, const NumberTypes& types, const v1::ModelSpec& model,
               Operations* operations, Communicator* tensor)
      : shape(shape),
        types(types),
        dtype(types.data),
        model(model),
        operations_(operations),
        tensor_(tensor) {}

  RankShape
      shape;  // a generator shortens `sequence` and rows to what it needs; never beyond the plan's
  const NumberTypes types;
  const mt_dtype dtype;       // types.data
  const v1::ModelSpec model;  // its traits (common/spec/model_traits.h); sizes are those of `shape`
  bool planning = false;
  // Where text is generated: row 0 of this pass stands there (one sequence); keys and values of the rows before it are in the
  // blocks' activations, and those of this pass are written behind them.
  int64_t first_position = 0;
  // Of this micro-batch, (T, B), on the device; null where the job has none. `positions` are in place of the rows of the sequence;
  // no row sees a key before its `document_start`.
  const int32_t* positions = nullptr;
  const int32_t* document_start = nullptr;
  // One operand of an FP8 product at a time; null unless precision is fp8 (linear.h).
  struct Fp8Scratch {
    void* rows = nullptr;     // (N, widest)
    void* columns = nullptr;  // (widest, N)
  } fp8_scratch;
  // In the first micro-batch of a step the first product that makes a matrix's gradient overwrites what the step before left,
  // which saves clearing it. Embedding rows and norm weights are always added to.
  bool first_micro_batch = false;

  int64_t element_bytes() const { return shape.element_bytes; }
  bool sequence_parallel() const { return shape.stream_rows != shape.rows; }
  int tensor_size() const { return tensor_ == nullptr ? 1 : tensor_->size(); }
  int tensor_rank() const { return tensor_ == nullptr ? 0 : tensor_->rank(); }
  const Operations& operations() const { return *operations_; }

  bool fp8() const { return fp8_scratch.rows != nullptr; }

  // `elements` past `base`.
  void* At(void* base, int64_t elements) const {
    return static_cast<char*>(base) + elements * element_bytes();
  }
  void* StatisticAt(void* base, int64_t elements) const {
    return static_cast<char*>(base) + elements * shape.statistic_bytes;
  }

  // The rows of this pass within keys or values (positions, width).
  void* NewRows(void* base, int64_t width) const {
    return At(base, first_position * shape.batch * width);
  }
  // mt_attention_args::key_sequence
  int64_t key_sequence() const { return first_position == 0 ? 0 : first_position + shape.sequence; }

  template <mt_operation Op>
  absl::Status Run(const Arguments<Op>& arguments) {
    return planning ? operations_->Need<Op>(arguments) : operations_->Run<Op>(arguments);
  }

  // y (rows, out) = x (rows, in) W^T + bias (may be null), W (out, in).
  absl::Status Product(const void* x, const void* weight, void* y, int64_t rows, int64_t in,
                       int64_t out, const void* bias = nullptr) {
    return Run<MT_OP_MATMUL>({.dtype = dtype,
                              .output_dtype = dtype,
                              .transpose_b = 1,
                              .m = rows,
                              .n = out,
                              .k = in,
                              .a = x,
                              .lda = in,
                              .b = weight,
                              .ldb = in,
                              .d = y,
                              .ldd = out,
                              .alpha = 1,
                              .bias = bias});
  }
  // dx (rows, in) = dy (rows, out) W, or += if `add`
  absl::Status ProductInputGradient(const void* dy, const void* weight, void* dx, int64_t rows,
                                    int64_t in, int64_t out, bool add = false) {
    return Run<MT_OP_MATMUL>({.dtype = dtype,
                              .output_dtype = dtype,
                              .m = rows,
                              .n = in,
                              .k = out,
                              .a = dy,
                              .lda = out,
                              .b = weight,
                              .ldb = in,
                              .d = dx,
                              .ldd = in,
                              .alpha = 1,
                              .beta = add ? 1.0 : 0.0});
  }
  // dW (out, in) += dy^T x, or = if `overwrite`
  absl::Status ProductWeightGradient(const void* dy, const void* x, void* dw, int64_t rows,
                                     int64_t in, int64_t out, bool overwrite) {
    return Run<MT_OP_MATMUL>({.dtype = dtype,
                              .output_dtype = types.gradient,
                              .transpose_a = 1,
                              .m = out,
                              .n = in,
                              .k = rows,
                              .a = dy,
                              .lda = out,
                              .b = x,
                              .ldb = in,
                              .d = dw,
                              .ldd = in,
                              .alpha = 1,
                              .beta = overwrite ? 0.0 : 1.0});
  }

  // All N rows of a tensor of stream rows (stream_rows, width): itself, or under sequence parallelism gathered into `full`
  // (N, width).
  absl::StatusOr<const void*> GatherRows(const void* stream, void* full, int64_t width) {
    if (!sequence_parallel()) return stream;
    if (!planning) {
      MT_RETURN_IF_ERROR(tensor_->AllGather(stream, full, shape.stream_rows * width, dtype));
    }
    return full;
  }
  absl::StatusOr<const void*> GatherRows(const void* stream, void* full) {
    return GatherRows(stream, full, shape.hidden);
  }
  // What GatherRows(stream, full) has returned: for who reads it again.
  const void* GatheredRows(const void* stream, const void* full) const {
    return sequence_parallel() ? full : stream;
  }

  // Sum over the tensor group of partial (N, width), in place; returns this rank's rows of the sum
  // (stream_rows, width) within it.
  absl::StatusOr<void*> SumToStream(void* partial, int64_t width) {
    if (tensor_size() == 1) return partial;
    const int64_t count = shape.stream_rows * width;
    if (!sequence_parallel()) {
      if (!planning) MT_RETURN_IF_ERROR(tensor_->AllReduce(partial, count, dtype, ReduceOp::kSum));
      return partial;
    }
    void* rows = At(partial, tensor_rank() * count);
    if (!planning) MT_RETURN_IF_ERROR(tensor_->ReduceScatter(partial, rows, count, dtype));
    return rows;
  }
  absl::StatusOr<void*> SumToStream(void* partial) { return SumToStream(partial, shape.hidden); }

  // *amax = max(*amax, largest absolute value of `data`) where amax is not null.
  absl::Status Measure(const void* data, int64_t count, float* amax) {
    if (amax == nullptr) return absl::OkStatus();
    return Run<MT_OP_AMAX>({.dtype = dtype, .data = data, .count = count, .amax = amax});
  }

  // Largest values over the tensor group, of tensors of which this rank has a part: because they are
  // `split` over the group, or because their rows are.
  absl::Status ShareAmax(float* amax, bool split, int64_t count = 1) {
    if (tensor_size() == 1 || planning || !(split || sequence_parallel())) return absl::OkStatus();
    return tensor_->AllReduce(amax, count, MT_F32, ReduceOp::kMax);
  }

  // output (tensor_size() * count): every member's `count` elements, this one's already in place.
  absl::Status GatherStatistics(void* output, int64_t count) {
    if (tensor_size() == 1 || planning) return absl::OkStatus();
    return tensor_->AllGather(StatisticAt(output, tensor_rank() * count), output, count,
                              types.statistic);
  }

  // Sum over the tensor group, in place, the same on every member.
  absl::Status SumStatistics(void* data, int64_t count) {
    if (tensor_size() == 1 || planning) return absl::OkStatus();
    return tensor_->AllReduce(data, count, types.statistic, ReduceOp::kSum);
  }

  absl::Status Copy(const void* source, void* destination, int64_t count) {
    return Run<MT_OP_COPY>({.source_dtype = dtype,
                            .destination_dtype = dtype,
                            .source = source,
                            .destination = destination,
                            .count = count});
  }

 private:
  Operations* const operations_;
  Communicator* const tensor_;  // null = a group of one
};

}  // namespace mt
