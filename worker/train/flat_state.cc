#include "worker/train/flat_state.h"

#include <algorithm>

namespace mt {
namespace {

FlatRange Intersect(FlatRange a, int64_t begin, int64_t end) {
  const int64_t first = std::max(a.first, begin), last = std::min(a.first + a.count, end);
  return {.first = first, .count = std::max<int64_t>(0, last - first)};
}

}  // namespace

std::vector<TensorBox> BoxesOf(const ParameterLayout& layout, FlatRange range, const char* prefix,
                               mt_dtype dtype, void* base, int64_t base_first, bool only_saved) {
  const int64_t element_bytes = dtype == MT_F64 ? 8 : 4;
  std::vector<TensorBox> boxes;
  for (const LocalParameter& p : layout.parameters) {
    if (only_saved && !p.saved) continue;
    const bool matrix = p.shape.size() == 2;
    const int64_t columns = matrix ? p.shape[1] : 1;
    const FlatRange mine = Intersect(range, p.flat_offset, p.flat_offset + p.valid_rows * columns);
    // Emits elements [first, last) of the local matrix: a rectangle.
    auto emit = [&](int64_t first, int64_t rows, int64_t width) {
      TensorBox box{
          .tensor = prefix + p.logical.name, .global_shape = p.logical.shape, .dtype = dtype};
      box.offset = p.global_offset;
      box.offset[0] += first / columns;
      box.shape = {rows};
      if (matrix) {
        box.offset[1] += first % columns;
        box.shape.push_back(width);
      }
      box.data = static_cast<char*>(base) + (p.flat_offset + first - base_first) * element_bytes;
      boxes.push_back(std::move(box));
    };
    int64_t at = mine.first - p.flat_offset;
    const int64_t end = at + mine.count;
    while (mine.count > 0 && at < end) {
      const int64_t into_row = at % columns;
      const int64_t rows = into_row == 0 ? (end - at) / columns : 0;
      const int64_t width = rows > 0 ? columns : std::min(columns - into_row, end - at);
      emit(at, std::max<int64_t>(1, rows), width);
      at += std::max<int64_t>(1, rows) * width;
    }
  }
  return boxes;
}

FlatState::FlatState(ParameterLayout layout, const Options& options, Operations* operations)
    : layout_(std::move(layout)),
      dtype_(options.dtype),
      element_bytes_(options.dtype == MT_F64 ? 8 : 4),
      trained_(options.trained),
      zero_(options.zero && options.data_ranks > 1),
      shard_(ShardOf(layout_, options.data_ranks, options.data_rank)),
      operations_(operations) {}

FlatState::~FlatState() {
  for (void* buffer : {weights_, gradients_, exp_avg_, exp_avg_sq_}) {
    if (buffer != nullptr) operations_->Free(buffer);
  }
}

absl::StatusOr<std::unique_ptr<FlatState>> FlatState::Create(ParameterLayout layout,
                                                             const Options& options,
                                                             Operations* operations) {
  std::unique_ptr<FlatState> state(new FlatState(std::move(layout), options, operations));
  MT_RETURN_IF_ERROR(state->DeclareOperations());
  MT_RETURN_IF_ERROR(state->Allocate());
  return state;
}

absl::Status FlatState::Allocate() {
  auto allocate = [&](int64_t count, void** buffer) -> absl::Status {
    MT_ASSIGN_OR_RETURN(*buffer,
                        operations_->Allocate(static_cast<size_t>(count * element_bytes_)));
    return operations_->Run<MT_OP_FILL>(
        {.dtype = dtype_, .data = *buffer, .count = count, .value = 0});
  };
  MT_RETURN_IF_ERROR(allocate(layout_.size, &weights_));
  if (!trained_) return absl::OkStatus();
  MT_RETURN_IF_ERROR(allocate(layout_.size, &gradients_));
  MT_RETURN_IF_ERROR(allocate(owned().count, &exp_avg_));
  return allocate(owned().count, &exp_avg_sq_);
}

absl::Status FlatState::DeclareOperations() {
  MT_RETURN_IF_ERROR(operations_->Need<MT_OP_FILL>({.dtype = dtype_, .count = layout_.size}));
  if (!trained_) return absl::OkStatus();
  MT_RETURN_IF_ERROR(
      operations_->Need<MT_OP_FILL_NORMAL>({.dtype = dtype_, .rows = 1, .columns = layout_.size}));
  MT_RETURN_IF_ERROR(
      operations_->Need<MT_OP_SQUARED_SUM>({.dtype = dtype_, .count = owned().count}));
  return operations_->Need<MT_OP_ADAMW>({.dtype = dtype_,
                                         .state_dtype = dtype_,
                                         .gradient_dtype = dtype_,
                                         .count = owned().count,
                                         .step = 1});
}

void* FlatState::Weight(absl::string_view name) const {
  const LocalParameter* p = layout_.Find(name);
  return p == nullptr ? nullptr : At(weights_, p->flat_offset);
}

void* FlatState::Gradient(absl::string_view name) const {
  const LocalParameter* p = layout_.Find(name);
  return p == nullptr ? nullptr : At(gradients_, p->flat_offset);
}

absl::Status FlatState::Initialise(uint64_t seed) {
  MT_RETURN_IF_ERROR(operations_->Run<MT_OP_FILL>(
      {.dtype = dtype_, .data = weights_, .count = layout_.size, .value = 0}));
  for (void* moments : {exp_avg_, exp_avg_sq_}) {
    MT_RETURN_IF_ERROR(operations_->Run<MT_OP_FILL>(
        {.dtype = dtype_, .data = moments, .count = owned().count, .value = 0}));
  }
  for (const LocalParameter& p : layout_.parameters) {
    void* const data = At(weights_, p.flat_offset);
    if (p.shape.size() == 1) {
      MT_RETURN_IF_ERROR(operations_->Run<MT_OP_FILL>(
          {.dtype = dtype_, .data = data, .count = p.shape[0], .value = 1}));
      continue;
    }
    const int64_t global_columns = p.logical.shape[1];
    MT_RETURN_IF_ERROR(operations_->Run<MT_OP_FILL_NORMAL>(
        {.dtype = dtype_,
         .data = data,
         .rows = p.valid_rows,
         .columns = p.shape[1],
         .first_index =
             static_cast<uint64_t>(p.global_offset[0] * global_columns + p.global_offset[1]),
         .row_stride = static_cast<uint64_t>(global_columns),
         .seed = seed,
         .stream = p.logical.init_stream,
         .mean = 0,
         .std = p.logical.init_std}));
  }
  return absl::OkStatus();
}

absl::Status FlatState::ClearAddedGradients(bool table) {
  auto clear = [&](int64_t first, int64_t count) {
    return operations_->Run<MT_OP_FILL>(
        {.dtype = dtype_, .data = At(gradients_, first), .count = count, .value = 0});
  };
  if (const LocalParameter* embedding = layout_.Find(kEmbeddingName);
      table && embedding != nullptr) {
    MT_RETURN_IF_ERROR(clear(embedding->flat_offset, embedding->Elements()));
  }
  return clear(layout_.matrices, layout_.end - layout_.matrices);
}

absl::Status FlatState::SumGradientsOverData(Communicator* data) {
  if (data == nullptr || data->size() == 1) return absl::OkStatus();
  if (!zero_) return data->AllReduce(gradients_, layout_.size, dtype_, ReduceOp::kSum);
  return data->ReduceScatter(gradients_, At(gradients_, shard_.first), shard_.count, dtype_);
}

absl::Status FlatState::SquaredGradientSum(bool count_norms, double* result) {
  const FlatRange matrices = Intersect(owned(), 0, layout_.counted);
  MT_RETURN_IF_ERROR(operations_->Run<MT_OP_SQUARED_SUM>({.dtype = dtype_,
                                                          .data = At(gradients_, matrices.first),
                                                          .count = matrices.count,
                                                          .result = result}));
  if (!count_norms) return absl::OkStatus();
  const FlatRange norms = Intersect(owned(), layout_.matrices, layout_.end);
  return operations_->Run<MT_OP_SQUARED_SUM>({.dtype = dtype_,
                                              .data = At(gradients_, norms.first),
                                              .count = norms.count,
                                              .result = result,
                                              .accumulate = 1});
}

absl::Status FlatState::Update(const v1::OptimizerSpec& optimizer, double lr, int64_t step,
                               double gradient_scale) {
  const FlatRange range = owned();
  auto update = [&](FlatRange part, double weight_decay) -> absl::Status {
    if (part.count == 0) return absl::OkStatus();
    void* const weights = At(weights_, part.first);
    return operations_->Run<MT_OP_ADAMW>({.dtype = dtype_,
                                          .state_dtype = dtype_,
                                          .gradient_dtype = dtype_,
                                          .count = part.count,
                                          .parameter = weights,
                                          .master = weights,
                                          .gradient = At(gradients_, part.first),
                                          .exp_avg = At(exp_avg_, part.first - range.first),
                                          .exp_avg_sq = At(exp_avg_sq_, part.first - range.first),
                                          .lr = lr,
                                          .beta1 = optimizer.beta1(),
                                          .beta2 = optimizer.beta2(),
                                          .eps = optimizer.eps(),
                                          .weight_decay = weight_decay,
                                          .step = step,
                                          .gradient_scale = gradient_scale});
  };
  MT_RETURN_IF_ERROR(update(Intersect(range, 0, layout_.matrices), optimizer.weight_decay()));
  return update(Intersect(range, layout_.matrices, layout_.end), 0);
}

absl::Status FlatState::GatherWeights(Communicator* data) {
  if (!zero_) return absl::OkStatus();
  return data->AllGather(At(weights_, shard_.first), weights_, shard_.count, dtype_);
}

std::vector<TensorBox> FlatState::CheckpointBoxes() const {
  std::vector<TensorBox> boxes =
      BoxesOf(layout_, shard_, "", dtype_, weights_, 0, /*only_saved=*/true);
  for (const auto& [prefix, base] : {std::pair("optimizer.exp_avg.", exp_avg_),
                                     std::pair("optimizer.exp_avg_sq.", exp_avg_sq_)}) {
    for (TensorBox& box : BoxesOf(layout_, shard_, prefix, dtype_, base, owned().first, true))
      boxes.push_back(std::move(box));
  }
  return boxes;
}

std::vector<TensorBox> FlatState::LoadBoxes() const {
  std::vector<TensorBox> boxes =
      BoxesOf(layout_, owned(), "", dtype_, weights_, 0, /*only_saved=*/false);
  if (!trained_) return boxes;
  for (const auto& [prefix, base] : {std::pair("optimizer.exp_avg.", exp_avg_),
                                     std::pair("optimizer.exp_avg_sq.", exp_avg_sq_)}) {
    for (TensorBox& box : BoxesOf(layout_, owned(), prefix, dtype_, base, owned().first, false))
      boxes.push_back(std::move(box));
  }
  return boxes;
}

std::vector<TensorBox> FlatState::GradientBoxes() const {
  return BoxesOf(layout_, shard_, "", dtype_, gradients_, 0, /*only_saved=*/true);
}

}  // namespace mt
