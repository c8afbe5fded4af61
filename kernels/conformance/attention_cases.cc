#include <array>
#include <cmath>

#include "kernels/abi/attention_shape.h"
#include "kernels/abi/philox.h"
#include "kernels/conformance/case_makers.h"
#include "kernels/conformance/cost.h"

namespace mt::conformance {
namespace {

// Which tensor of the case is what; in backward o, lse and its gradient are given.
enum Index : size_t {
  kQ,
  kK,
  kV,
  kSinks,
  kDocuments,
  kO,
  kLse,
  kOGradient,
  kDq,
  kDk,
  kDv,
  kSinksGradient
};

// Where the heads of one thing lie: element (t, b, h, j) of `tensor` at offset + (t B + b) stride + h head_dim + j.
struct View {
  size_t tensor;
  int64_t offset, stride, head_dim, batch;
  int64_t At(int64_t t, int64_t b, int64_t h) const {
    return offset + (t * batch + b) * stride + h * head_dim;
  }
};
struct Layout {
  View q, k, v, o, dq, dk, dv;
};

mt_attention_args SizesOf(const Attend& size) {
  return {.sequence = size.sequence,
          .batch = size.batch,
          .heads = size.heads,
          .kv_heads = size.kv_heads,
          .head_dim = size.head_dim,
          .scale = 1 / std::sqrt(static_cast<double>(size.head_dim)),
          .causal = size.causal,
          .v_head_dim = size.traits.v_head_dim,
          .window = size.traits.window,
          .key_sequence = size.traits.key_sequence};
}

// q, k, v are views of one packed tensor, or of three; the gradients too.
Layout LayoutOf(const Attend& size) {
  const mt_attention_args args = SizesOf(size);
  const int64_t B = size.batch, d = size.head_dim, d_v = mt_attention_v_head_dim(&args);
  const int64_t q = size.heads * d, k = size.kv_heads * d, v = size.kv_heads * d_v;
  const View o = {kO, 0, size.heads * d_v + (size.sequence % 2 ? 3 : 0), d_v, B};
  if (size.traits.apart || size.traits.key_sequence != 0) {
    return {{kQ, 0, q + 8, d, B},  {kK, 0, k, d, B},  {kV, 0, v + 16, d_v, B}, o,
            {kDq, 0, q + 8, d, B}, {kDk, 0, k, d, B}, {kDv, 0, v + 16, d_v, B}};
  }
  const int64_t width = q + k + v;
  return {{kQ, 0, width, d, B},  {kQ, q, width, d, B},  {kQ, q + k, width, d_v, B}, o,
          {kDq, 0, width, d, B}, {kDq, q, width, d, B}, {kDq, q + k, width, d_v, B}};
}

// Where the document of every token (t, b) begins: lengths of 1 to 2 document - 1, other ones in each sequence.
std::vector<int32_t> DocumentStarts(const Attend& size) {
  const int64_t mean = size.traits.document;
  std::vector<int32_t> starts(mean != 0 ? size.sequence * size.batch : 0);
  for (int64_t b = 0; mean != 0 && b < size.batch; ++b) {
    int64_t start = 0, next = 0;
    for (int64_t t = 0; t < size.sequence; ++t) {
      if (t == next) {
        start = t;
        next += 1 + mt_philox(0, t, b).word[0] % (2 * mean - 1);
      }
      starts[t * size.batch + b] = static_cast<int32_t>(start);
    }
  }
  return starts;
}
Tensor Documents(const Attend& size) {
  const auto starts = std::make_shared<std::vector<int32_t>>(DocumentStarts(size));
  Tensor tensor = As(Element::kInt32, In("document_start", static_cast<int64_t>(starts->size())));
  tensor.value = [=](double, int64_t index) { return (*starts)[static_cast<size_t>(index)]; };
  return tensor;
}
// Of the pairs of a query and a key that it sees, those of one document; half a key per query is not counted, as in VisiblePairs.
double DocumentShare(const Attend& size) {
  if (size.traits.document == 0 || size.sequence * size.batch == 0) return 1;
  const mt_attention_args args = SizesOf(size);
  double pairs = 0;
  int64_t index = 0;
  for (const int32_t start : DocumentStarts(size)) {
    const int64_t t = index++ / size.batch;
    pairs += std::min(static_cast<double>(t - start) + 0.5,
                      static_cast<double>(args.window != 0 ? args.window : args.sequence));
  }
  return pairs / (static_cast<double>(size.batch) * VisiblePairs(args));
}

double Dot(const double* a, const double* b, int64_t count) {
  double sum = 0;
  for (int64_t j = 0; j < count; ++j) sum += a[j] * b[j];
  return sum;
}

// squares[j] += (factor row[j])^2
void AddSquares(double factor, const double* row, int64_t count, double* squares) {
  for (int64_t j = 0; j < count; ++j) squares[j] += factor * row[j] * factor * row[j];
}

// One query of one head: adds the squares of the terms that it has in the sums of o, or of dq, dk and dv.
void AddTerms(const mt_attention_args& args, const Layout& at, bool backward, int64_t b, int64_t h,
              int64_t t, const Values& in, Values& squares) {
  const int64_t d = args.head_dim, d_v = mt_attention_v_head_dim(&args),
                kv = h / (args.heads / args.kv_heads);
  int64_t begin = mt_attention_begin(&args, t);
  const int64_t end = mt_attention_end(&args, t);
  if (!in[kDocuments].empty())
    begin = std::max(begin, static_cast<int64_t>(in[kDocuments][t * args.batch + b]));
  const double* q = &in[kQ][at.q.At(t, b, h)];
  const auto key = [&](int64_t s) { return &in[at.k.tensor][at.k.At(s, b, kv)]; };
  const auto value = [&](int64_t s) { return &in[at.v.tensor][at.v.At(s, b, kv)]; };
  if (!backward) {
    double sum = in[kSinks].empty() ? 0 : std::exp(in[kSinks][h]);
    for (int64_t s = begin; s < end; ++s) sum += std::exp(args.scale * Dot(q, key(s), d));
    for (int64_t s = begin; s < end; ++s)
      AddSquares(std::exp(args.scale * Dot(q, key(s), d)) / sum, value(s), d_v,
                 &squares[kO][at.o.At(t, b, h)]);
    return;
  }
  const double* o_gradient = &in[kOGradient][at.o.At(t, b, h)];
  const double delta = Dot(o_gradient, &in[kO][at.o.At(t, b, h)], d_v),
               lse = in[kLse][(b * args.heads + h) * args.sequence + t];
  for (int64_t s = begin; s < end; ++s) {
    const double p = std::exp(args.scale * Dot(q, key(s), d) - lse),
                 ds = args.scale * p * (Dot(o_gradient, value(s), d_v) - delta);
    AddSquares(ds, key(s), d, &squares[at.dq.tensor][at.dq.At(t, b, h)]);
    AddSquares(ds, q, d, &squares[at.dk.tensor][at.dk.At(s, b, kv)]);
    AddSquares(p, o_gradient, d_v, &squares[at.dv.tensor][at.dv.At(s, b, kv)]);
  }
}

// Tensor::term_norms of `tensor`. Not an oracle: it says how large errors may be, not what is right.
std::vector<double> TermNorms(const Attend& size, bool backward, const Values& inputs,
                              size_t tensor) {
  const mt_attention_args args = SizesOf(size);
  const Layout layout = LayoutOf(size);
  Values squares;
  for (const std::vector<double>& each : inputs) squares.emplace_back(each.size(), 0.0);
  for (int64_t b = 0; b < args.batch; ++b) {
    for (int64_t h = 0; h < args.heads; ++h) {
      for (int64_t t = 0; t < args.sequence; ++t)
        AddTerms(args, layout, backward, b, h, t, inputs, squares);
    }
  }
  for (double& square : squares[tensor]) square = std::sqrt(square);
  return squares[tensor];
}

std::vector<Tensor> Tensors(bool backward, const Attend& size) {
  const mt_attention_args args = SizesOf(size);
  const Layout at = LayoutOf(size);
  const bool packed = at.k.tensor == kQ;
  const int64_t rows = size.sequence * size.batch, key_rows = mt_attention_keys(&args) * size.batch;
  const int64_t q = rows * at.q.stride, k = packed ? 0 : key_rows * at.k.stride,
                v = packed ? 0 : key_rows * at.v.stride, o = rows * at.o.stride;
  const int64_t lse = size.batch * size.heads * size.sequence,
                sinks = size.traits.sinks ? size.heads : 0;
  const double sink = size.traits.sinks.value_or(0);
  // A sum of `tensor`'s elements whose terms were rounded.
  const auto rounded_terms = [=](Tensor out, size_t tensor) {
    out = Long(std::move(out));
    out.term_norms = [=](const Values& inputs) {
      return TermNorms(size, backward, inputs, tensor);
    };
    return out;
  };
  std::vector<Tensor> tensors = {In(packed ? "qkv" : "q", q), In("k", k), In("v", v),
                                 Around(In("sinks", sinks), sink, 1), Documents(size)};
  if (!backward) {
    tensors.push_back(rounded_terms(Out("o", o), kO));
    tensors.push_back(Wide(Out("lse", lse)));
    return tensors;
  }
  const double about = std::log(static_cast<double>(size.sequence)) + 1;
  tensors.push_back(In("o", o));
  tensors.push_back(Wide(Around(In("lse", lse), std::max(about, sink + 1), 0.2)));
  tensors.push_back(In("o_gradient", o));
  tensors.push_back(rounded_terms(Out(packed ? "qkv_gradient" : "dq", q), kDq));
  tensors.push_back(rounded_terms(Out("dk", k), kDk));
  tensors.push_back(rounded_terms(Out("dv", v), kDv));
  tensors.push_back(Long(Wide(Update("sinks_gradient", sinks))));
  return tensors;
}

std::string OptionOf(const Attend& size) {
  std::string option = size.causal ? "causal" : "full";
  const auto add = [&option](const char* name, int64_t value) {
    if (value != 0) option += std::string("_") + name + std::to_string(value);
  };
  add("v", size.traits.v_head_dim);
  add("window", size.traits.window);
  add("keys", size.traits.key_sequence);
  if (size.traits.sinks)
    option += "_sinks" + std::to_string(static_cast<int64_t>(*size.traits.sinks));
  add("documents", size.traits.document);
  return option + (size.traits.apart ? "_apart" : "");
}

}  // namespace

Case Attention(bool backward, const Attend& size) {
  const int32_t operation = backward ? MT_OP_ATTENTION_BACKWARD : MT_OP_ATTENTION_FORWARD;
  const Layout at = LayoutOf(size);
  const auto arguments = [=](int32_t type, void* const* p) {
    const auto place = [=](const View& view) -> void* {
      return static_cast<char*>(p[view.tensor]) + SizeOf(type) * view.offset;
    };
    mt_attention_args a = SizesOf(size);
    a.dtype = type;
    a.q = place(at.q);
    a.k = place(at.k);
    a.v = place(at.v);
    a.o = place(at.o);
    a.q_stride = a.dq_stride = at.q.stride;
    a.k_stride = a.dk_stride = at.k.stride;
    a.v_stride = a.dv_stride = at.v.stride;
    a.o_stride = a.o_gradient_stride = at.o.stride;
    a.lse = p[kLse];
    a.sinks = size.traits.sinks ? p[kSinks] : nullptr;
    if (size.traits.document != 0) a.document_start = static_cast<const int32_t*>(p[kDocuments]);
    if (!backward) return Bytes(a);
    a.o_gradient = p[kOGradient];
    a.dq = place(at.dq);
    a.dk = place(at.dk);
    a.dv = place(at.dv);
    a.sinks_gradient = size.traits.sinks ? p[kSinksGradient] : nullptr;
    a.sinks_gradient_dtype = size.traits.sinks ? WideType(type) : 0;
    return Bytes(a);
  };
  const std::array<void*, kSinksGradient + 1> nowhere = {};
  const std::vector<char> shape = arguments(MT_F32, nowhere.data());
  return {Name(operation,
               {{"t", size.sequence},
                {"b", size.batch},
                {"h", size.heads},
                {"k", size.kv_heads},
                {"d", size.head_dim}},
               OptionOf(size)),
          operation, Tensors(backward, size), arguments,
          CostOf(operation, shape.data()).flops * DocumentShare(size)};
}

// Where tiles, groups and strides go wrong. Rows of odd sequences are not aligned, which tensor cores leave to others.
std::vector<Case> AttentionCases() {
  std::vector<Case> cases;
  for (const bool backward : {false, true}) {
    const auto add = [&](const Attend& size) { cases.push_back(Attention(backward, size)); };
    for (const bool causal : {true, false}) {
      for (const auto& [T, B, H, K, d] : std::vector<std::array<int64_t, 5>>{{1, 1, 1, 1, 2},
                                                                             {5, 2, 2, 1, 3},
                                                                             {33, 2, 4, 2, 8},
                                                                             {70, 1, 3, 3, 16},
                                                                             {65, 1, 4, 2, 64},
                                                                             {129, 1, 2, 1, 128},
                                                                             {24, 2, 2, 2, 80},
                                                                             {130, 2, 8, 2, 20}}) {
        add({T, B, H, K, d, causal});
      }
    }
    add({0, 2, 2, 1, 8});
    add({3, 0, 2, 1, 8});
    add({20, 1, 1, 1, 256});
    add({36, 2, 4, 2, 64, true, {.apart = true}});
    cases.push_back(Unaligned(Attention(backward, {34, 1, 2, 1, 64})));
    cases.push_back(Slow(Attention(backward, {1100, 1, 2, 1, 8})));
    cases.push_back(Slow(Attention(backward, {1100, 1, 2, 1, 64, false})));
    // Smaller than a tile, of its size, larger; as long as the sequence and longer.
    for (const int64_t window : {1, 17, 63, 64, 65, 129, 130, 131, 1000})
      add({130, 1, 2, 1, 64, true, {.window = window}});
    for (const int64_t window : {2, 32, 47, 48, 100})
      add({200, 1, 2, 1, 128, true, {.window = window}});
    add({193, 1, 6, 2, 20, true, {.window = 64}});
    add({150, 1, 2, 1, 96, true, {.window = 33}});
    add({70, 1, 2, 2, 256, true, {.window = 31}});
    cases.push_back(Slow(Attention(backward, {1100, 1, 2, 1, 16, true, {.window = 512}})));
    cases.push_back(
        Slow(Attention(backward, {1100, 1, 2, 1, 64, true, {.window = 700, .sinks = 0}})));
    for (const bool causal : {true, false}) {
      add({66, 2, 2, 2, 192, causal, {.v_head_dim = 128, .apart = true}});
      add({40, 1, 4, 2, 16, causal, {.v_head_dim = 64}});
    }
    add({130, 1, 4, 2, 192, true, {.v_head_dim = 128, .window = 40}});
    add({65, 1, 2, 2, 24, true, {.v_head_dim = 16}});
    add({34, 1, 2, 1, 128, true, {.v_head_dim = 64}});
    add({20, 1, 2, 1, 40, true, {.v_head_dim = 33}});
    add({12, 1, 1, 1, 256, true, {.v_head_dim = 200}});
    for (const double mean : {0.0, 40.0, -60.0}) {
      add({70, 2, 4, 2, 64, true, {.sinks = mean}});
      add({33, 2, 4, 2, 8, true, {.window = 5, .sinks = mean}});
    }
    add({50, 1, 3, 1, 128, false, {.sinks = 1}});
    add({130, 1, 8, 2, 64, true, {.window = 33, .sinks = 0}});
    add({66, 2, 2, 1, 192, true, {.v_head_dim = 128, .window = 9, .sinks = 0, .apart = true}});
    cases.push_back(
        Unaligned(Attention(backward, {34, 1, 2, 1, 64, true, {.window = 7, .sinks = 0}})));
    // Documents of one token, shorter than a tile, about its size, longer; the last has the sequence to itself.
    for (const int64_t document : {1, 30, 100000})
      add({130, 2, 2, 1, 64, true, {.document = document}});
    for (const int64_t document : {5, 64, 150})
      add({200, 1, 2, 1, 64, true, {.document = document}});
    add({140, 1, 4, 2, 20, true, {.document = 50}});
    add({100, 2, 1, 1, 128, true, {.window = 20, .document = 40}});
    add({70, 1, 2, 1, 96, true, {.sinks = 0, .document = 20}});
    add({66, 2, 1, 1, 192, true, {.v_head_dim = 128, .apart = true, .document = 20}});
    add({40, 1, 2, 2, 256, true, {.document = 15}});
    add({5, 2, 2, 1, 3, true, {.document = 2}});
    add({0, 2, 2, 1, 8, true, {.document = 2}});
    cases.push_back(Unaligned(Attention(backward, {34, 1, 2, 1, 64, true, {.document = 9}})));
    cases.push_back(Slow(Attention(backward, {1100, 1, 2, 1, 64, true, {.document = 150}})));
    cases.push_back(
        Slow(Attention(backward, {1100, 2, 1, 1, 16, true, {.window = 300, .document = 400}})));
  }
  for (const Attend& size : std::vector<Attend>{
           {1, 2, 8, 2, 64, true, {.key_sequence = 1}},
           {1, 2, 8, 2, 64, true, {.key_sequence = 77}},
           {1, 1, 4, 4, 128, true, {.key_sequence = 600}},
           {1, 3, 4, 1, 64, true, {.window = 100, .key_sequence = 1030}},
           {1, 2, 4, 1, 64, true, {.window = 100, .key_sequence = 1030, .sinks = 0}},
           {2, 1, 4, 2, 64, true, {.key_sequence = 1100, .sinks = 0}},
           {1, 1, 2, 2, 192, true, {.v_head_dim = 128, .key_sequence = 300}},
           {7, 2, 4, 2, 20, true, {.key_sequence = 70, .sinks = 40}},
           {66, 1, 2, 1, 64, true, {.key_sequence = 200}},
           {64, 1, 4, 2, 128, true, {.window = 64, .key_sequence = 200}},
           {20, 2, 2, 1, 96, true, {.window = 3, .key_sequence = 20}},
           {6, 1, 2, 1, 16, false, {.key_sequence = 33}},
           {0, 1, 2, 1, 16, true, {.key_sequence = 33}}}) {
    cases.push_back(Attention(false, size));
  }
  return cases;
}

}  // namespace mt::conformance
