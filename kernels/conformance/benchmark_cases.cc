#include "kernels/conformance/case_makers.h"

namespace mt::conformance {
namespace {

constexpr BenchmarkModel kModels[] = {
    // name, layers, hidden, heads, kv_heads, head_dim, ffn, vocabulary, sequence, batch
    {"default", 8, 512, 8, 4, 64, 1408, 8192, 512, 4},
    {"1.3b", 24, 2048, 16, 8, 128, 6144, 32768, 4096, 4},
    {"0.4b", 24, 1024, 16, 8, 64, 3072, 32768, 2048, 16},
    {"tiny", 2, 64, 4, 2, 16, 128, 256, 32, 2},
    // One sequence or two: all experts of a layer in one memory.
    {"deepseek-v3",
     58,
     7168,
     128,
     128,
     192,
     2048,
     129280,
     4096,
     1,
     {256, 8, MT_MOE_SIGMOID, 8, 4, 128, 64, 128}},
    {"mixtral-8x7b", 32, 4096, 32, 8, 128, 14336, 32000, 4096, 2, {8, 2, MT_MOE_SOFTMAX_TOP_K}},
    {"qwen3-30b-a3b", 48, 2048, 32, 4, 128, 768, 151936, 4096, 2, {128, 8, MT_MOE_SOFTMAX}},
    {"tiny-experts", 2, 64, 4, 4, 24, 32, 256, 32, 2, {8, 2, MT_MOE_SIGMOID, 4, 2, 16, 8, 16}},
};

}  // namespace

const BenchmarkModel* FindBenchmarkModel(const std::string& name) {
  for (const BenchmarkModel& model : kModels) {
    if (name == model.name) return &model;
  }
  return nullptr;
}

std::vector<BenchmarkCase> BenchmarkCases(const BenchmarkModel& model) {
  if (model.moe.experts > 0) return ExpertBenchmarkCases(model);
  const auto [name, L, C, H, K, d, D, V, T, B, moe] = model;
  const int64_t N = T * B, chunk = std::min<int64_t>(N, std::max<int64_t>(1024, N / 8));
  const int64_t W = (H + 2 * K) * d,
                parameters = L * (C * W + H * d * C + 3 * C * D + 2 * C) + 2 * V * C + C;
  std::vector<BenchmarkCase> cases;
  const auto linear = [&](int64_t out, int64_t in, int64_t rows, int64_t times) {
    cases.push_back({Matmul({.m = rows, .n = out, .k = in, .transpose_b = true}), times});
    cases.push_back({Matmul({.m = rows, .n = in, .k = out}), times});  // dx = dy W
    // dW += dy^T x, in float32 with bfloat16 data
    Case weights =
        Matmul({.m = out, .n = in, .k = rows, .transpose_a = true, .beta = 1, .wide_output = true});
    weights.types = {MT_F32, MT_BF16};
    cases.push_back({weights, times});
  };
  linear(W, C, N, L);
  linear(C, H * d, N, L);
  linear(2 * D, C, N, L);
  linear(C, D, N, L);
  linear(V, C, chunk, N / chunk);
  cases.push_back({Attention(false, {T, B, H, K, d}), L});
  cases.push_back({Attention(true, {T, B, H, K, d}), L});
  cases.push_back({RmsNormForward(N, C, Residual::kKept), 2 * L + 1});
  cases.push_back({RmsNormBackward(N, C, true, GradientAlias::kOverResidual), 2 * L + 1});
  const Rotary rotary = {T, B, H + K, d, 0, 0, false, K * d};
  cases.push_back({Rope(rotary, false), L});
  cases.push_back({Rope(rotary, true), L});
  cases.push_back({SwigluForward(N, D), L});
  cases.push_back({SwigluBackward(N, D, true, true), L});
  cases.push_back({Embedding(false, N, C, 0, V, true), 1});
  cases.push_back({Embedding(true, N, C, 0, V, true), 1});
  cases.push_back({CrossEntropyStatistics({chunk, V, V}), N / chunk});
  cases.push_back({CrossEntropyGradient({chunk, V, V}, 0), N / chunk});
  cases.push_back({CrossEntropyCombine(chunk, 1, 0), N / chunk});
  cases.push_back({Fill(parameters), 1});
  cases.push_back({Sum(MT_OP_SQUARED_SUM, parameters, false), 1});
  Case adamw = AdamW(parameters, 100, false, ClipPointer::kFinite);
  cases.push_back({adamw, 1});
  adamw = AdamW(parameters, 100, true, ClipPointer::kFinite);
  adamw.types = {MT_BF16};
  cases.push_back({adamw, 1});
  // What only some models, types or data have. Documents: time falls with their lengths.
  for (const bool backward : {false, true})
    cases.push_back(
        {Attention(backward, {T, B, H, K, d, true, {.document = std::max<int64_t>(1, T / 8)}}), 0});
  Rotary positions = rotary;
  positions.positions = true;
  cases.push_back({Rope(positions, false), 0});
  cases.push_back({LayerNormForward(N, C, Residual::kKept), 0});
  cases.push_back({LayerNormBackward(N, C, true, GradientAlias::kOverResidual), 0});
  cases.push_back({Gelu(false, N, D, true, true), 0});
  cases.push_back({Gelu(true, N, D, true, true), 0});
  cases.push_back({QkNormRope(false, rotary), 0});
  cases.push_back({QkNormRope(true, rotary), 0});
  cases.push_back({ColumnSum(N, C, 0), 0});
  cases.push_back({Amax(N * C, 0), 0});
  cases.push_back({Quantize(N, C, MT_F8_E4M3, 4, true, true), 0});
  cases.push_back(
      {MatmulFp8({.m = N, .n = 2 * D, .k = C, .transpose_b = true}, Element::kE4M3, Element::kE4M3),
       0});
  return cases;
}

}  // namespace mt::conformance
