// Arguments that break the contract are refused with the field's name before a kernel reads them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "kernels/host/host.h"

namespace mt::host {
namespace {

using ::testing::HasSubstr;

float memory[64];

template <typename Args>
std::string Refusal(int32_t operation, Args args) {
  args.struct_size = sizeof args;
  const int32_t code = CheckArguments(operation, &args, true);
  if (code == MT_OK) return "";
  EXPECT_EQ(code, MT_ERROR_INVALID);
  return ErrorMessage();
}

mt_matmul_args Product() {
  return {.dtype = MT_F32,
          .output_dtype = MT_F32,
          .m = 2,
          .n = 3,
          .k = 4,
          .a = memory,
          .lda = 4,
          .b = memory,
          .ldb = 3,
          .d = memory,
          .ldd = 3,
          .alpha = 1};
}

TEST(ArgumentsTest, ProductsOfFp8NeedScalesAndTheirOwnKind) {
  mt_matmul_args args = Product();
  EXPECT_EQ(Refusal(MT_OP_MATMUL, args), "");
  args.b_dtype = MT_BF16;
  EXPECT_THAT(Refusal(MT_OP_MATMUL, args), HasSubstr("b_dtype = 3"));
  args = Product();
  args.output_dtype = MT_F8_E4M3;
  EXPECT_THAT(Refusal(MT_OP_MATMUL, args), HasSubstr("output_dtype = 4"));
  args = Product();
  args.dtype = MT_F8_E4M3;
  args.b_dtype = MT_F8_E5M2;
  EXPECT_THAT(Refusal(MT_OP_MATMUL, args), HasSubstr("a_scale is null"));
  args.a_scale = args.b_scale = memory;
  EXPECT_EQ(Refusal(MT_OP_MATMUL, args), "");
  args.b_dtype = 0;  // as A
  EXPECT_EQ(Refusal(MT_OP_MATMUL, args), "");
  args.output_dtype = MT_F64;
  EXPECT_THAT(Refusal(MT_OP_MATMUL, args), HasSubstr("output_dtype = 2"));
  args.output_dtype = MT_BF16;
  EXPECT_EQ(Refusal(MT_OP_MATMUL, args), "");
  args.b_dtype = MT_F32;
  EXPECT_THAT(Refusal(MT_OP_MATMUL, args), HasSubstr("b_dtype = 1"));
}

TEST(ArgumentsTest, TheRotatedPartIsEvenAndNotLargerThanAHead) {
  mt_rope_args args = {.dtype = MT_F32,
                       .data = memory,
                       .sequence = 1,
                       .batch = 1,
                       .heads = 1,
                       .head_dim = 8,
                       .row_stride = 8,
                       .cos_sin = memory};
  EXPECT_EQ(Refusal(MT_OP_ROPE, args), "");
  args.rotary_dim = 8;
  EXPECT_EQ(Refusal(MT_OP_ROPE, args), "");
  args.rotary_dim = 10;
  EXPECT_THAT(Refusal(MT_OP_ROPE, args), HasSubstr("rotary_dim = 10"));
  args.rotary_dim = 3;
  EXPECT_THAT(Refusal(MT_OP_ROPE, args), HasSubstr("rotary_dim = 3 is odd"));
  args.rotary_dim = -2;
  EXPECT_THAT(Refusal(MT_OP_ROPE, args), HasSubstr("rotary_dim = -2"));
  args.rotary_dim = 0;
  args.head_dim = 7;
  EXPECT_THAT(Refusal(MT_OP_ROPE, args), HasSubstr("head_dim = 7 is odd"));
  args.rotary_dim = 6;
  EXPECT_EQ(Refusal(MT_OP_ROPE, args), "");
}

TEST(ArgumentsTest, NormedHeadsFitTheirRows) {
  mt_qk_norm_rope_args args = {.dtype = MT_F32,
                               .sequence = 1,
                               .batch = 1,
                               .heads = 2,
                               .head_dim = 8,
                               .x_stride = 16,
                               .y_stride = 16,
                               .eps = 1e-6,
                               .cos_sin = memory,
                               .weight = memory,
                               .x = memory,
                               .y = memory + 16,
                               .rstd = memory};
  EXPECT_EQ(Refusal(MT_OP_QK_NORM_ROPE_FORWARD, args), "");
  args.x_stride = 15;
  EXPECT_THAT(Refusal(MT_OP_QK_NORM_ROPE_FORWARD, args), HasSubstr("x_stride = 15"));
  args.x_stride = 16;
  args.y_stride = 0;
  EXPECT_THAT(Refusal(MT_OP_QK_NORM_ROPE_FORWARD, args), HasSubstr("y_stride = 0"));
  args.y_stride = 16;
  args.eps = -1;
  EXPECT_THAT(Refusal(MT_OP_QK_NORM_ROPE_FORWARD, args), HasSubstr("eps"));
  args.eps = 0;
  EXPECT_THAT(Refusal(MT_OP_QK_NORM_ROPE_BACKWARD, args), HasSubstr("output_gradient is null"));
}

TEST(ArgumentsTest, AttentionSeesKeysThatAreThere) {
  const mt_attention_args plain = {.dtype = MT_F32,
                                   .sequence = 2,
                                   .batch = 1,
                                   .heads = 2,
                                   .kv_heads = 1,
                                   .head_dim = 4,
                                   .scale = 0.5,
                                   .causal = 1,
                                   .q = memory,
                                   .q_stride = 8,
                                   .k = memory,
                                   .k_stride = 4,
                                   .v = memory,
                                   .v_stride = 4,
                                   .o = memory,
                                   .o_stride = 8,
                                   .lse = memory,
                                   .o_gradient = memory,
                                   .o_gradient_stride = 8,
                                   .dq = memory,
                                   .dq_stride = 8,
                                   .dk = memory,
                                   .dk_stride = 4,
                                   .dv = memory,
                                   .dv_stride = 4};
  EXPECT_EQ(Refusal(MT_OP_ATTENTION_FORWARD, plain), "");
  EXPECT_EQ(Refusal(MT_OP_ATTENTION_BACKWARD, plain), "");
  mt_attention_args args = plain;
  args.v_head_dim = 5;
  EXPECT_THAT(Refusal(MT_OP_ATTENTION_FORWARD, args), HasSubstr("v_stride = 4"));
  args.v_stride = 5;
  EXPECT_THAT(Refusal(MT_OP_ATTENTION_FORWARD, args), HasSubstr("o_stride = 8"));
  args.v_head_dim = 3;  // shorter rows fit
  EXPECT_EQ(Refusal(MT_OP_ATTENTION_BACKWARD, args), "");
  args = plain;
  args.window = -1;
  EXPECT_THAT(Refusal(MT_OP_ATTENTION_FORWARD, args), HasSubstr("window = -1"));
  args.window = 7;
  EXPECT_EQ(Refusal(MT_OP_ATTENTION_BACKWARD, args), "");
  args.causal = 0;
  EXPECT_THAT(Refusal(MT_OP_ATTENTION_FORWARD, args), HasSubstr("window = 7 needs causal"));
  args = plain;
  args.key_sequence = 1;
  EXPECT_THAT(Refusal(MT_OP_ATTENTION_FORWARD, args), HasSubstr("key_sequence = 1 is smaller"));
  args.key_sequence = 3;
  EXPECT_EQ(Refusal(MT_OP_ATTENTION_FORWARD, args), "");
  EXPECT_THAT(Refusal(MT_OP_ATTENTION_BACKWARD, args), HasSubstr("key_sequence = 3 differs"));
  args = plain;
  args.sinks_gradient = memory;
  EXPECT_THAT(Refusal(MT_OP_ATTENTION_BACKWARD, args), HasSubstr("sinks is null"));
  args.sinks = memory;
  EXPECT_THAT(Refusal(MT_OP_ATTENTION_BACKWARD, args), HasSubstr("sinks_gradient_dtype = 0"));
  args.sinks_gradient_dtype = MT_F32;
  EXPECT_EQ(Refusal(MT_OP_ATTENTION_BACKWARD, args), "");
  args.sinks_gradient = nullptr;  // sinks that are not trained
  EXPECT_EQ(Refusal(MT_OP_ATTENTION_BACKWARD, args), "");
  const int32_t starts[2] = {};
  args = plain;
  args.document_start = starts;
  args.causal = 0;
  EXPECT_THAT(Refusal(MT_OP_ATTENTION_BACKWARD, args), HasSubstr("causal = 0 with document_start"));
  args.causal = 1;
  args.key_sequence = 3;
  EXPECT_THAT(Refusal(MT_OP_ATTENTION_FORWARD, args),
              HasSubstr("key_sequence = 3 with document_start"));
}

TEST(ArgumentsTest, QuantizingIsToFp8AndOfSomethingElse) {
  mt_quantize_args args = {.dtype = MT_BF16,
                           .output_dtype = MT_F8_E4M3,
                           .rows = 2,
                           .columns = 2,
                           .source = memory,
                           .amax = memory,
                           .output_scale = memory};
  EXPECT_EQ(Refusal(MT_OP_QUANTIZE, args), "");
  args.output_dtype = MT_BF16;
  EXPECT_THAT(Refusal(MT_OP_QUANTIZE, args), HasSubstr("output_dtype = 3 is no FP8 type"));
  args.output_dtype = MT_F8_E5M2;
  args.dtype = MT_F8_E4M3;
  EXPECT_THAT(Refusal(MT_OP_QUANTIZE, args), HasSubstr("dtype = 4 is FP8 already"));
  args.dtype = MT_F32;
  args.amax = nullptr;
  EXPECT_THAT(Refusal(MT_OP_QUANTIZE, args), HasSubstr("amax is null"));
  args.rows = -1;
  EXPECT_THAT(Refusal(MT_OP_QUANTIZE, args), HasSubstr("rows = -1"));
}

TEST(ArgumentsTest, NullPointersAndSizesOfTheOthers) {
  mt_clip_factor_args clip = {.squared_norm = nullptr};
  EXPECT_THAT(Refusal(MT_OP_CLIP_FACTOR, clip), HasSubstr("squared_norm is null"));
  mt_column_sum_args sum = {
      .dtype = MT_F32, .gradient_dtype = MT_F32, .rows = 1, .columns = 4, .row_stride = 3};
  EXPECT_THAT(Refusal(MT_OP_COLUMN_SUM, sum), HasSubstr("row_stride = 3"));
  mt_layernorm_args norm = {.dtype = MT_F32,
                            .rows = 1,
                            .columns = 4,
                            .x = memory,
                            .weight = memory,
                            .output = memory,
                            .mean = memory,
                            .rstd = memory};
  EXPECT_THAT(Refusal(MT_OP_LAYERNORM_FORWARD, norm), HasSubstr("bias is null"));
  norm.columns = 0;
  EXPECT_THAT(Refusal(MT_OP_LAYERNORM_FORWARD, norm), HasSubstr("columns = 0"));
  mt_gelu_args gelu = {.dtype = MT_F32, .rows = 1, .columns = 4, .x = memory};
  EXPECT_THAT(Refusal(MT_OP_GELU_FORWARD, gelu), HasSubstr("output is null"));
  EXPECT_THAT(Refusal(MT_OP_GELU_BACKWARD, gelu), HasSubstr("output_gradient is null"));
  mt_amax_args amax = {.dtype = MT_F32, .data = memory, .count = -1, .amax = memory};
  EXPECT_THAT(Refusal(MT_OP_AMAX, amax), HasSubstr("count = -1"));
  amax.struct_size = 8;
  EXPECT_EQ(CheckArguments(MT_OP_AMAX, &amax, true), MT_ERROR_INVALID);
  EXPECT_THAT(std::string(ErrorMessage()), HasSubstr("struct_size = 8"));
}

mt_moe_route_args Route() {
  return {.dtype = MT_F32,
          .rows = 2,
          .batch = 1,
          .experts = 8,
          .top_k = 2,
          .score = MT_MOE_SIGMOID,
          .scale = 1,
          .logits = memory,
          .ids = reinterpret_cast<int32_t*>(memory),
          .weights = memory,
          .expert_load = reinterpret_cast<double*>(memory),
          .weight_gradient = memory,
          .logits_gradient = memory};
}

TEST(ArgumentsTest, RoutesFindEnoughExperts) {
  mt_moe_route_args args = Route();
  EXPECT_EQ(Refusal(MT_OP_MOE_ROUTE_FORWARD, args), "");
  EXPECT_EQ(Refusal(MT_OP_MOE_ROUTE_BACKWARD, args), "");
  const auto refused = [](auto change) {
    mt_moe_route_args changed = Route();
    change(changed);
    return Refusal(MT_OP_MOE_ROUTE_FORWARD, changed);
  };
  EXPECT_THAT(refused([](auto& a) { a.top_k = 9; }), HasSubstr("top_k = 9"));
  EXPECT_THAT(refused([](auto& a) { a.dtype = MT_BF16; }), HasSubstr("dtype = 3 is neither"));
  EXPECT_THAT(refused([](auto& a) { a.score = 0; }), HasSubstr("score = 0"));
  EXPECT_THAT(refused([](auto& a) { a.batch = 0; }), HasSubstr("batch = 0"));
  EXPECT_THAT(refused([](auto& a) { a.scale = NAN; }), HasSubstr("scale = nan"));
  EXPECT_THAT(refused([](auto& a) { a.statistics_stride = 7; }), HasSubstr("statistics_stride"));
  EXPECT_THAT(refused([](auto& a) { a.balance_stride = 7; }), HasSubstr("balance_stride = 7"));
  EXPECT_THAT(refused([](auto& a) { a.expert_load = nullptr; }), HasSubstr("expert_load is null"));
  EXPECT_THAT(refused([](auto& a) { a.rows = INT32_MAX; }), HasSubstr("32 bits"));
  EXPECT_THAT(refused([](auto& a) { a.groups = 3; }), HasSubstr("groups = 3 does not divide"));
  EXPECT_THAT(refused([](auto& a) { a.groups = 4; }), HasSubstr("top_groups = 0"));
  EXPECT_THAT(refused([](auto& a) {
                a.groups = 8;
                a.top_groups = 1;
              }),
              HasSubstr("top_k = 2 is more than the experts of top_groups groups"));
  EXPECT_THAT(refused([](auto& a) {
                a.groups = 8;
                a.top_groups = 2;
                a.group_top_2 = 1;
              }),
              HasSubstr("groups of two experts"));
  args.logits_gradient = nullptr;
  EXPECT_THAT(Refusal(MT_OP_MOE_ROUTE_BACKWARD, args), HasSubstr("logits_gradient is null"));
}

TEST(ArgumentsTest, SortedRowsAreThirtyTwoBitNumbers) {
  auto* integers = reinterpret_cast<int32_t*>(memory);
  mt_moe_sort_args sort = {.dtype = MT_F32,
                           .rows = 2,
                           .experts = 4,
                           .top_k = 2,
                           .ids = integers,
                           .position = integers,
                           .source = integers,
                           .offsets = integers};
  EXPECT_EQ(Refusal(MT_OP_MOE_SORT, sort), "");
  sort.capacity = 1;
  EXPECT_EQ(Refusal(MT_OP_MOE_SORT, sort), "");
  sort.drop_lightest = 1;
  EXPECT_THAT(Refusal(MT_OP_MOE_SORT, sort), HasSubstr("weights is null"));
  sort.rows = int64_t{1} << 30;
  EXPECT_THAT(Refusal(MT_OP_MOE_SORT, sort), HasSubstr("rows = 1073741824 times top_k"));
  mt_moe_rows_args rows = {.dtype = MT_BF16,
                           .rows = 2,
                           .columns = 4,
                           .top_k = 2,
                           .position = integers,
                           .tokens = memory,
                           .sorted = memory};
  EXPECT_EQ(Refusal(MT_OP_MOE_COMBINE, rows), "");
  EXPECT_THAT(Refusal(MT_OP_MOE_GATHER, rows), HasSubstr("source is null"));
  rows.source = integers;
  EXPECT_EQ(Refusal(MT_OP_MOE_GATHER, rows), "");
  EXPECT_THAT(Refusal(MT_OP_MOE_COMBINE_BACKWARD, rows), HasSubstr("weights is null"));
}

TEST(ArgumentsTest, GroupsDoNotOverlap) {
  const auto* offsets = reinterpret_cast<const int32_t*>(memory);
  mt_grouped_matmul_args args = {.dtype = MT_F32,
                                 .mode = MT_GROUPED_FORWARD,
                                 .groups = 2,
                                 .rows = 4,
                                 .in = 3,
                                 .out = 5,
                                 .offsets = offsets,
                                 .x = memory,
                                 .y = memory,
                                 .weight = memory,
                                 .weight_group_stride = 15};
  EXPECT_EQ(Refusal(MT_OP_GROUPED_MATMUL, args), "");
  args.bias = memory;
  EXPECT_THAT(Refusal(MT_OP_GROUPED_MATMUL, args), HasSubstr("bias_group_stride = 0"));
  args.bias = nullptr;
  args.weight_group_stride = 14;
  EXPECT_THAT(Refusal(MT_OP_GROUPED_MATMUL, args), HasSubstr("weight_group_stride = 14"));
  args.weight_group_stride = 15;
  args.beta = 0.5;
  EXPECT_THAT(Refusal(MT_OP_GROUPED_MATMUL, args), HasSubstr("beta = 0.5"));
  args.mode = 4;
  EXPECT_THAT(Refusal(MT_OP_GROUPED_MATMUL, args), HasSubstr("mode = 4"));
  mt_grouped_column_sum_args sum = {.dtype = MT_F32,
                                    .gradient_dtype = MT_F32,
                                    .groups = 2,
                                    .rows = 1,
                                    .columns = 4,
                                    .offsets = offsets,
                                    .data = memory,
                                    .result = memory,
                                    .result_group_stride = 3};
  EXPECT_THAT(Refusal(MT_OP_GROUPED_COLUMN_SUM, sum), HasSubstr("result_group_stride = 3"));
}

TEST(ArgumentsTest, OnlyWeightGradientsOfGroupsHaveAGradientType) {
  mt_grouped_matmul_args args = {
      .struct_size = sizeof args, .dtype = MT_BF16, .mode = MT_GROUPED_INPUT_GRADIENT};
  int32_t types[3];
  EXPECT_EQ(TypesOf(MT_OP_GROUPED_MATMUL, &args, types), 1);
  args.mode = MT_GROUPED_WEIGHT_GRADIENT;  // a type that was forgotten is seen, and refused
  ASSERT_EQ(TypesOf(MT_OP_GROUPED_MATMUL, &args, types), 2);
  EXPECT_EQ(types[1], 0);
}

TEST(ArgumentsTest, LatentHeadsAndLimits) {
  mt_mla_expand_args expand = {.dtype = MT_F32,
                               .rows = 1,
                               .heads = 1,
                               .nope_dim = 4,
                               .rope_dim = 0,
                               .v_dim = 4,
                               .kv = memory,
                               .key_rope = memory,
                               .key = memory,
                               .value = memory};
  EXPECT_THAT(Refusal(MT_OP_MLA_EXPAND_FORWARD, expand), HasSubstr("rope_dim = 0"));
  expand.rope_dim = 2;
  EXPECT_EQ(Refusal(MT_OP_MLA_EXPAND_BACKWARD, expand), "");
  mt_swiglu_args swiglu = {
      .dtype = MT_F32, .rows = 1, .columns = 4, .gate_up = memory, .output = memory};
  EXPECT_EQ(Refusal(MT_OP_SWIGLU_FORWARD, swiglu), "");
  swiglu.limit = -7;
  EXPECT_THAT(Refusal(MT_OP_SWIGLU_FORWARD, swiglu), HasSubstr("limit = -7"));
  swiglu.limit = 7;
  swiglu.alpha = NAN;
  EXPECT_THAT(Refusal(MT_OP_SWIGLU_FORWARD, swiglu), HasSubstr("alpha = nan"));
  mt_balance_update_args balance = {
      .dtype = MT_F32, .count = 2, .parameter = memory, .bias = memory};
  EXPECT_THAT(Refusal(MT_OP_BALANCE_UPDATE, balance), HasSubstr("load is null"));
}

TEST(ArgumentsTest, ShapesAloneAreEnoughForSupports) {
  mt_quantize_args args = {.struct_size = sizeof args,
                           .dtype = MT_BF16,
                           .output_dtype = MT_F8_E4M3,
                           .rows = 2,
                           .columns = 2};
  EXPECT_EQ(CheckArguments(MT_OP_QUANTIZE, &args, false), MT_OK);
}

}  // namespace
}  // namespace mt::host
