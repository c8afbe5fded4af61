// What every part of a block works in. Shapes: N rows, C hidden.
#pragma once

namespace mt {

struct PartScratch {
  void* delta = nullptr;  // (N, C): a part's output, before and after the sum over the tensor group
  void* norm_gradient = nullptr;      // (N, C): the gradient of a part's input
  void* gathered_input = nullptr;     // (N, C) under sequence parallelism
  void* gathered_gradient = nullptr;  // (N, C) under sequence parallelism
};

}  // namespace mt
