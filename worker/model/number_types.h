// Which type each kind of number has under a precision (common/spec/activation_plan.h's NumberBytes
// are their sizes).
#pragma once

#include "common/spec/activation_plan.h"
#include "kernels/abi/mt_backend.h"

namespace mt {

struct NumberTypes {
  mt_dtype data = MT_F32;       // activations, working weights, logits
  mt_dtype statistic = MT_F32;  // rstd, lse, row losses, cross-entropy statistics, rotation table
  mt_dtype gradient = MT_F32;   // of weights: the main gradients
  mt_dtype state = MT_F32;      // master weights and moments, and what a checkpoint holds
};

inline NumberTypes TypesOf(v1::TrainingSpec::Precision precision) {
  switch (precision) {
    case v1::TrainingSpec::PRECISION_FP64:
      return {MT_F64, MT_F64, MT_F64, MT_F64};
    case v1::TrainingSpec::PRECISION_BF16:
    case v1::TrainingSpec::PRECISION_FP8:
      return {.data = MT_BF16};
    default:
      return {};
  }
}

// Of the types a model is made of.
inline int64_t BytesPerNumber(mt_dtype dtype) {
  return dtype == MT_F64 ? 8 : dtype == MT_F32 ? 4 : dtype == MT_BF16 ? 2 : 1;
}

}  // namespace mt
