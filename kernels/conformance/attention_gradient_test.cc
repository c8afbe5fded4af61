// Attention of kernels_gradient_test: value heads of another size, windows, sinks, documents.
#include "kernels/conformance/gradient_check.h"

namespace mt::conformance {
namespace {

struct Attend {
  int32_t causal;
  int64_t v_head_dim, window;
  bool sinks, documents = false;
};

void ExpectAttentionGradients(const Attend& variant) {
  // (T, B): the first sequence has two documents, the second has three.
  const int32_t starts[] = {0, 0, 0, 1, 2, 1, 2, 1, 2, 4};
  const int64_t T = 5, B = 2, H = 4, K = 2, d = 3, rows = T * B;
  const int64_t d_v = variant.v_head_dim != 0 ? variant.v_head_dim : d;
  Vector q = Normals(rows * H * d, 1), k = Normals(rows * K * d, 2), v = Normals(rows * K * d_v, 3),
         dy = Normals(rows * H * d_v, 4), sinks = Normals(H, 5);
  Vector o(rows * H * d_v), lse(B * H * T), dq(q.size()), dk(k.size()), dv(v.size()),
      d_sinks(H, 0.25);
  mt_attention_args args = {.sequence = T,
                            .batch = B,
                            .heads = H,
                            .kv_heads = K,
                            .head_dim = d,
                            .scale = 0.6,
                            .causal = variant.causal,
                            .q = q.data(),
                            .q_stride = H * d,
                            .k = k.data(),
                            .k_stride = K * d,
                            .v = v.data(),
                            .v_stride = K * d_v,
                            .o = o.data(),
                            .o_stride = H * d_v,
                            .lse = lse.data(),
                            .v_head_dim = variant.v_head_dim,
                            .window = variant.window,
                            .sinks = variant.sinks ? sinks.data() : nullptr,
                            .document_start = variant.documents ? starts : nullptr};
  const auto forward = [&] {
    Call(MT_OP_ATTENTION_FORWARD, args);
    return Dot(o, dy);
  };
  forward();
  mt_attention_args backward = args;
  backward.o_gradient = dy.data();
  backward.dq = dq.data();
  backward.dk = dk.data();
  backward.dv = dv.data();
  backward.o_gradient_stride = H * d_v;
  backward.dq_stride = H * d;
  backward.dk_stride = K * d;
  backward.dv_stride = K * d_v;
  backward.sinks_gradient = variant.sinks ? d_sinks.data() : nullptr;
  backward.sinks_gradient_dtype = variant.sinks ? MT_F64 : 0;
  Call(MT_OP_ATTENTION_BACKWARD, backward);
  ExpectGradient(q, dq, forward, "q");
  ExpectGradient(k, dk, forward, "k");
  ExpectGradient(v, dv, forward, "v");
  for (double& gradient : d_sinks) gradient -= variant.sinks ? 0.25 : gradient;  // it was added to
  ExpectGradient(sinks, d_sinks, forward, "sinks");
}

TEST(GradientTest, Attention) {
  for (const Attend& variant : {Attend{1, 0, 0, false},
                                {0, 0, 0, false},
                                {1, 5, 0, false},
                                {1, 2, 3, false},
                                {1, 0, 1, false},
                                {1, 0, 5, false},
                                {1, 0, 0, true},
                                {0, 0, 0, true},
                                {1, 4, 2, true},
                                {1, 0, 0, false, true},
                                {1, 4, 2, true, true}}) {
    SCOPED_TRACE(testing::Message() << "causal " << variant.causal << " v " << variant.v_head_dim
                                    << " window " << variant.window << " sinks " << variant.sinks
                                    << " documents " << variant.documents);
    ExpectAttentionGradients(variant);
  }
}

// By the definition, in numbers that anyone can follow: all scores are 0, value s is s + 1.
TEST(AttentionTest, WindowsSinksDocumentsAndOlderKeysByHand) {
  const int64_t T = 3;
  const Vector q(T, 0.0), k(T, 1.0), v = {1, 2, 3};
  const double sink = std::log(2.0);  // as two keys of score 0
  const int32_t starts[] = {0, 1, 1};
  const auto attend = [&](int64_t first_query, int64_t window, bool with_sink, Vector* lse,
                          const int32_t* documents = nullptr) {
    Vector o(T - first_query);
    lse->resize(o.size());
    Call(MT_OP_ATTENTION_FORWARD, mt_attention_args{.sequence = T - first_query,
                                                    .batch = 1,
                                                    .heads = 1,
                                                    .kv_heads = 1,
                                                    .head_dim = 1,
                                                    .scale = 1,
                                                    .causal = 1,
                                                    .q = q.data(),
                                                    .q_stride = 1,
                                                    .k = k.data(),
                                                    .k_stride = 1,
                                                    .v = v.data(),
                                                    .v_stride = 1,
                                                    .o = o.data(),
                                                    .o_stride = 1,
                                                    .lse = lse->data(),
                                                    .window = window,
                                                    .sinks = with_sink ? &sink : nullptr,
                                                    .key_sequence = first_query > 0 ? T : 0,
                                                    .document_start = documents});
    return o;
  };
  const auto near = [](const Vector& actual, const Vector& expected) {
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < actual.size(); ++i) EXPECT_NEAR(actual[i], expected[i], 1e-14) << i;
  };
  Vector lse;
  near(attend(0, 0, false, &lse), {1, 1.5, 2});
  near(attend(0, 2, false, &lse), {1, 1.5, 2.5});
  near(lse, {0, std::log(2.0), std::log(2.0)});
  near(attend(0, 1, false, &lse), {1, 2, 3});
  near(attend(0, 0, true, &lse), {1.0 / 3, 3.0 / 4, 6.0 / 5});
  near(lse, {std::log(3.0), std::log(4.0), std::log(5.0)});
  near(attend(2, 0, false, &lse), {2});
  near(attend(1, 2, true, &lse), {3.0 / 4, 5.0 / 4});
  near(attend(0, 0, false, &lse, starts), {1, 2, 2.5});
  near(lse, {0, 0, std::log(2.0)});
  near(attend(0, 1, false, &lse, starts), {1, 2, 3});
  near(attend(0, 0, true, &lse, starts), {1.0 / 3, 2.0 / 3, 5.0 / 4});
}

// Forward and backward of a packed sample, and of each of its documents alone: the same bits.
TEST(AttentionTest, DocumentsOfASampleAreAsIfAlone) {
  const int64_t T = 9, H = 2, d = 3, width = H * d;
  const std::vector<int64_t> begins = {0, 4, 5, T};
  std::vector<int32_t> starts(T);
  for (size_t i = 0; i + 1 < begins.size(); ++i)
    std::fill(starts.begin() + begins[i], starts.begin() + begins[i + 1], begins[i]);
  const Vector q = Normals(T * width, 1), k = Normals(T * width, 2), v = Normals(T * width, 3),
               dy = Normals(T * width, 4);
  struct Results {
    Vector o, dq, dk, dv;
  };
  const auto attend = [&](int64_t begin, int64_t end, const int32_t* documents, Results* results) {
    const int64_t at = begin * width;
    Vector lse(H * (end - begin));
    mt_attention_args args = {.sequence = end - begin,
                              .batch = 1,
                              .heads = H,
                              .kv_heads = H,
                              .head_dim = d,
                              .scale = 0.7,
                              .causal = 1,
                              .q = &q[at],
                              .q_stride = width,
                              .k = &k[at],
                              .k_stride = width,
                              .v = &v[at],
                              .v_stride = width,
                              .o = &results->o[at],
                              .o_stride = width,
                              .lse = lse.data(),
                              .o_gradient = &dy[at],
                              .o_gradient_stride = width,
                              .dq = &results->dq[at],
                              .dq_stride = width,
                              .dk = &results->dk[at],
                              .dk_stride = width,
                              .dv = &results->dv[at],
                              .dv_stride = width,
                              .document_start = documents};
    Call(MT_OP_ATTENTION_FORWARD, args);
    Call(MT_OP_ATTENTION_BACKWARD, args);
  };
  const Vector nothing(T * width);
  Results packed = {nothing, nothing, nothing, nothing}, alone = packed;
  attend(0, T, starts.data(), &packed);
  for (size_t i = 0; i + 1 < begins.size(); ++i) attend(begins[i], begins[i + 1], nullptr, &alone);
  EXPECT_EQ(packed.o, alone.o);
  EXPECT_EQ(packed.dq, alone.dq);
  EXPECT_EQ(packed.dk, alone.dk);
  EXPECT_EQ(packed.dv, alone.dv);
}

}  // namespace
}  // namespace mt::conformance
