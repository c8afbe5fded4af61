#include <cmath>
#include <limits>

#include "kernels/conformance/case_makers.h"

namespace mt::conformance {

int32_t TypeOf(Element element, int32_t dtype) {
  switch (element) {
    case Element::kData:
      return dtype;
    case Element::kWide:
      return dtype == MT_F64 ? MT_F64 : MT_F32;
    case Element::kFloat:
      return MT_F32;
    case Element::kDouble:
      return MT_F64;
    case Element::kInt32:
      return MT_I32;
    case Element::kE4M3:
      return dtype == MT_F64 ? MT_F64 : MT_F8_E4M3;
    case Element::kE5M2:
      return dtype == MT_F64 ? MT_F64 : MT_F8_E5M2;
    case Element::kCode:
      return MT_U8;
  }
  return 0;
}

int64_t SizeOf(int32_t dtype) {
  switch (dtype) {
    case MT_F64:
    case MT_I64:
      return 8;
    case MT_F32:
    case MT_I32:
      return 4;
    case MT_BF16:
      return 2;
    default:
      return 1;
  }
}

double TrafficBytes(const Case& item, int32_t dtype) {
  double bytes = 0;
  for (const Tensor& tensor : item.tensors) {
    if (tensor.alias >= 0) continue;
    const int64_t count = tensor.traffic >= 0 ? tensor.traffic : tensor.count;
    const int64_t passes = tensor.role == Role::kUpdate ? 2 : 1;
    bytes += static_cast<double>(passes * count * SizeOf(TypeOf(tensor.element, dtype)));
  }
  return bytes;
}

std::string Name(int32_t operation, std::initializer_list<std::pair<const char*, int64_t>> sizes,
                 const std::string& option) {
  std::string name = std::string(mt_operation_name(operation)) + "/";
  for (const auto& [key, value] : sizes) name += std::string(key) + std::to_string(value) + "_";
  if (!option.empty()) return name + option;
  name.pop_back();
  return name;
}

Tensor In(const char* name, int64_t count) { return {.name = name, .count = count}; }
Tensor Out(const char* name, int64_t count) {
  return {.name = name, .count = count, .role = Role::kOutput};
}
Tensor Update(const char* name, int64_t count) {
  return {.name = name, .count = count, .role = Role::kUpdate};
}
Tensor Long(Tensor tensor, int64_t terms) {
  tensor.long_sum = true;
  tensor.terms = terms;
  return tensor;
}
Tensor As(Element element, Tensor tensor) {
  tensor.element = element;
  return tensor;
}
Tensor Wide(Tensor tensor) { return As(Element::kWide, std::move(tensor)); }
Tensor Rounded(Tensor tensor) {
  tensor.rounded = true;
  return Wide(std::move(tensor));
}
Tensor Exact(Tensor tensor) {
  tensor.exact = true;
  return tensor;
}
Tensor Around(Tensor tensor, double mean, double spread) {
  tensor.mean = mean;
  tensor.spread = spread;
  return tensor;
}
Tensor Positive(Tensor tensor) {
  tensor.value = [](double normal, int64_t) { return 0.1 + std::fabs(normal); };
  return Around(std::move(tensor), 1, 0.1);
}
Tensor Alias(Tensor tensor, int other) {
  tensor.alias = other;
  return tensor;
}
Tensor Integers(const char* name, int64_t count, int64_t low, int64_t high) {
  return {.name = name,
          .count = count,
          .element = Element::kInt32,
          .value = [=](double normal, int64_t index) {
            const auto mixed = static_cast<int64_t>(std::fabs(normal) * 1e6) + index;
            return static_cast<double>(low + mixed % (high - low));
          }};
}
Tensor Targets(int64_t rows, int64_t vocab) {
  Tensor targets = Integers("targets", rows, 0, vocab);
  const auto inner = targets.value;
  targets.value = [inner](double normal, int64_t i) {
    return i % 5 == 3 ? -1.0 : inner(normal, i);
  };
  return targets;
}
Tensor AmaxField() {
  Tensor tensor = As(Element::kFloat, Update("amax", 1));
  tensor.rounded = true;
  tensor.value = [](double normal, int64_t) { return normal > 1 ? 1e3 : std::fabs(normal) * 0.1; };
  return tensor;
}

Case Unaligned(Case item) {
  item.name += "_unaligned";
  for (Tensor& tensor : item.tensors) tensor.misaligned = 1;
  return item;
}
Case Slow(Case item) {
  item.slow = true;
  return item;
}

Case Fill(int64_t n) {
  return {Name(MT_OP_FILL, {{"count", n}}),
          MT_OP_FILL,
          {Exact(Out("data", n))},
          [=](int32_t type, void* const* p) {
            return Bytes(mt_fill_args{.dtype = type, .data = p[0], .count = n, .value = -0.3});
          }};
}

Case FillNormal(int64_t rows, int64_t columns, uint64_t first, uint64_t stride) {
  return {Name(MT_OP_FILL_NORMAL,
               {{"rows", rows}, {"columns", columns}, {"first", static_cast<int64_t>(first)}}),
          MT_OP_FILL_NORMAL,
          {Out("data", rows * columns)},
          [=](int32_t type, void* const* p) {
            return Bytes(mt_fill_normal_args{.dtype = type,
                                             .data = p[0],
                                             .rows = rows,
                                             .columns = columns,
                                             .first_index = first,
                                             .row_stride = stride,
                                             .seed = 1234,
                                             .stream = 77,
                                             .mean = 0.5,
                                             .std = 0.02});
          }};
}

Case Copy(int64_t n, Element from, Element to) {
  const auto name = [](Element element) -> std::string {
    return element == Element::kData ? "" : element == Element::kFloat ? "float" : "double";
  };
  const std::string option = from == to ? "" : name(from) + "_to_" + name(to);
  return {Name(MT_OP_COPY, {{"count", n}}, option),
          MT_OP_COPY,
          {As(from, In("source", n)), Exact(As(to, Out("destination", n)))},
          [=](int32_t type, void* const* p) {
            return Bytes(mt_copy_args{.source_dtype = TypeOf(from, type),
                                      .destination_dtype = TypeOf(to, type),
                                      .source = p[0],
                                      .destination = p[1],
                                      .count = n});
          }};
}

Case Add(int64_t n, bool alias) {
  std::vector<Tensor> tensors = {alias ? Update("a", n) : In("a", n), In("b", n)};
  tensors.push_back(Exact(alias ? Alias(Update("destination", n), 0) : Out("destination", n)));
  tensors[0].exact = alias;
  return {Name(MT_OP_ADD, {{"count", n}}, alias ? "in_place" : ""), MT_OP_ADD, tensors,
          [=](int32_t type, void* const* p) {
            return Bytes(
                mt_add_args{.dtype = type, .a = p[0], .b = p[1], .destination = p[2], .count = n});
          },
          1.0 * n};
}

Case Scale(int64_t n, bool by_pointer) {
  return {Name(MT_OP_SCALE, {{"count", n}}, by_pointer ? "by_pointer" : ""),
          MT_OP_SCALE,
          {Update("data", n), As(Element::kDouble, In("factor", 1))},
          [=](int32_t type, void* const* p) {
            return Bytes(mt_scale_args{
                .dtype = type,
                .data = p[0],
                .count = n,
                .factor = 0.375,
                .factor_pointer = by_pointer ? static_cast<const double*>(p[1]) : nullptr});
          },
          1.0 * n};
}

Case Sum(int32_t operation, int64_t n, bool accumulate) {
  Tensor result = accumulate ? Update("result", 1) : Out("result", 1);
  return {Name(operation, {{"count", n}}, accumulate ? "accumulate" : ""),
          operation,
          {In("data", n), As(Element::kDouble, result)},
          [=](int32_t type, void* const* p) {
            return Bytes(mt_squared_sum_args{.dtype = type,
                                             .data = p[0],
                                             .count = n,
                                             .result = static_cast<double*>(p[1]),
                                             .accumulate = accumulate});
          },
          2.0 * n};
}

Case ClipFactor(double squared_norm, double limit, Loss loss) {
  const auto constant = [](const char* name, double value) {
    Tensor tensor = As(Element::kDouble, In(name, 1));
    tensor.value = [=](double, int64_t) { return value; };
    return tensor;
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  Tensor factor = As(Element::kDouble, Out("factor", 1));
  factor.slack = 1e-6;  // a few operations in float64, whatever the data's type
  char option[96];
  std::snprintf(option, sizeof option, "norm%g_limit%g_loss_%s", std::sqrt(squared_norm), limit,
                loss == Loss::kNone     ? "none"
                : loss == Loss::kFinite ? "finite"
                                        : "nan");
  return {std::string("clip_factor/") + option,
          MT_OP_CLIP_FACTOR,
          {constant("squared_norm", squared_norm),
           constant("loss", loss == Loss::kNotANumber ? nan : 2.5), factor},
          [=](int32_t, void* const* p) {
            return Bytes(mt_clip_factor_args{
                .squared_norm = static_cast<const double*>(p[0]),
                .loss = loss == Loss::kNone ? nullptr : static_cast<const double*>(p[1]),
                .factor = static_cast<double*>(p[2]),
                .limit = limit});
          }};
}

Case ColumnSum(int64_t rows, int64_t columns, int64_t padding) {
  const int64_t stride = columns + padding;
  return {Name(MT_OP_COLUMN_SUM, {{"rows", rows}, {"columns", columns}, {"stride", stride}}),
          MT_OP_COLUMN_SUM,
          {In("data", rows * stride), Long(Wide(Update("result", columns)), rows)},
          [=](int32_t type, void* const* p) {
            return Bytes(mt_column_sum_args{.dtype = type,
                                            .gradient_dtype = WideType(type),
                                            .rows = rows,
                                            .columns = columns,
                                            .row_stride = stride,
                                            .data = p[0],
                                            .result = p[1]});
          },
          1.0 * rows * columns};
}

Case Amax(int64_t n, double before) {
  Tensor amax = Exact(As(Element::kFloat, Update("amax", 1)));
  amax.value = [=](double, int64_t) { return before; };
  return {Name(MT_OP_AMAX, {{"count", n}}, before > 100 ? "larger_before" : ""),
          MT_OP_AMAX,
          {In("data", n), amax},
          [=](int32_t type, void* const* p) {
            return Bytes(
                mt_amax_args{.dtype = type, .data = p[0], .count = n, .amax = AmaxPointer(p[1])});
          }};
}

Case Quantize(int64_t rows, int64_t columns, int32_t output, double amax, bool plain,
              bool transposed) {
  const int64_t n = rows * columns;
  Tensor source = In("source", n), field = As(Element::kFloat, In("amax", 1));
  // Mostly well inside; the ends and zeros are there too.
  const double size = std::isfinite(amax) ? amax : 1;
  source.value = [=](double normal, int64_t i) {
    if (i % 37 == 5) return 0.0;
    if (i % 41 == 7) return i % 2 == 0 ? size : -size;
    return std::fmax(-size,
                     std::fmin(size, normal * size * std::exp2(-static_cast<double>(i % 13))));
  };
  source.spread = size / 4;
  field.value = [=](double, int64_t) { return amax; };
  const bool finite = std::isfinite(amax);
  // What is stored with a scale that is no number does not matter.
  const auto codes = [&](const char* name, bool wanted) {
    Tensor tensor = wanted ? Exact(As(Element::kCode, Out(name, n))) : In("unused", 0);
    if (wanted && !finite) tensor.role = Role::kUnspecified;
    return tensor;
  };
  char option[64];
  std::snprintf(option, sizeof option, "%s_amax%g%s%s", output == MT_F8_E4M3 ? "e4m3" : "e5m2",
                amax, plain ? "_plain" : "", transposed ? "_transposed" : "");
  return {Name(MT_OP_QUANTIZE, {{"rows", rows}, {"columns", columns}}, option),
          MT_OP_QUANTIZE,
          {source, field, codes("output", plain), codes("transposed", transposed),
           Exact(As(Element::kFloat, Out("output_scale", 1)))},
          [=](int32_t type, void* const* p) {
            return Bytes(mt_quantize_args{.dtype = type,
                                          .output_dtype = output,
                                          .rows = rows,
                                          .columns = columns,
                                          .source = p[0],
                                          .amax = AmaxPointer(p[1]),
                                          .output = plain ? p[2] : nullptr,
                                          .transposed = transposed ? p[3] : nullptr,
                                          .output_scale = AmaxPointer(p[4])});
          }};
}

Case AdamW(int64_t n, int64_t step, bool own_parameter, ClipPointer clip) {
  const bool stays = clip == ClipPointer::kInfinite || clip == ClipPointer::kNotANumber;
  Tensor factor = As(Element::kDouble, In("gradient_scale", 1));
  if (stays) {
    const double value = clip == ClipPointer::kInfinite ? HUGE_VAL : NAN;
    factor.value = [=](double, int64_t) { return value; };
  }
  Tensor parameter = Alias(Wide(Update("parameter", n)), 0);
  if (own_parameter) parameter = stays ? Update("parameter", n) : Out("parameter", n);
  std::vector<Tensor> tensors = {Wide(Update("master", n)),
                                 parameter,
                                 Wide(In("gradient", n)),
                                 Wide(Update("exp_avg", n)),
                                 Wide(Positive(Update("exp_avg_sq", n))),
                                 factor};
  for (Tensor& tensor : tensors) tensor.exact |= stays;
  const char* options[] = {"", "by_pointer", "infinite_scale", "nan_scale"};
  Case item = {Name(MT_OP_ADAMW, {{"count", n}, {"step", step}, {"copy", own_parameter}},
                    options[static_cast<int>(clip)]),
               MT_OP_ADAMW, tensors,
               [=](int32_t type, void* const* p) {
                 return Bytes(mt_adamw_args{
                     .dtype = type,
                     .state_dtype = WideType(type),
                     .gradient_dtype = WideType(type),
                     .count = n,
                     .parameter = p[1],
                     .master = p[0],
                     .gradient = p[2],
                     .exp_avg = p[3],
                     .exp_avg_sq = p[4],
                     .lr = 3e-3,
                     .beta1 = 0.9,
                     .beta2 = 0.95,
                     .eps = 1e-8,
                     .weight_decay = 0.1,
                     .step = step,
                     .gradient_scale = 0.5,
                     .gradient_scale_pointer =
                         clip == ClipPointer::kNone ? nullptr : static_cast<const double*>(p[5])});
               },
               15.0 * n};
  if (!own_parameter) {
    item.types = {MT_F32, MT_F64};
  } else if (!stays) {
    item.original = 0;
    item.rounded_copy = 1;
  }
  return item;
}

}  // namespace mt::conformance
