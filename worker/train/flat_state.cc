#include "worker/train/flat_state.h"

#include <algorithm>
#include <utility>

namespace mt {
namespace {

FlatRange Intersect(FlatRange a, FlatRange b) {
  const int64_t first = std::max(a.first, b.first),
                last = std::min(a.first + a.count, b.first + b.count);
  return {.first = first, .count = std::max<int64_t>(0, last - first)};
}

}  // namespace

std::vector<TensorBox> BoxesOf(const ParameterLayout& layout, FlatRange range, const char* prefix,
                               mt_dtype dtype, void* base, int64_t base_first, bool only_saved) {
  const int64_t element_bytes = BytesPerNumber(dtype);
  std::vector<TensorBox> boxes;
  for (const LocalParameter& p : layout.parameters) {
    if (only_saved && !p.saved) continue;
    const bool matrix = p.shape.size() == 2;
    const int64_t columns = matrix ? p.shape[1] : 1;
    const FlatRange mine = Intersect(range, {p.flat_offset, p.valid_rows * columns});
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
      types_(options.types),
      trained_(options.trained),
      zero_(options.zero && options.data_ranks > 1),
      parts_(PartsOf(layout_, options.data_ranks, options.data_rank)),
      owned_(zero_ ? parts_ : std::vector<FlatRange>{{0, layout_.size}}),
      operations_(operations) {
  for (const FlatRange& range : owned_) owned_count_ += range.count;
}

FlatState::~FlatState() {
  for (void* buffer : {weights_, gradients_, master_, exp_avg_, exp_avg_sq_}) {
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

absl::Status FlatState::Zero(void* buffer, int64_t count, mt_dtype dtype) {
  return operations_->Run<MT_OP_FILL>({.dtype = dtype, .data = buffer, .count = count, .value = 0});
}

absl::Status FlatState::Allocate() {
  auto allocate = [&](int64_t count, mt_dtype dtype, void** buffer) -> absl::Status {
    MT_ASSIGN_OR_RETURN(*buffer,
                        operations_->Allocate(static_cast<size_t>(count * BytesPerNumber(dtype))));
    return Zero(*buffer, count, dtype);
  };
  MT_RETURN_IF_ERROR(allocate(layout_.size, types_.data, &weights_));
  if (!trained_) return absl::OkStatus();
  MT_RETURN_IF_ERROR(allocate(layout_.size, types_.gradient, &gradients_));
  if (has_master()) MT_RETURN_IF_ERROR(allocate(owned_count_, types_.state, &master_));
  MT_RETURN_IF_ERROR(allocate(owned_count_, types_.state, &exp_avg_));
  return allocate(owned_count_, types_.state, &exp_avg_sq_);
}

absl::Status FlatState::DeclareOperations() {
  MT_RETURN_IF_ERROR(operations_->Need<MT_OP_FILL>({.dtype = types_.data, .count = layout_.size}));
  if (!trained_) return absl::OkStatus();
  for (const mt_dtype dtype : {types_.gradient, types_.state}) {
    MT_RETURN_IF_ERROR(operations_->Need<MT_OP_FILL>({.dtype = dtype, .count = layout_.size}));
  }
  MT_RETURN_IF_ERROR(operations_->Need<MT_OP_FILL_NORMAL>(
      {.dtype = types_.state, .rows = 1, .columns = layout_.size}));
  if (has_master()) {
    MT_RETURN_IF_ERROR(operations_->Need<MT_OP_COPY>(
        {.source_dtype = types_.state, .destination_dtype = types_.data, .count = owned_count_}));
  }
  MT_RETURN_IF_ERROR(
      operations_->Need<MT_OP_SQUARED_SUM>({.dtype = types_.gradient, .count = owned_count_}));
  return operations_->Need<MT_OP_ADAMW>({.dtype = types_.data,
                                         .state_dtype = types_.state,
                                         .gradient_dtype = types_.gradient,
                                         .count = owned_count_,
                                         .step = 1});
}

void* FlatState::Weight(absl::string_view name) const {
  const LocalParameter* p = layout_.Find(name);
  return p == nullptr ? nullptr : At(weights_, p->flat_offset, types_.data);
}

void* FlatState::Gradient(absl::string_view name) const {
  const LocalParameter* p = layout_.Find(name);
  return p == nullptr ? nullptr : GradientAt(p->flat_offset);
}

void* FlatState::MasterAt(int64_t element, int64_t stored) const {
  return has_master() ? At(master_, stored, types_.state) : At(weights_, element, types_.data);
}

template <typename Body>
absl::Status FlatState::ForOwned(Body body) const {
  int64_t stored = 0;
  for (const FlatRange& range : owned_) {
    MT_RETURN_IF_ERROR(body(range, stored));
    stored += range.count;
  }
  return absl::OkStatus();
}

absl::Status FlatState::Initialise(uint64_t seed) {
  MT_RETURN_IF_ERROR(Zero(weights_, layout_.size, types_.data));
  if (has_master()) MT_RETURN_IF_ERROR(Zero(master_, owned_count_, types_.state));
  for (void* moments : {exp_avg_, exp_avg_sq_}) {
    MT_RETURN_IF_ERROR(Zero(moments, owned_count_, types_.state));
  }
  // What was zeroed and is in no box is padding.
  for (const TensorBox& box : LoadBoxes()) {
    const LocalParameter* p = layout_.Find(box.tensor);
    if (p == nullptr) continue;  // a moment
    if (box.shape.size() == 1) {
      MT_RETURN_IF_ERROR(operations_->Run<MT_OP_FILL>({.dtype = types_.state,
                                                       .data = box.data,
                                                       .count = box.shape[0],
                                                       .value = p->logical.init_value}));
      continue;
    }
    const int64_t global_columns = box.global_shape[1];
    MT_RETURN_IF_ERROR(operations_->Run<MT_OP_FILL_NORMAL>(
        {.dtype = types_.state,
         .data = box.data,
         .rows = box.shape[0],
         .columns = box.shape[1],
         .first_index = static_cast<uint64_t>(box.offset[0] * global_columns + box.offset[1]),
         .row_stride = static_cast<uint64_t>(global_columns),
         .seed = seed,
         .stream = p->logical.init_stream,
         .mean = 0,
         .std = p->logical.init_std}));
  }
  return absl::OkStatus();
}

absl::Status FlatState::ClearAddedGradients(bool table) {
  if (const LocalParameter* embedding = layout_.Find(kEmbeddingName);
      table && embedding != nullptr) {
    MT_RETURN_IF_ERROR(
        Zero(GradientAt(embedding->flat_offset), embedding->Elements(), types_.gradient));
  }
  return Zero(GradientAt(layout_.added.first), layout_.added.count, types_.gradient);
}

absl::Status FlatState::SumGradientsOverData(Communicator* data, int64_t block) {
  if (data == nullptr || data->size() == 1) return absl::OkStatus();
  for (size_t i = 0; i < layout_.buckets.size(); ++i) {
    const FlatBucket& bucket = layout_.buckets[i];
    if (bucket.block != block) continue;
    void* const gradients = GradientAt(bucket.range.first);
    MT_RETURN_IF_ERROR(
        zero_ ? data->ReduceScatter(gradients, GradientAt(parts_[i].first), parts_[i].count,
                                    types_.gradient)
              : data->AllReduce(gradients, bucket.range.count, types_.gradient, ReduceOp::kSum));
  }
  return absl::OkStatus();
}

absl::Status FlatState::SquaredGradientSum(bool count_replicated, double* result) {
  bool accumulate = false;
  auto add = [&](FlatRange part) -> absl::Status {
    if (part.count == 0 && accumulate) return absl::OkStatus();
    const int32_t onto = std::exchange(accumulate, true) ? 1 : 0;
    return operations_->Run<MT_OP_SQUARED_SUM>({.dtype = types_.gradient,
                                                .data = GradientAt(part.first),
                                                .count = part.count,
                                                .result = result,
                                                .accumulate = onto});
  };
  return ForOwned([&](FlatRange range, int64_t) -> absl::Status {
    for (const FlatRegion& region : layout_.regions) {
      if (region.copy || (region.replicated && !count_replicated)) continue;
      MT_RETURN_IF_ERROR(add(Intersect(range, region.range)));
    }
    return absl::OkStatus();
  });
}

absl::Status FlatState::Update(const v1::OptimizerSpec& optimizer, double lr, int64_t step,
                               const double* gradient_scale) {
  auto update = [&](FlatRange part, int64_t stored, double weight_decay) -> absl::Status {
    if (part.count == 0) return absl::OkStatus();
    return operations_->Run<MT_OP_ADAMW>({.dtype = types_.data,
                                          .state_dtype = types_.state,
                                          .gradient_dtype = types_.gradient,
                                          .count = part.count,
                                          .parameter = At(weights_, part.first, types_.data),
                                          .master = MasterAt(part.first, stored),
                                          .gradient = GradientAt(part.first),
                                          .exp_avg = At(exp_avg_, stored, types_.state),
                                          .exp_avg_sq = At(exp_avg_sq_, stored, types_.state),
                                          .lr = lr,
                                          .beta1 = optimizer.beta1(),
                                          .beta2 = optimizer.beta2(),
                                          .eps = optimizer.eps(),
                                          .weight_decay = weight_decay,
                                          .step = step,
                                          .gradient_scale = 1,
                                          .gradient_scale_pointer = gradient_scale});
  };
  return ForOwned([&](FlatRange range, int64_t stored) -> absl::Status {
    for (const FlatRegion& region : layout_.regions) {
      const FlatRange part = Intersect(range, region.range);
      MT_RETURN_IF_ERROR(update(part, stored + part.first - range.first,
                                region.weight_decay ? optimizer.weight_decay() : 0));
    }
    return absl::OkStatus();
  });
}

absl::Status FlatState::GatherWeights(Communicator* data) {
  if (!zero_) return absl::OkStatus();
  MT_RETURN_IF_ERROR(data->BeginOverlap());
  for (size_t i = 0; i < parts_.size(); ++i) {
    MT_RETURN_IF_ERROR(data->AllGather(At(weights_, parts_[i].first, types_.data),
                                       At(weights_, layout_.buckets[i].range.first, types_.data),
                                       parts_[i].count, types_.data));
  }
  return data->EndOverlap();
}

absl::Status FlatState::FinishWeights(Communicator* data) {
  if (has_master()) {
    MT_RETURN_IF_ERROR(ForOwned([&](FlatRange range, int64_t stored) {
      return operations_->Run<MT_OP_COPY>({.source_dtype = types_.state,
                                           .destination_dtype = types_.data,
                                           .source = MasterAt(range.first, stored),
                                           .destination = At(weights_, range.first, types_.data),
                                           .count = range.count});
    }));
  }
  return GatherWeights(data);
}

// Master weights and moments; weights only where nothing is trained. `ranges` are the owned ones, or parts of the one that is.
std::vector<TensorBox> FlatState::StateBoxes(const std::vector<FlatRange>& ranges,
                                             bool only_saved) const {
  std::vector<TensorBox> boxes;
  auto add = [&](const char* prefix, auto base_of) {
    int64_t stored = 0;
    for (const FlatRange& range : ranges) {
      void* const base = base_of(range.first, zero_ ? stored : range.first);
      for (TensorBox& box :
           BoxesOf(layout_, range, prefix, types_.state, base, range.first, only_saved))
        boxes.push_back(std::move(box));
      stored += range.count;
    }
  };
  add("", [&](int64_t first, int64_t stored) { return MasterAt(first, stored); });
  if (!trained_) return boxes;
  for (const auto& [prefix, moments] : {std::pair("optimizer.exp_avg.", exp_avg_),
                                        std::pair("optimizer.exp_avg_sq.", exp_avg_sq_)}) {
    add(prefix,
        [&, base = moments](int64_t, int64_t stored) { return At(base, stored, types_.state); });
  }
  return boxes;
}

std::vector<TensorBox> FlatState::CheckpointBoxes() const {
  return StateBoxes(parts_, /*only_saved=*/true);
}

std::vector<TensorBox> FlatState::LoadBoxes() const {
  return StateBoxes(owned_, /*only_saved=*/false);
}

std::vector<TensorBox> FlatState::GradientBoxes() const {
  std::vector<TensorBox> boxes;
  for (const FlatRange& part : parts_) {
    for (TensorBox& box :
         BoxesOf(layout_, part, "", types_.gradient, gradients_, 0, /*only_saved=*/true))
      boxes.push_back(std::move(box));
  }
  return boxes;
}

}  // namespace mt
