#include "worker/train/expert_balance.h"

#include <algorithm>

#include "common/spec/model_traits.h"

namespace mt {
namespace {

constexpr int64_t kSectionAlignment = 64;

std::string NameOf(const char* prefix, int64_t layer, const char* rest) {
  return absl::StrCat(prefix, "model.layers.", layer, ".mlp.", rest);
}

}  // namespace

ExpertBalance::ExpertBalance(const v1::JobSpec& spec, const Mesh& mesh, int rank,
                             const Options& options, Operations* operations)
    : moe_(spec.model().moe()),
      options_(options),
      operations_(operations),
      balance_(options.trained && moe_.balance_coefficient() > 0 ? moe_.balance()
                                                                 : v1::MoeSpec::BALANCE_NONE),
      tokens_(spec.training().global_batch() * spec.data().sequence_length()),
      stride_(CountStride(moe_.experts())),
      first_data_(mesh.CoordinatesOf(rank).data == 0),
      first_tensor_(mesh.CoordinatesOf(rank).tensor == 0),
      sequence_tokens_(spec.data().sequence_length()),
      micro_batch_tokens_(sequence_tokens_ * spec.training().micro_batch()) {
  const v1::ModelSpec& model = spec.model();
  const LayerRange stage =
      LayersOfStage(model.layers(), mesh.pipeline(), mesh.CoordinatesOf(rank).pipeline);
  const int64_t end = model.layers() + MtpLayers(model);
  const int64_t last = mesh.IsLastStage(rank) ? end : stage.last;
  first_of_all_ = moe_.first_dense();
  all_layers_ = std::max<int64_t>(0, end - first_of_all_);
  first_ = std::clamp(first_of_all_, stage.first, last);
  own_layers_ = last - first_;
  SetTokens(tokens_, tokens_);
}

// Of the choices of an expert: coefficient E / (k n) / n per row of n, as a mean over the n's of the whole global batch. The choices of
// balance global are those of the step before.
void ExpertBalance::SetTokens(int64_t tokens, int64_t before) {
  tokens_ = tokens;
  if (!options_.trained) return;
  int64_t n = before;
  if (moe_.balance() == v1::MoeSpec::BALANCE_SEQUENCE) n = sequence_tokens_;
  if (moe_.balance() == v1::MoeSpec::BALANCE_BATCH) n = micro_batch_tokens_;
  balance_scale_ =
      moe_.balance_coefficient() * static_cast<double>(moe_.experts()) /
      (static_cast<double>(moe_.top_k()) * static_cast<double>(n) * static_cast<double>(tokens));
  z_scale_ = moe_.z_loss() / static_cast<double>(tokens);
}

ExpertBalance::~ExpertBalance() {
  if (memory_ != nullptr) operations_->Free(memory_);
}

absl::StatusOr<std::unique_ptr<ExpertBalance>> ExpertBalance::Create(const v1::JobSpec& spec,
                                                                     const Mesh& mesh, int rank,
                                                                     const Options& options,
                                                                     Operations* operations) {
  if (!HasExperts(spec.model())) return nullptr;
  std::unique_ptr<ExpertBalance> balance(new ExpertBalance(spec, mesh, rank, options, operations));
  MT_RETURN_IF_ERROR(balance->DeclareOperations());
  MT_RETURN_IF_ERROR(balance->Allocate());
  return balance;
}

absl::Status ExpertBalance::Allocate() {
  const int64_t statistic = BytesPerNumber(options_.types.statistic);
  int64_t bytes = 0;
  std::vector<std::pair<void**, int64_t>> sections;
  auto section = [&](auto** pointer, int64_t count, int64_t element_bytes) {
    sections.emplace_back(reinterpret_cast<void**>(pointer), bytes);
    bytes += RoundUp(count * element_bytes, kSectionAlignment);
  };
  if (has_bias()) section(&bias_, numbers(), BytesPerNumber(options_.types.state));
  if (options_.trained) {
    if (global()) section(&last_load_, numbers(), 8);
    const int64_t counts_first = bytes;
    section(&load_, numbers(), statistic);
    section(&balance_loss_, 1, statistic);
    section(&z_sum_, 1, 8);
    section(&dropped_, 1, 8);
    counts_bytes_ = bytes - counts_first;
    if (global()) {
      section(&global_gradient_, numbers(), statistic);
      section(&global_gradient64_, numbers(), 8);
      section(&summed_load_, numbers(), 8);
    }
    if (has_bias()) section(&update_load_, numbers(), BytesPerNumber(options_.types.gradient));
    section(&report_, report_size(), 8);
    MT_ASSIGN_OR_RETURN(host_, PinnedMemory::Create(operations_->backend(),
                                                    static_cast<size_t>(report_size() * 8)));
  }
  MT_ASSIGN_OR_RETURN(memory_, operations_->Allocate(static_cast<size_t>(bytes)));
  for (const auto& [pointer, offset] : sections) *pointer = static_cast<char*>(memory_) + offset;
  return Zero(memory_, bytes);
}

absl::Status ExpertBalance::DeclareOperations() {
  const NumberTypes& types = options_.types;
  MT_RETURN_IF_ERROR(operations_->Need<MT_OP_FILL>({.dtype = MT_F32, .count = report_size() * 2}));
  if (!options_.trained) return absl::OkStatus();
  for (const auto& [from, to] :
       {std::pair(types.statistic, MT_F64), std::pair(MT_F64, types.statistic),
        std::pair(MT_F64, types.gradient), std::pair(MT_F64, MT_F64)}) {
    MT_RETURN_IF_ERROR(operations_->Need<MT_OP_COPY>(
        {.source_dtype = from, .destination_dtype = to, .count = numbers()}));
  }
  MT_RETURN_IF_ERROR(
      operations_->Need<MT_OP_SCALE>({.dtype = types.statistic, .count = numbers()}));
  if (!has_bias()) return absl::OkStatus();
  return operations_->Need<MT_OP_BALANCE_UPDATE>({.dtype = types.statistic,
                                                  .state_dtype = types.state,
                                                  .gradient_dtype = types.gradient,
                                                  .count = numbers()});
}

// Zeros have the same bits in every type; that of float32 is the one that every backend fills.
absl::Status ExpertBalance::Zero(void* data, int64_t bytes) {
  return operations_->Run<MT_OP_FILL>(
      {.dtype = MT_F32, .data = data, .count = bytes / 4, .value = 0});
}

absl::Status ExpertBalance::Copy(mt_dtype from, const void* source, mt_dtype to, void* destination,
                                 int64_t count) {
  return operations_->Run<MT_OP_COPY>({.source_dtype = from,
                                       .destination_dtype = to,
                                       .source = source,
                                       .destination = destination,
                                       .count = count});
}

const void* ExpertBalance::SelectionBias(int64_t layer) const {
  // Statistics and state have the same type under every precision.
  if (!has_bias()) return nullptr;
  return static_cast<char*>(bias_) +
         (layer - first_) * stride_ * BytesPerNumber(options_.types.state);
}

MoeTraining ExpertBalance::Training(int64_t layer) const {
  if (!options_.trained) return {};
  const int64_t at = (layer - first_) * stride_;
  const auto statistic_at = [&](void* base) -> void* {
    return base == nullptr
               ? nullptr
               : static_cast<char*>(base) + at * BytesPerNumber(options_.types.statistic);
  };
  return {.capacity_factor = moe_.capacity_factor(),
          .balance = balance_,
          .balance_scale = balance_scale_,
          .z_scale = z_scale_,
          .load = statistic_at(load_),
          .balance_loss = balance_loss_,
          .z_sum = z_sum_,
          .dropped = dropped_,
          .global_gradient = statistic_at(global_gradient_),
          .global_gradient64 = global() ? global_gradient64_ + at : nullptr};
}

absl::Status ExpertBalance::Initialise() {
  if (has_bias()) MT_RETURN_IF_ERROR(Zero(bias_, numbers() * BytesPerNumber(options_.types.state)));
  return global() ? Zero(last_load_, numbers() * 8) : absl::OkStatus();
}

absl::Status ExpertBalance::Begin() {
  MT_RETURN_IF_ERROR(Zero(load_, counts_bytes_));
  if (!global()) return absl::OkStatus();
  const mt_dtype statistic = options_.types.statistic;
  MT_RETURN_IF_ERROR(Copy(MT_F64, last_load_, statistic, global_gradient_, numbers()));
  MT_RETURN_IF_ERROR(operations_->Run<MT_OP_SCALE>({.dtype = statistic,
                                                    .data = global_gradient_,
                                                    .count = numbers(),
                                                    .factor = balance_scale_}));
  return Copy(statistic, global_gradient_, MT_F64, global_gradient64_, numbers());
}

absl::Status ExpertBalance::Sum(Communicator* data, Communicator* model) {
  const mt_dtype statistic = options_.types.statistic;
  MT_RETURN_IF_ERROR(Zero(report_, report_size() * 8));
  MT_RETURN_IF_ERROR(Copy(statistic, load_, MT_F64, OwnReport(), numbers()));
  MT_RETURN_IF_ERROR(Copy(statistic, balance_loss_, MT_F64, report_ + ScalarAt(kBalanceLoss), 1));
  MT_RETURN_IF_ERROR(Copy(MT_F64, z_sum_, MT_F64, report_ + ScalarAt(kZSum), 1));
  MT_RETURN_IF_ERROR(Copy(MT_F64, dropped_, MT_F64, report_ + ScalarAt(kDropped), 1));
  if (data != nullptr)
    MT_RETURN_IF_ERROR(data->AllReduce(report_, report_size(), MT_F64, ReduceOp::kSum));
  if (has_bias())
    MT_RETURN_IF_ERROR(Copy(MT_F64, OwnReport(), options_.types.gradient, update_load_, numbers()));
  if (global()) MT_RETURN_IF_ERROR(Copy(MT_F64, OwnReport(), MT_F64, summed_load_, numbers()));
  if (model == nullptr) return absl::OkStatus();
  // All tensor ranks have counted the same rows.
  if (!first_tensor_) MT_RETURN_IF_ERROR(Zero(report_, report_size() * 8));
  return model->AllReduce(report_, report_size(), MT_F64, ReduceOp::kSum);
}

absl::Status ExpertBalance::Update(const double* gradient_scale) {
  if (!has_bias()) return absl::OkStatus();
  return operations_->Run<MT_OP_BALANCE_UPDATE>(
      {.dtype = options_.types.statistic,
       .state_dtype = options_.types.state,
       .gradient_dtype = options_.types.gradient,
       .count = numbers(),
       .parameter = bias_,
       .bias = bias_,
       .load = update_load_,
       .rate = moe_.selection_bias_rate(),
       .target = static_cast<double>(tokens_ * moe_.top_k()) / static_cast<double>(moe_.experts()),
       .gradient_scale_pointer = gradient_scale});
}

absl::Status ExpertBalance::End() {
  const Backend& backend = operations_->backend();
  return backend.ToStatus(
      backend.abi().copy_to_host(host_->as<double>(), report_,
                                 static_cast<size_t>(report_size() * 8), nullptr),
      "copying the loads of experts");
}

std::map<std::string, double> ExpertBalance::Losses() const {
  const double* host = host_->as<double>();
  std::map<std::string, double> losses;
  if (balance_ != v1::MoeSpec::BALANCE_NONE) losses["balance"] = host[ScalarAt(kBalanceLoss)];
  if (z_scale_ > 0) losses["router_z"] = host[ScalarAt(kZSum)] * z_scale_;
  return losses;
}

ExpertLoad ExpertBalance::Load() const {
  const double* host = host_->as<double>();
  ExpertLoad load = {.first_layer = first_of_all_, .dropped = host[ScalarAt(kDropped)]};
  for (int64_t layer = 0; layer < all_layers_; ++layer) {
    const double* of_layer = host + layer * stride_;
    double sum = 0, largest = 0;
    for (int64_t e = 0; e < moe_.experts(); ++e) {
      sum += of_layer[e];
      largest = std::max(largest, of_layer[e]);
    }
    load.load_ratio.push_back(sum > 0 ? largest * static_cast<double>(moe_.experts()) / sum : 0);
  }
  return load;
}

absl::Status ExpertBalance::Keep() {
  return global() ? Copy(MT_F64, summed_load_, MT_F64, last_load_, numbers()) : absl::OkStatus();
}

std::vector<TensorBox> ExpertBalance::CheckpointBoxes() const {
  return first_data_ && first_tensor_ ? LoadBoxes() : std::vector<TensorBox>();
}

std::vector<TensorBox> ExpertBalance::LoadBoxes() const {
  std::vector<TensorBox> boxes;
  auto add = [&](std::string name, mt_dtype dtype, void* data) {
    boxes.push_back({.tensor = std::move(name),
                     .global_shape = {moe_.experts()},
                     .offset = {0},
                     .shape = {moe_.experts()},
                     .dtype = dtype,
                     .data = data});
  };
  for (int64_t layer = first_; layer < first_ + own_layers_; ++layer) {
    if (has_bias())
      add(NameOf("", layer, "gate.e_score_correction_bias"), options_.types.state,
          const_cast<void*>(SelectionBias(layer)));
    if (global())
      add(NameOf("optimizer.last_load.", layer, "gate"), MT_F64,
          last_load_ + (layer - first_) * stride_);
  }
  return boxes;
}

}  // namespace mt
