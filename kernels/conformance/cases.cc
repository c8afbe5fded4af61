// The table.
#include "kernels/conformance/cases.h"

#include <array>
#include <cmath>
#include <limits>

#include "kernels/conformance/case_makers.h"

namespace mt::conformance {
namespace {

using Cases = std::vector<Case>;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

void AddElementwise(Cases& cases) {
  for (const int64_t n : {0, 1, 17, 1000, 200003}) {
    cases.push_back(Fill(n));
    for (const Element element : {Element::kFloat, Element::kDouble}) {
      cases.push_back(Copy(n, Element::kData, element));
      cases.push_back(Copy(n, element, Element::kData));
    }
    cases.push_back(Copy(n, Element::kData, Element::kData));
    cases.push_back(Add(n, false));
    cases.push_back(Add(n, true));
    cases.push_back(Scale(n, false));
    cases.push_back(Scale(n, true));
    for (const int32_t operation : {MT_OP_SQUARED_SUM, MT_OP_SUM}) {
      cases.push_back(Sum(operation, n, false));
      cases.push_back(Sum(operation, n, true));
    }
    cases.push_back(Amax(n, 0));
    cases.push_back(Amax(n, 1e6));
    cases.push_back(AdamW(n, 1, false, ClipPointer::kNone));
    cases.push_back(AdamW(n, 1, true, ClipPointer::kNone));
    cases.push_back(AdamW(n, 100, true, ClipPointer::kFinite));
  }
  cases.push_back(AdamW(1000, 3, true, ClipPointer::kInfinite));
  cases.push_back(AdamW(1001, 3, true, ClipPointer::kNotANumber));
  cases.push_back(AdamW(1001, 3, false, ClipPointer::kNotANumber));
  for (const int64_t n : {1, 1029}) {
    cases.push_back(Unaligned(Fill(n)));
    cases.push_back(Unaligned(Copy(n, Element::kData, Element::kData)));
    cases.push_back(Unaligned(Copy(n, Element::kData, Element::kFloat)));
    cases.push_back(Unaligned(Copy(n, Element::kFloat, Element::kData)));
    cases.push_back(Unaligned(Add(n, false)));
    cases.push_back(Unaligned(Scale(n, false)));
    cases.push_back(Unaligned(Sum(MT_OP_SQUARED_SUM, n, false)));
    cases.push_back(Unaligned(Sum(MT_OP_SUM, n, false)));
    cases.push_back(Unaligned(Amax(n, 0)));
    cases.push_back(Unaligned(AdamW(n, 2, true, ClipPointer::kFinite)));
  }
  cases.push_back(FillNormal(0, 3, 5, 3));
  cases.push_back(FillNormal(1, 1, 5, 1));
  cases.push_back(FillNormal(7, 33, 3, 100));
  cases.push_back(Unaligned(FillNormal(7, 32, 2, 100)));
  cases.push_back(FillNormal(300, 64, uint64_t{1} << 33, 128));
  for (const double norm : {0.0, 0.25, 400.0, 1e300, kInfinity, -kInfinity}) {
    cases.push_back(ClipFactor(norm < 0 ? NAN : norm, 1, Loss::kNone));
    cases.push_back(ClipFactor(norm < 0 ? NAN : norm, 0, Loss::kFinite));
  }
  cases.push_back(ClipFactor(4, 1, Loss::kFinite));
  cases.push_back(ClipFactor(4, 1, Loss::kNotANumber));
  cases.push_back(ClipFactor(4, 0, Loss::kNotANumber));
  for (const auto& [rows, columns, padding] :
       std::vector<std::array<int64_t, 3>>{{0, 5, 0}, {1, 1, 0}, {33, 17, 3}, {300, 264, 8}}) {
    cases.push_back(ColumnSum(rows, columns, padding));
  }
  cases.push_back(Unaligned(ColumnSum(40, 64, 0)));
  cases.push_back(ColumnSum(3, 9001, 0));
  cases.push_back(Slow(ColumnSum(70001, 8, 0)));
}

void AddQuantize(Cases& cases) {
  for (const int32_t type : {MT_F8_E4M3, MT_F8_E5M2}) {
    for (const auto& [rows, columns] :
         std::vector<std::array<int64_t, 2>>{{1, 1}, {3, 17}, {64, 64}, {65, 130}, {0, 4}}) {
      cases.push_back(Quantize(rows, columns, type, 4.25, true, true));
    }
    cases.push_back(Quantize(33, 48, type, 448, true, false));
    cases.push_back(Quantize(48, 33, type, 1000, false, true));
    cases.push_back(Quantize(5, 40, type, 0, true, true));
    cases.push_back(Quantize(5, 40, type, 1e-37, true, true));
    cases.push_back(Quantize(5, 40, type, NAN, true, true));
    cases.push_back(Quantize(5, 40, type, kInfinity, true, true));
    cases.push_back(Unaligned(Quantize(32, 64, type, 3.7, true, true)));
    cases.push_back(Quantize(2, 9000, type, 4, true, true));
  }
  cases.push_back(Slow(Quantize(70001, 3, MT_F8_E4M3, 4, true, true)));
}

void AddMatmul(Cases& cases) {
  for (const bool ta : {false, true}) {
    for (const bool tb : {false, true}) {
      for (const double beta : {0.0, 1.0}) {
        const auto add = [&](Product product) {
          product.transpose_a = ta;
          product.transpose_b = tb;
          product.beta = beta;
          cases.push_back(Matmul(product));
        };
        add({.m = 1, .n = 1, .k = 1});
        add({.m = 3, .n = 17, .k = 5, .padding = 2});
        add({.m = 67, .n = 130, .k = 33, .alpha = 0.5});
        add({.m = 300, .n = 520, .k = 40, .padding = 8});
        add({.m = 35, .n = 72, .k = 64, .bias = true});
        add({.m = 40, .n = 130, .k = 48, .alpha = 0.5, .bias = true, .wide_output = true});
        add({.m = 31, .n = 24, .k = 80, .wide_output = true});
      }
    }
  }
  for (const double beta : {0.0, 1.0}) {
    cases.push_back(Matmul({.m = 4, .n = 4, .k = 0, .beta = beta}));
    cases.push_back(Matmul({.m = 4, .n = 4, .k = 0, .beta = beta, .bias = true}));
  }
  cases.push_back(Matmul({.m = 0, .n = 4, .k = 4}));
  cases.push_back(Matmul({.m = 4, .n = 0, .k = 4}));
  // Few results, long sums: a weight gradient.
  cases.push_back(Matmul({.m = 24, .n = 40, .k = 2048, .transpose_a = true, .beta = 1}));
  cases.push_back(
      Matmul({.m = 24, .n = 40, .k = 2048, .transpose_a = true, .beta = 1, .wide_output = true}));
  // Rows of A a power of two apart.
  cases.push_back(Matmul({.m = 512, .n = 70, .k = 100, .transpose_a = true, .beta = 1}));
  cases.push_back(Matmul({.m = 30, .n = 3000, .k = 20, .transpose_b = true}));
  cases.push_back(Unaligned(Matmul({.m = 32, .n = 48, .k = 64, .transpose_b = true})));
  for (const Element a : {Element::kE4M3, Element::kE5M2}) {
    for (const Element b : {Element::kE4M3, Element::kE5M2}) {
      if (a == Element::kE5M2 && b == Element::kE5M2) continue;  // no library has it
      cases.push_back(MatmulFp8({.m = 32, .n = 48, .k = 64, .transpose_b = true}, a, b));
      cases.push_back(
          MatmulFp8({.m = 17, .n = 32, .k = 160, .transpose_b = true, .bias = true}, a, b));
      cases.push_back(MatmulFp8(
          {.m = 80, .n = 144, .k = 32, .transpose_b = true, .beta = 1, .padding = 16}, a, b));
    }
  }
}

void AddNorms(Cases& cases) {
  using enum GradientAlias;
  for (const auto& [rows, columns] : std::vector<std::array<int64_t, 2>>{
           {0, 8}, {1, 1}, {7, 33}, {130, 64}, {67, 515}, {4, 2048}, {3, 1032}}) {
    for (const Residual residual : {Residual::kNone, Residual::kKept, Residual::kInPlace}) {
      cases.push_back(RmsNormForward(rows, columns, residual));
      cases.push_back(LayerNormForward(rows, columns, residual));
    }
    for (const auto& [residual, alias] : std::vector<std::pair<bool, GradientAlias>>{
             {false, kNone}, {true, kNone}, {true, kOverResidual}, {true, kOverOutput}}) {
      cases.push_back(RmsNormBackward(rows, columns, residual, alias));
      cases.push_back(LayerNormBackward(rows, columns, residual, alias));
    }
  }
  for (const auto& [rows, columns] : std::vector<std::array<int64_t, 2>>{{7, 48}, {20, 101}}) {
    cases.push_back(RmsNormForward(rows, columns, Residual::kKept, true));
    cases.push_back(RmsNormBackward(rows, columns, true, kOverResidual, true));
    cases.push_back(LayerNormForward(rows, columns, Residual::kNone, true));
    cases.push_back(LayerNormBackward(rows, columns, false, kNone, true));
  }
  cases.push_back(Unaligned(RmsNormForward(5, 64, Residual::kKept)));
  cases.push_back(Unaligned(RmsNormBackward(5, 64, true, kNone)));
  cases.push_back(Unaligned(LayerNormForward(5, 64, Residual::kKept)));
  cases.push_back(Unaligned(LayerNormBackward(5, 64, true, kNone)));
  for (const int64_t columns : {8200, 16384}) {
    cases.push_back(RmsNormForward(2, columns, Residual::kKept));
    cases.push_back(RmsNormBackward(2, columns, true, kNone));
    cases.push_back(LayerNormForward(2, columns, Residual::kKept));
    cases.push_back(LayerNormBackward(2, columns, true, kNone));
  }
  cases.push_back(Slow(RmsNormForward(70001, 8, Residual::kKept)));
  cases.push_back(Slow(RmsNormBackward(70001, 8, true, kNone)));
  cases.push_back(Slow(LayerNormForward(70001, 8, Residual::kKept)));
  cases.push_back(Slow(LayerNormBackward(70001, 8, true, kNone)));
}

void AddLayers(Cases& cases) {
  for (const bool backward : {false, true}) {
    cases.push_back(Embedding(backward, 0, 4, 0, 4));
    cases.push_back(Embedding(backward, 1, 1, 0, 4));
    cases.push_back(Embedding(backward, 61, 33, 10, 20));
    cases.push_back(Embedding(backward, 500, 160, 0, 97));
    cases.push_back(Embedding(backward, 3000, 24, 100, 500, true));
    cases.push_back(Embedding(backward, 300, 8200, 3, 11));
    cases.push_back(Unaligned(Embedding(backward, 40, 64, 0, 9)));
    cases.push_back(Slow(Embedding(backward, 70001, 8, 5, 300, true)));
    for (const auto& [rows, columns] :
         std::vector<std::array<int64_t, 2>>{{0, 8}, {1, 1}, {7, 33}, {130, 64}, {2, 9001}}) {
      for (const bool tanh : {false, true})
        cases.push_back(Gelu(backward, rows, columns, true, tanh));
    }
    cases.push_back(Gelu(backward, 21, 72, false, true));
    cases.push_back(Gelu(backward, 21, 72, true, false, 0, true));
    cases.push_back(Gelu(backward, 21, 72, true, true, 1, true));
    if (backward) cases.push_back(Gelu(backward, 21, 71, true, true, 2));
    cases.push_back(Unaligned(Gelu(backward, 5, 64, true, true)));
    cases.push_back(Slow(Gelu(backward, 70001, 3, true, true)));
  }
  for (const auto& [rows, columns] : std::vector<std::array<int64_t, 2>>{
           {0, 8}, {1, 1}, {7, 33}, {130, 64}, {67, 515}, {2, 9000}}) {
    cases.push_back(SwigluForward(rows, columns));
    cases.push_back(SwigluBackward(rows, columns, false, false));
    cases.push_back(SwigluBackward(rows, columns, true, true));
  }
  cases.push_back(SwigluForward(20, 72, true));
  cases.push_back(SwigluBackward(20, 71, false, true, true));
  cases.push_back(Unaligned(SwigluForward(5, 64)));
  cases.push_back(Unaligned(SwigluBackward(5, 64, false, true)));
  cases.push_back(Slow(SwigluForward(70001, 3)));
  for (const Gate& gate : {Gate{7, 1.702, 1}, Gate{2.5, 0, 0}, Gate{0, 1.702, 0}, Gate{0, 0, 1}}) {
    for (const auto& [rows, columns] : std::vector<std::array<int64_t, 2>>{{7, 33}, {20, 64}}) {
      const bool amax = rows == 20;
      cases.push_back(SwigluForward(rows, columns + (gate.limit == 7), amax, gate));
      cases.push_back(SwigluBackward(rows, columns, amax, !amax, amax, gate));
    }
    if (gate.limit == 7) continue;
    cases.back().name += gate.limit > 0 ? "_limit" : gate.alpha > 0 ? "_alpha" : "_offset";
  }
  cases.push_back(Slow(SwigluBackward(70001, 3, false, true)));
}

void AddRotary(Cases& cases) {
  const std::vector<Rotary> sizes = {
      {1, 1, 1, 2},
      {9, 2, 3, 6, 5, 0, false, 4},
      {40, 3, 4, 64, 0, 0, false, 64},
      {0, 2, 3, 8},
      {5, 2, 0, 8},
      {7, 2, 2, 128},
      {6, 3, 2, 64, 2, 0, true},
      {6, 3, 2, 64, 2, 16, false},
      {6, 3, 2, 64, 2, 32, true, 8},
      {6, 1, 5, 80, 1, 20, false, 3},
      {4, 2, 3, 10, 0, 6, true, 1},
      {3, 2, 2, 7, 3, 2, false},
      {3, 1, 2, 256},
      {40, 3, 4, 64, 2, 0, false, 64, true},
      {6, 3, 2, 64, 2, 32, true, 8, true},
      {5, 2, 3, 7, 0, 6, false, 1, true},
      {0, 2, 3, 8, 0, 0, false, 0, true},
  };
  for (const Rotary& size : sizes) {
    for (const bool flag : {false, true}) {
      cases.push_back(Rope(size, flag));
      cases.push_back(QkNormRope(flag, size));
    }
    cases.push_back(QkNormRope(true, size, true));
  }
  cases.push_back(Unaligned(Rope({8, 2, 2, 64}, false)));
  cases.push_back(Unaligned(QkNormRope(false, {8, 2, 2, 64})));
  cases.push_back(Unaligned(QkNormRope(true, {8, 2, 2, 64})));
  cases.push_back(Slow(Rope({35003, 2, 1, 4}, false)));
  cases.push_back(Slow(QkNormRope(false, {35003, 2, 1, 4})));
  cases.push_back(Slow(QkNormRope(true, {35003, 2, 1, 4})));
}

void AddCrossEntropy(Cases& cases) {
  const std::vector<Logits> sizes = {{1, 1, 1},      {11, 37, 30, 5, 3},  {40, 1000, 1000},
                                     {6, 64, 0, 64}, {3, 513, 500, 2, 7}, {0, 8, 8},
                                     {4, 0, 0},      {2, 33000, 32999},   {5, 4096, 4090, 4096}};
  for (const Logits& size : sizes) {
    cases.push_back(CrossEntropyStatistics(size));
    cases.push_back(CrossEntropyGradient(size, 0));
    cases.push_back(CrossEntropyGradient(size, 1e-2));
    cases.push_back(CrossEntropyGradient(size, 0, true));
  }
  cases.push_back(CrossEntropyGradient({11, 37, 30, 5, 3}, 1e-2, true));
  cases.push_back(Unaligned(CrossEntropyStatistics({5, 64, 60})));
  cases.push_back(Unaligned(CrossEntropyGradient({5, 64, 60}, 0)));
  cases.push_back(Slow(CrossEntropyStatistics({70001, 5, 5})));
  cases.push_back(Slow(CrossEntropyGradient({70001, 5, 5}, 0)));
  cases.push_back(CrossEntropyCombine(0, 1, 0));
  cases.push_back(CrossEntropyCombine(17, 1, 0));
  cases.push_back(CrossEntropyCombine(17, 4, 1e-3));
  cases.push_back(CrossEntropyCombine(70001, 2, 0));
}

}  // namespace

std::vector<Case> ConformanceCases() {
  Cases cases;
  AddElementwise(cases);
  AddQuantize(cases);
  AddMatmul(cases);
  for (Case& item : AttentionCases()) cases.push_back(std::move(item));
  AddNorms(cases);
  AddLayers(cases);
  AddRotary(cases);
  AddCrossEntropy(cases);
  for (Case& item : ExpertCases()) cases.push_back(std::move(item));
  return cases;
}

}  // namespace mt::conformance
