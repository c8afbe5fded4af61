#include "kernels/conformance/case_makers.h"

namespace mt::conformance {
namespace {

const char* OptionOf(Residual residual) {
  const char* options[] = {"", "residual", "residual_in_place"};
  return options[static_cast<int>(residual)];
}
const char* OptionOf(GradientAlias alias) {
  const char* options[] = {"", "over_residual", "over_output"};
  return options[static_cast<int>(alias)];
}
std::string WithAmax(const char* option, bool amax) {
  if (!amax) return option;
  return *option == '\0' ? "amax" : std::string(option) + "_amax";
}

// x, residual and sum, which may be the residual: tensors 0, 1 and 2 of a forward case.
std::vector<Tensor> Sums(int64_t n, Residual residual, double mean) {
  std::vector<Tensor> tensors = {Around(In("x", n), mean, 1), residual == Residual::kInPlace
                                                                  ? Update("residual", n)
                                                                  : In("residual", n)};
  tensors.push_back(residual == Residual::kInPlace ? Alias(Update("sum", n), 1) : Out("sum", n));
  if (residual == Residual::kNone) tensors[1] = tensors[2] = In("unused", 0);
  return tensors;
}

// sum, output_gradient, residual_gradient and input_gradient, which may be one of the two before:
// tensors 0 to 3 of a backward case.
std::vector<Tensor> Gradients(int64_t n, bool residual, GradientAlias alias) {
  std::vector<Tensor> tensors = {
      In("sum", n),
      alias == GradientAlias::kOverOutput ? Update("output_gradient", n) : In("output_gradient", n),
      alias == GradientAlias::kOverResidual ? Update("residual_gradient", n)
                                            : In("residual_gradient", residual ? n : 0)};
  tensors.push_back(Long(
      alias == GradientAlias::kNone
          ? Out("input_gradient", n)
          : Alias(Update("input_gradient", n), alias == GradientAlias::kOverResidual ? 2 : 1)));
  return tensors;
}

Tensor Statistic(const char* name, int64_t rows, Residual residual) {
  return residual == Residual::kNone ? Wide(Out(name, rows)) : Rounded(Out(name, rows));
}

}  // namespace

Case RmsNormForward(int64_t rows, int64_t columns, Residual residual, bool amax) {
  const int64_t n = rows * columns;
  std::vector<Tensor> tensors = Sums(n, residual, 0);
  tensors.push_back(In("weight", columns));
  tensors.push_back(Out("output", n));
  tensors.push_back(Statistic("rstd", rows, residual));
  tensors.push_back(AmaxField());
  return {Name(MT_OP_RMSNORM_FORWARD, {{"rows", rows}, {"columns", columns}},
               WithAmax(OptionOf(residual), amax)),
          MT_OP_RMSNORM_FORWARD, tensors,
          [=](int32_t type, void* const* p) {
            const bool none = residual == Residual::kNone;
            return Bytes(mt_rmsnorm_args{.dtype = type,
                                         .rows = rows,
                                         .columns = columns,
                                         .eps = 1e-2,
                                         .x = p[0],
                                         .residual = none ? nullptr : p[1],
                                         .sum = none ? nullptr : p[2],
                                         .weight = p[3],
                                         .output = p[4],
                                         .rstd = p[5],
                                         .amax = amax ? AmaxPointer(p[6]) : nullptr});
          },
          5.0 * n};
}

Case RmsNormBackward(int64_t rows, int64_t columns, bool residual, GradientAlias alias, bool amax) {
  const int64_t n = rows * columns;
  std::vector<Tensor> tensors = Gradients(n, residual, alias);
  tensors.push_back(In("weight", columns));
  tensors.push_back(Wide(Positive(In("rstd", rows))));
  tensors.push_back(Long(Wide(Update("weight_gradient", columns)), rows));
  tensors.push_back(AmaxField());
  return {
      Name(MT_OP_RMSNORM_BACKWARD, {{"rows", rows}, {"columns", columns}, {"residual", residual}},
           WithAmax(OptionOf(alias), amax)),
      MT_OP_RMSNORM_BACKWARD, tensors,
      [=](int32_t type, void* const* p) {
        return Bytes(mt_rmsnorm_args{.dtype = type,
                                     .gradient_dtype = WideType(type),
                                     .rows = rows,
                                     .columns = columns,
                                     .eps = 1e-5,
                                     .sum = p[0],
                                     .weight = p[4],
                                     .rstd = p[5],
                                     .output_gradient = p[1],
                                     .residual_gradient = residual ? p[2] : nullptr,
                                     .input_gradient = p[3],
                                     .weight_gradient = p[6],
                                     .amax = amax ? AmaxPointer(p[7]) : nullptr});
      },
      10.0 * n};
}

// Values around 5: a variance as difference of two large sums would show.
Case LayerNormForward(int64_t rows, int64_t columns, Residual residual, bool amax) {
  const int64_t n = rows * columns;
  std::vector<Tensor> tensors = Sums(n, residual, 5);
  tensors.push_back(In("weight", columns));
  tensors.push_back(In("bias", columns));
  tensors.push_back(Long(Out("output", n)));
  tensors.push_back(Long(Statistic("mean", rows, residual)));
  tensors.push_back(Statistic("rstd", rows, residual));
  tensors.push_back(AmaxField());
  // The difference to a mean of five has lost up to three bits; few columns give a large rstd.
  tensors[5].slack = tensors[7].slack = 16;
  tensors[8].slack = 16;
  return {Name(MT_OP_LAYERNORM_FORWARD, {{"rows", rows}, {"columns", columns}},
               WithAmax(OptionOf(residual), amax)),
          MT_OP_LAYERNORM_FORWARD, tensors,
          [=](int32_t type, void* const* p) {
            const bool none = residual == Residual::kNone;
            return Bytes(mt_layernorm_args{.dtype = type,
                                           .rows = rows,
                                           .columns = columns,
                                           .eps = 1e-2,
                                           .x = p[0],
                                           .residual = none ? nullptr : p[1],
                                           .sum = none ? nullptr : p[2],
                                           .weight = p[3],
                                           .bias = p[4],
                                           .output = p[5],
                                           .mean = p[6],
                                           .rstd = p[7],
                                           .amax = amax ? AmaxPointer(p[8]) : nullptr});
          },
          8.0 * n};
}

Case LayerNormBackward(int64_t rows, int64_t columns, bool residual, GradientAlias alias,
                       bool amax) {
  const int64_t n = rows * columns;
  std::vector<Tensor> tensors = Gradients(n, residual, alias);
  tensors.push_back(In("weight", columns));
  tensors.push_back(Wide(Around(In("mean", rows), 0, 0.3)));
  tensors.push_back(Wide(Positive(In("rstd", rows))));
  tensors.push_back(Long(Wide(Update("weight_gradient", columns)), rows));
  tensors.push_back(Long(Wide(Update("bias_gradient", columns)), rows));
  tensors.push_back(AmaxField());
  return {
      Name(MT_OP_LAYERNORM_BACKWARD, {{"rows", rows}, {"columns", columns}, {"residual", residual}},
           WithAmax(OptionOf(alias), amax)),
      MT_OP_LAYERNORM_BACKWARD, tensors,
      [=](int32_t type, void* const* p) {
        return Bytes(mt_layernorm_args{.dtype = type,
                                       .gradient_dtype = WideType(type),
                                       .rows = rows,
                                       .columns = columns,
                                       .eps = 1e-5,
                                       .sum = p[0],
                                       .weight = p[4],
                                       .mean = p[5],
                                       .rstd = p[6],
                                       .output_gradient = p[1],
                                       .residual_gradient = residual ? p[2] : nullptr,
                                       .input_gradient = p[3],
                                       .weight_gradient = p[7],
                                       .bias_gradient = p[8],
                                       .amax = amax ? AmaxPointer(p[9]) : nullptr});
      },
      14.0 * n};
}

}  // namespace mt::conformance
