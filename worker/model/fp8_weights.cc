#include "worker/model/fp8_weights.h"

namespace mt {

absl::StatusOr<std::unique_ptr<Fp8Weights>> Fp8Weights::Create(std::vector<LinearLayer*> layers,
                                                               Operations* operations) {
  std::unique_ptr<Fp8Weights> weights(new Fp8Weights(std::move(layers), operations));
  int64_t elements = 0;
  for (const LinearLayer* layer : weights->layers_) elements += layer->in * layer->out;
  weights->bytes_ =
      2 * elements + 2 * static_cast<int64_t>(weights->layers_.size() * sizeof(float));
  MT_ASSIGN_OR_RETURN(weights->memory_, operations->Allocate(static_cast<size_t>(weights->bytes_)));
  // Sizes are multiples of 16 (CheckSizes), so every copy is as aligned as the first.
  char* at = static_cast<char*>(weights->memory_);
  weights->scales_ = reinterpret_cast<float*>(at + 2 * elements);
  for (size_t i = 0; i < weights->layers_.size(); ++i) {
    LinearLayer& layer = *weights->layers_[i];
    const int64_t count = layer.in * layer.out;
    layer.weight8 = at;
    layer.weight8_transposed = at + count;
    layer.weight8_scale = weights->scale(i);
    at += 2 * count;
  }
  return weights;
}

Fp8Weights::~Fp8Weights() {
  if (memory_ != nullptr) operations_->Free(memory_);
}

absl::Status Fp8Weights::Refresh(ModelContext& context) {
  const auto count = static_cast<int64_t>(layers_.size());
  MT_RETURN_IF_ERROR(
      context.Run<MT_OP_FILL>({.dtype = MT_F32, .data = scales_, .count = count, .value = 0}));
  for (size_t i = 0; i < layers_.size(); ++i) {
    const LinearLayer& layer = *layers_[i];
    MT_RETURN_IF_ERROR(context.Measure(layer.weight, layer.in * layer.out, amax(i)));
  }
  MT_RETURN_IF_ERROR(context.ShareAmax(scales_, /*split=*/true, count));
  for (size_t i = 0; i < layers_.size(); ++i) {
    const LinearLayer& layer = *layers_[i];
    MT_RETURN_IF_ERROR(
        context.Run<MT_OP_QUANTIZE>({.dtype = context.dtype,
                                     .output_dtype = MT_F8_E4M3,
                                     .rows = layer.out,
                                     .columns = layer.in,
                                     .source = layer.weight,
                                     .amax = amax(i),
                                     .output = const_cast<void*>(layer.weight8),
                                     .transposed = const_cast<void*>(layer.weight8_transposed),
                                     .output_scale = scale(i)}));
  }
  return absl::OkStatus();
}

}  // namespace mt
