#include "worker/train/stage_binder.h"

namespace mt {

MtpWeights StageBinder::MtpWeightsOf(bool tied) const {
  const int64_t layer = context_.model.layers(), C = context_.shape.hidden;
  const std::string at = absl::StrCat("model.layers.", layer, ".");
  MtpWeights w = {.table = state_.Weight(kEmbeddingName),
                  .table_gradient = state_.Gradient(kEmbeddingName),
                  .embedding_norm = Norm(at + "enorm", C),
                  .hidden_norm = Norm(at + "hnorm", C),
                  .projection = Linear(at + "eh_proj", 2 * C, C, false),
                  .block = WeightsOf(layer),
                  .head = Head(tied)};
  w.head.norm = Norm(at + "shared_head.norm", C);
  return w;
}

MtpActivations StageBinder::MtpActivationsOf() const {
  MtpActivations a = {
      .embedded = Tensor("mtp.embedded"),
      .embedding_norm = {.rstd = Tensor("mtp.embedding_rstd"),
                         .output = Tensor("mtp.embedding_norm")},
      .hidden_norm = {.rstd = Tensor("mtp.hidden_rstd"), .output = Tensor("mtp.hidden_norm")},
      .block = ActivationsOf(/*slot=*/0, context_.shape.blocks),
      .head = HeadScratch()};
  a.head.sum = Tensor("mtp.head_sum");
  a.head.norm = {.rstd = Tensor("mtp.head_rstd"), .output = Tensor("mtp.head_norm")};
  a.head.norm_gradient = Tensor("mtp.head_norm_gradient");
  a.head.row_loss = Tensor("mtp.row_loss");
  return a;
}

MtpScratch StageBinder::MtpScratchOf() const {
  return {.embedded_gradient = Tensor("mtp.embedded_gradient"),
          .hidden_gradient = Tensor("mtp.hidden_gradient"),
          .block = Scratch()};
}

}  // namespace mt
