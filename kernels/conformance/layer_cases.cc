#include <cmath>

#include "kernels/conformance/case_makers.h"

namespace mt::conformance {

Case Embedding(bool backward, int64_t rows, int64_t columns, int64_t start, int64_t vocab,
               bool words) {
  const int32_t operation = backward ? MT_OP_EMBEDDING_BACKWARD : MT_OP_EMBEDDING_FORWARD;
  Tensor ids = Integers("ids", rows, 0, start + vocab + vocab / 4 + 1);
  if (words) {
    // Rank r with probability about 1/r (Zipf): the first rows are hit all the time.
    ids.value = [=](double normal, int64_t) {
      const double uniform = 0.5 * std::erfc(-normal * M_SQRT1_2);
      const double rank = std::exp(uniform * std::log(static_cast<double>(vocab)));
      return static_cast<double>(start + std::min<int64_t>(vocab, static_cast<int64_t>(rank)) - 1);
    };
  }
  Tensor table = In("table", backward ? 0 : vocab * columns);
  table.traffic = backward ? 0 : rows * columns;
  Tensor gradient =
      backward ? Long(Wide(Update("table_gradient", vocab * columns))) : In("unused", 0);
  gradient.traffic = backward ? std::min(rows, vocab) * columns : 0;
  gradient.slack = words ? 8 : 1;  // thousands of terms one after the other
  return {Name(operation, {{"rows", rows}, {"columns", columns}, {"start", start}},
               words ? "words" : ""),
          operation,
          {ids, table,
           backward ? In("output_gradient", rows * columns) : Exact(Out("output", rows * columns)),
           gradient},
          [=](int32_t type, void* const* p) {
            return Bytes(mt_embedding_args{.dtype = type,
                                           .gradient_dtype = WideType(type),
                                           .ids = static_cast<const int32_t*>(p[0]),
                                           .rows = rows,
                                           .columns = columns,
                                           .vocab_start = start,
                                           .vocab_rows = vocab,
                                           .table = p[1],
                                           .output = backward ? nullptr : p[2],
                                           .output_gradient = backward ? p[2] : nullptr,
                                           .table_gradient = backward ? p[3] : nullptr});
          }};
}

namespace {

std::string RotaryName(int32_t operation, const Rotary& size, const std::string& option) {
  std::string options = size.rotary_dim != 0 ? "r" + std::to_string(size.rotary_dim) : "";
  if (size.interleaved) options += options.empty() ? "interleaved" : "_interleaved";
  if (size.padding != 0)
    options += std::string(options.empty() ? "" : "_") + "pad" + std::to_string(size.padding);
  if (size.positions) options += options.empty() ? "positions" : "_positions";
  if (!option.empty()) options += (options.empty() ? "" : "_") + option;
  return Name(operation,
              {{"t", size.sequence},
               {"b", size.batch},
               {"h", size.heads},
               {"d", size.head_dim},
               {"first", size.first}},
              options);
}

Tensor Table(const Rotary& size) {
  const int64_t rotated = size.rotary_dim != 0 ? size.rotary_dim : size.head_dim;
  return Wide(In("cos_sin", (size.first + size.sequence) * rotated));
}

Tensor Positions(const Rotary& size) {
  return Integers("positions", size.positions ? size.sequence * size.batch : 0, 0,
                  size.first + size.sequence);
}
const int32_t* PositionsAt(const Rotary& size, const void* pointer) {
  return size.positions ? static_cast<const int32_t*>(pointer) : nullptr;
}

}  // namespace

Case Rope(const Rotary& size, bool inverse) {
  const int64_t stride = size.heads * size.head_dim + size.padding;
  const int64_t elements = size.sequence * size.batch * size.heads * size.head_dim;
  Tensor data = Update("data", size.sequence * size.batch * stride);
  data.traffic = elements;
  return {RotaryName(MT_OP_ROPE, size, inverse ? "inverse" : ""),
          MT_OP_ROPE,
          {data, Table(size), Positions(size)},
          [=](int32_t type, void* const* p) {
            return Bytes(mt_rope_args{.dtype = type,
                                      .data = p[0],
                                      .sequence = size.sequence,
                                      .batch = size.batch,
                                      .heads = size.heads,
                                      .head_dim = size.head_dim,
                                      .row_stride = stride,
                                      .first_position = size.first,
                                      .cos_sin = p[1],
                                      .inverse = inverse,
                                      .rotary_dim = size.rotary_dim,
                                      .interleaved = size.interleaved,
                                      .positions = PositionsAt(size, p[2])});
          },
          3.0 * elements};
}

Case QkNormRope(bool backward, const Rotary& size, bool in_place) {
  const int32_t operation = backward ? MT_OP_QK_NORM_ROPE_BACKWARD : MT_OP_QK_NORM_ROPE_FORWARD;
  const int64_t d = size.head_dim, rows = size.sequence * size.batch, width = size.heads * d;
  // dx may be dy: then both have one stride.
  const int64_t y_stride = width + (in_place ? size.padding : 0), x_stride = width + size.padding;
  std::vector<Tensor> tensors = {
      Table(size), In("weight", d), In("x", rows * x_stride),
      Wide(backward ? Positive(In("rstd", rows * size.heads)) : Out("rstd", rows * size.heads))};
  if (backward) {
    tensors.push_back(in_place ? Long(Update("output_gradient", rows * y_stride))
                               : In("output_gradient", rows * y_stride));
    tensors.push_back(Long(in_place ? Alias(Update("input_gradient", rows * x_stride), 4)
                                    : Out("input_gradient", rows * x_stride)));
    tensors.push_back(Long(Wide(Update("weight_gradient", d)), rows * size.heads));
  } else {
    tensors.push_back(Long(Out("y", rows * y_stride)));
  }
  for (Tensor& tensor : tensors) {
    if (tensor.count == rows * x_stride || tensor.count == rows * y_stride)
      tensor.traffic = rows * width;
  }
  const size_t positions = tensors.size();
  tensors.push_back(Positions(size));
  return {RotaryName(operation, size, in_place ? "in_place" : ""), operation, tensors,
          [=](int32_t type, void* const* p) {
            mt_qk_norm_rope_args a = {.dtype = type,
                                      .gradient_dtype = WideType(type),
                                      .sequence = size.sequence,
                                      .batch = size.batch,
                                      .heads = size.heads,
                                      .head_dim = d,
                                      .x_stride = x_stride,
                                      .y_stride = y_stride,
                                      .first_position = size.first,
                                      .rotary_dim = size.rotary_dim,
                                      .interleaved = size.interleaved,
                                      .eps = 1e-2,
                                      .cos_sin = p[0],
                                      .weight = p[1],
                                      .x = p[2],
                                      .rstd = p[3]};
            if (backward) {
              a.output_gradient = p[4];
              a.input_gradient = p[5];
              a.weight_gradient = p[6];
            } else {
              a.y = p[4];
            }
            a.positions = PositionsAt(size, p[positions]);
            return Bytes(a);
          },
          10.0 * rows * width};
}

namespace {

std::string SwigluOption(const char* place, bool amax, const Gate& gate) {
  const bool other = gate.limit != 0 || gate.alpha != 0 || gate.offset != 0;
  return std::string(place) + (amax ? "amax" : "") + (other ? "clamped" : "");
}

}  // namespace

Case SwigluForward(int64_t rows, int64_t columns, bool amax, const Gate& gate) {
  const int64_t n = rows * columns;
  return {Name(MT_OP_SWIGLU_FORWARD, {{"rows", rows}, {"columns", columns}},
               SwigluOption("", amax, gate)),
          MT_OP_SWIGLU_FORWARD,
          {Around(In("gate_up", 2 * n), 0, 3), Out("output", n), AmaxField()},
          [=](int32_t type, void* const* p) {
            return Bytes(mt_swiglu_args{.dtype = type,
                                        .rows = rows,
                                        .columns = columns,
                                        .gate_up = p[0],
                                        .output = p[1],
                                        .amax = amax ? AmaxPointer(p[2]) : nullptr,
                                        .limit = gate.limit,
                                        .alpha = gate.alpha,
                                        .offset = gate.offset});
          },
          20.0 * n};
}

Case SwigluBackward(int64_t rows, int64_t columns, bool in_place, bool recompute, bool amax,
                    const Gate& gate) {
  const int64_t n = rows * columns;
  std::vector<Tensor> tensors = {
      Around(in_place ? Update("gate_up", 2 * n) : In("gate_up", 2 * n), 0, 3),
      In("output_gradient", n)};
  tensors.push_back(in_place ? Alias(Update("gate_up_gradient", 2 * n), 0)
                             : Out("gate_up_gradient", 2 * n));
  tensors.push_back(recompute ? Out("output", n) : In("unused", 0));
  tensors.push_back(AmaxField());
  return {
      Name(MT_OP_SWIGLU_BACKWARD, {{"rows", rows}, {"columns", columns}, {"recompute", recompute}},
           SwigluOption(in_place ? "in_place" : "", amax, gate)),
      MT_OP_SWIGLU_BACKWARD, tensors,
      [=](int32_t type, void* const* p) {
        return Bytes(mt_swiglu_args{.dtype = type,
                                    .rows = rows,
                                    .columns = columns,
                                    .gate_up = p[0],
                                    .output = recompute ? p[3] : nullptr,
                                    .output_gradient = p[1],
                                    .gate_up_gradient = p[2],
                                    .amax = amax ? AmaxPointer(p[4]) : nullptr,
                                    .limit = gate.limit,
                                    .alpha = gate.alpha,
                                    .offset = gate.offset});
      },
      25.0 * n};
}

Case Gelu(bool backward, int64_t rows, int64_t columns, bool bias, bool tanh, int over, bool amax) {
  const int32_t operation = backward ? MT_OP_GELU_BACKWARD : MT_OP_GELU_FORWARD;
  const int64_t n = rows * columns;
  std::vector<Tensor> tensors = {
      Around(over == 1 ? Update("x", n) : In("x", n), 0, 2), In("bias", bias ? columns : 0),
      over == 2 ? Update("output_gradient", n) : In("output_gradient", backward ? n : 0)};
  const char* result = backward ? "input_gradient" : "output";
  tensors.push_back(over == 0 ? Out(result, n) : Alias(Update(result, n), over == 1 ? 0 : 2));
  tensors.push_back(AmaxField());
  const char* places[] = {"", "_over_x", "_over_output"};
  const std::string option = std::string(tanh ? "tanh" : "erf") + (bias ? "_bias" : "") +
                             places[over] + (amax ? "_amax" : "");
  return {Name(operation, {{"rows", rows}, {"columns", columns}}, option), operation, tensors,
          [=](int32_t type, void* const* p) {
            return Bytes(mt_gelu_args{.dtype = type,
                                      .rows = rows,
                                      .columns = columns,
                                      .x = p[0],
                                      .bias = bias ? p[1] : nullptr,
                                      .output = backward ? nullptr : p[3],
                                      .output_gradient = backward ? p[2] : nullptr,
                                      .input_gradient = backward ? p[3] : nullptr,
                                      .tanh_approximation = tanh,
                                      .amax = amax ? AmaxPointer(p[4]) : nullptr});
          },
          25.0 * n};
}

}  // namespace mt::conformance
