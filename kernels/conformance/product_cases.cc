#include <algorithm>
#include <cmath>

#include "kernels/conformance/case_makers.h"

namespace mt::conformance {
namespace {

std::string OptionOf(const Product& size) {
  return std::string(size.transpose_a ? "t" : "n") + (size.transpose_b ? "t" : "n") +
         (size.beta != 0 ? "_accumulate" : "") + (size.padding > 0 ? "_strided" : "") +
         (size.alpha != 1 ? "_alpha" : "") + (size.bias ? "_bias" : "") +
         (size.wide_output ? "_wide" : "");
}

}  // namespace

Case Matmul(const Product& size) {
  const auto [m, n, k, ta, tb, beta, padding, alpha, bias, wide] = size;
  const int64_t lda = std::max<int64_t>(1, ta ? m : k) + padding;
  const int64_t ldb = std::max<int64_t>(1, tb ? k : n) + padding;
  const int64_t ldd = std::max<int64_t>(1, n + padding);
  const Element element = wide ? Element::kWide : Element::kData;
  Case item = {Name(MT_OP_MATMUL, {{"m", m}, {"n", n}, {"k", k}}, OptionOf(size)),
               MT_OP_MATMUL,
               {In("a", (ta ? k : m) * lda), In("b", (tb ? n : k) * ldb),
                As(element, Long(beta != 0 ? Update("d", m * ldd) : Out("d", m * ldd))),
                As(element, In("bias", bias ? n : 0))},
               [=](int32_t type, void* const* p) {
                 return Bytes(mt_matmul_args{.dtype = type,
                                             .output_dtype = TypeOf(element, type),
                                             .transpose_a = size.transpose_a,
                                             .transpose_b = size.transpose_b,
                                             .m = size.m,
                                             .n = size.n,
                                             .k = size.k,
                                             .a = p[0],
                                             .lda = lda,
                                             .b = p[1],
                                             .ldb = ldb,
                                             .d = p[2],
                                             .ldd = ldd,
                                             .alpha = size.alpha,
                                             .beta = size.beta,
                                             .bias = size.bias ? p[3] : nullptr});
               },
               2.0 * m * n * k};
  if (wide) item.types = {MT_BF16};
  // Tensor cores cut the bits of a sum off where float32 would round: a little to one side at every step.
  if (wide) item.tensors[2].slack = 4;
  return item;
}

Case MatmulFp8(const Product& size, Element a, Element b) {
  constexpr double kScaleA = 0.0625, kScaleB = 1.5;
  const auto [m, n, k, ta, tb, beta, padding, alpha, bias, wide] = size;
  const int64_t lda = std::max<int64_t>(1, ta ? m : k) + padding;
  const int64_t ldb = std::max<int64_t>(1, tb ? k : n) + padding;
  const int64_t ldd = n + padding;
  const auto scale = [](const char* name, double value) {
    Tensor tensor = As(Element::kFloat, In(name, 1));
    tensor.value = [=](double, int64_t) { return value; };
    return tensor;
  };
  const std::string option = OptionOf(size) + (a == Element::kE4M3 ? "_e4m3" : "_e5m2") +
                             (b == Element::kE4M3 ? "_e4m3" : "_e5m2");
  Case item = {Name(MT_OP_MATMUL, {{"m", m}, {"n", n}, {"k", k}}, option),
               MT_OP_MATMUL,
               {As(a, In("a", (ta ? k : m) * lda)), As(b, In("b", (tb ? n : k) * ldb)),
                Long(beta != 0 ? Update("d", m * ldd) : Out("d", m * ldd)),
                In("bias", bias ? n : 0), scale("a_scale", kScaleA), scale("b_scale", kScaleB)},
               [=](int32_t type, void* const* p) {
                 const bool exact =
                     type == MT_F64;  // the reference multiplies the numbers that the codes mean
                 mt_matmul_args args = {
                     .dtype = TypeOf(a, type),
                     .output_dtype = type,
                     .transpose_a = size.transpose_a,
                     .transpose_b = size.transpose_b,
                     .m = size.m,
                     .n = size.n,
                     .k = size.k,
                     .a = p[0],
                     .lda = lda,
                     .b = p[1],
                     .ldb = ldb,
                     .d = p[2],
                     .ldd = ldd,
                     .alpha = exact ? size.alpha * kScaleA * kScaleB : size.alpha,
                     .beta = size.beta,
                     .b_dtype = TypeOf(b, type),
                     .bias = size.bias ? p[3] : nullptr};
                 if (!exact) {
                   args.a_scale = AmaxPointer(p[4]);
                   args.b_scale = AmaxPointer(p[5]);
                 }
                 return Bytes(args);
               },
               2.0 * m * n * k};
  item.types = {MT_F32, MT_BF16};
  return item;
}

Case CrossEntropyStatistics(const Logits& size) {
  const auto [rows, columns, valid, start, padding] = size;
  const int64_t stride = columns + padding;
  return {Name(MT_OP_CROSS_ENTROPY_STATISTICS,
               {{"rows", rows}, {"columns", columns}, {"valid", valid}, {"start", start}}),
          MT_OP_CROSS_ENTROPY_STATISTICS,
          {Around(In("logits", rows * stride), 0, 4), Targets(rows, start + columns + 10),
           Wide(Out("maximum", rows)), Wide(Out("sum", rows)), Wide(Out("target_logit", rows))},
          [=](int32_t type, void* const* p) {
            return Bytes(mt_cross_entropy_args{.dtype = type,
                                               .rows = size.rows,
                                               .columns = size.columns,
                                               .valid_columns = size.valid,
                                               .row_stride = stride,
                                               .vocab_start = size.start,
                                               .logits = p[0],
                                               .targets = static_cast<const int32_t*>(p[1]),
                                               .maximum = p[2],
                                               .sum = p[3],
                                               .target_logit = p[4]});
          },
          12.0 * rows * columns};
}

Case CrossEntropyGradient(const Logits& size, double z_loss, bool scale_by_pointer) {
  const auto [rows, columns, valid, start, padding] = size;
  const int64_t stride = columns + padding;
  std::string option = z_loss != 0 ? "z_loss" : "";
  if (scale_by_pointer) option += option.empty() ? "by_pointer" : "_by_pointer";
  Tensor loss_scale = As(Element::kDouble, In("loss_scale", 1));
  loss_scale.value = [](double, int64_t) { return 3.7; };
  return {
      Name(MT_OP_CROSS_ENTROPY_GRADIENT,
           {{"rows", rows}, {"columns", columns}, {"valid", valid}, {"start", start}}, option),
      MT_OP_CROSS_ENTROPY_GRADIENT,
      {Around(Update("logits", rows * stride), 0, 2), Targets(rows, start + columns + 10),
       Wide(Around(In("lse", rows), 9, 0.3)), loss_scale},
      [=](int32_t type, void* const* p) {
        return Bytes(mt_cross_entropy_args{
            .dtype = type,
            .rows = size.rows,
            .columns = size.columns,
            .valid_columns = size.valid,
            .row_stride = stride,
            .vocab_start = size.start,
            .logits = p[0],
            .targets = static_cast<const int32_t*>(p[1]),
            .lse = p[2],
            .loss_scale = 0.125,
            .z_loss = z_loss,
            .loss_scale_pointer = scale_by_pointer ? static_cast<const double*>(p[3]) : nullptr});
      },
      12.0 * rows * columns};
}

Case CrossEntropyCombine(int64_t rows, int64_t world, double z_loss) {
  return {Name(MT_OP_CROSS_ENTROPY_COMBINE, {{"rows", rows}, {"world", world}},
               z_loss != 0 ? "z_loss" : ""),
          MT_OP_CROSS_ENTROPY_COMBINE,
          {Wide(Around(In("maximum", rows * world), 8, 1)), Wide(Positive(In("sum", rows * world))),
           Wide(In("target_logit", rows * world)), Targets(rows, 100), Wide(Out("lse", rows)),
           Wide(Out("row_loss", rows))},
          [=](int32_t type, void* const* p) {
            return Bytes(mt_cross_entropy_combine_args{.dtype = type,
                                                       .rows = rows,
                                                       .world = world,
                                                       .maximum = p[0],
                                                       .sum = p[1],
                                                       .target_logit = p[2],
                                                       .targets = static_cast<const int32_t*>(p[3]),
                                                       .lse = p[4],
                                                       .row_loss = p[5],
                                                       .z_loss = z_loss});
          },
          20.0 * rows * world};
}

}  // namespace mt::conformance
