// kernels_gradient_test REFERENCE_LIBRARY: every backward operation of the reference backend
// against central differences of its forward, in float64. loss = sum of output * output_gradient,
// whose derivative by x backward must give.
#include "kernels/conformance/gradient_check.h"

namespace mt::conformance {

const mt_backend* backend = nullptr;

namespace {

TEST(GradientTest, RmsNorm) {
  const int64_t rows = 3, C = 5;
  Vector x = Normals(rows * C, 1), residual = Normals(rows * C, 2), weight = Normals(C, 3),
         dy = Normals(rows * C, 4);
  Vector extra = Normals(rows * C, 5), sum(rows * C), y(rows * C), rstd(rows), dx(rows * C),
         dw(C, 0.0);
  const auto forward = [&] {
    Call(MT_OP_RMSNORM_FORWARD, mt_rmsnorm_args{.rows = rows,
                                                .columns = C,
                                                .eps = 1e-3,
                                                .x = x.data(),
                                                .residual = residual.data(),
                                                .sum = sum.data(),
                                                .weight = weight.data(),
                                                .output = y.data(),
                                                .rstd = rstd.data()});
    return Dot(y, dy) + Dot(sum, extra);  // the residual stream goes on, with gradient `extra`
  };
  forward();
  Call(MT_OP_RMSNORM_BACKWARD, mt_rmsnorm_args{.gradient_dtype = MT_F64,
                                               .rows = rows,
                                               .columns = C,
                                               .sum = sum.data(),
                                               .weight = weight.data(),
                                               .rstd = rstd.data(),
                                               .output_gradient = dy.data(),
                                               .residual_gradient = extra.data(),
                                               .input_gradient = dx.data(),
                                               .weight_gradient = dw.data()});
  ExpectGradient(x, dx, forward, "x");
  ExpectGradient(residual, dx, forward, "residual");
  ExpectGradient(weight, dw, forward, "weight");
}

TEST(GradientTest, Swiglu) {
  const int64_t rows = 3, D = 4;
  Vector gate_up = Normals(rows * 2 * D, 1), dy = Normals(rows * D, 2), y(rows * D),
         gradient(rows * 2 * D);
  const auto forward = [&] {
    Call(MT_OP_SWIGLU_FORWARD,
         mt_swiglu_args{.rows = rows, .columns = D, .gate_up = gate_up.data(), .output = y.data()});
    return Dot(y, dy);
  };
  Call(MT_OP_SWIGLU_BACKWARD, mt_swiglu_args{.rows = rows,
                                             .columns = D,
                                             .gate_up = gate_up.data(),
                                             .output_gradient = dy.data(),
                                             .gate_up_gradient = gradient.data()});
  ExpectGradient(gate_up, gradient, forward, "gate_up");
}

// cos and sin of any angles: (positions, rotated).
Vector RotationTable(int64_t positions, int64_t rotated) {
  Vector table(static_cast<size_t>(positions * rotated));
  for (int64_t p = 0; p < positions; ++p) {
    for (int64_t j = 0; j < rotated / 2; ++j) {
      const double angle =
          static_cast<double>(p) *
          std::pow(10000.0, -2.0 * static_cast<double>(j) / static_cast<double>(rotated));
      table[p * rotated + j] = std::cos(angle);
      table[p * rotated + rotated / 2 + j] = std::sin(angle);
    }
  }
  return table;
}

TEST(GradientTest, RopeBackwardIsItsInverse) {
  const int64_t T = 4, B = 2, H = 2, d = 6, first = 1;
  for (const int32_t rotated : {0, 4}) {
    for (const int32_t interleaved : {0, 1}) {
      const Vector table = RotationTable(first + T, rotated != 0 ? rotated : d);
      Vector x = Normals(T * B * H * d, 1), dy = Normals(T * B * H * d, 2);
      const auto rotate = [&](Vector v, int32_t inverse) {
        Call(MT_OP_ROPE, mt_rope_args{.data = v.data(),
                                      .sequence = T,
                                      .batch = B,
                                      .heads = H,
                                      .head_dim = d,
                                      .row_stride = H * d,
                                      .first_position = first,
                                      .cos_sin = table.data(),
                                      .inverse = inverse,
                                      .rotary_dim = rotated,
                                      .interleaved = interleaved});
        return v;
      };
      ExpectGradient(
          x, rotate(dy, 1), [&] { return Dot(rotate(x, 0), dy); }, "x");
    }
  }
}

// Which elements of a head turn together, and which stay: by the definition, not by the code.
TEST(RopeTest, PairsAreHalvesOrNeighboursAndTheRestStays) {
  const double c = std::cos(0.5), s = std::sin(0.5);
  const auto rotate = [&](int32_t rotated, int32_t interleaved) {
    Vector x = {1, 2, 3, 4, 5, 6};
    Vector table(static_cast<size_t>(rotated), c);  // one position: cosines, then sines
    std::fill(table.begin() + rotated / 2, table.end(), s);
    Call(MT_OP_ROPE, mt_rope_args{.data = x.data(),
                                  .sequence = 1,
                                  .batch = 1,
                                  .heads = 1,
                                  .head_dim = 6,
                                  .row_stride = 6,
                                  .cos_sin = table.data(),
                                  .rotary_dim = rotated,
                                  .interleaved = interleaved});
    return x;
  };
  EXPECT_EQ(rotate(6, 0), (Vector{1 * c - 4 * s, 2 * c - 5 * s, 3 * c - 6 * s, 4 * c + 1 * s,
                                  5 * c + 2 * s, 6 * c + 3 * s}));
  EXPECT_EQ(rotate(4, 0),
            (Vector{1 * c - 3 * s, 2 * c - 4 * s, 3 * c + 1 * s, 4 * c + 2 * s, 5, 6}));
  EXPECT_EQ(rotate(4, 1),
            (Vector{1 * c - 2 * s, 2 * c + 1 * s, 3 * c - 4 * s, 4 * c + 3 * s, 5, 6}));
}

// Row (t, b) by positions[t, b], wherever it stands; `first_position` has no say then.
TEST(RopeTest, RowsTurnByTheirOwnPositions) {
  const int64_t T = 2, B = 2, d = 2;
  const Vector table = RotationTable(6, d);
  const std::vector<int32_t> positions = {5, 0, 3, 1};
  Vector x = Normals(T * B * d, 1);
  const Vector before = x;
  Call(MT_OP_ROPE, mt_rope_args{.data = x.data(),
                                .sequence = T,
                                .batch = B,
                                .heads = 1,
                                .head_dim = d,
                                .row_stride = d,
                                .first_position = 4,
                                .cos_sin = table.data(),
                                .positions = positions.data()});
  for (size_t row = 0; row < positions.size(); ++row) {
    const double c = std::cos(positions[row]), s = std::sin(positions[row]);
    EXPECT_NEAR(x[2 * row], before[2 * row] * c - before[2 * row + 1] * s, 1e-15) << row;
    EXPECT_NEAR(x[2 * row + 1], before[2 * row + 1] * c + before[2 * row] * s, 1e-15) << row;
  }
}

void ExpectQkNormRopeGradients(const int32_t* positions) {
  const int64_t T = 3, B = 2, H = 2, d = 6, stride = H * d + 1;
  const Vector table = RotationTable(8, 4);
  Vector x = Normals(T * B * stride, 1), weight = Normals(d, 2), dy = Normals(T * B * H * d, 3),
         y(T * B * H * d), rstd(T * B * H), dx(T * B * stride, 0.0), dw(d, 0.0);
  mt_qk_norm_rope_args args = {.gradient_dtype = MT_F64,
                               .sequence = T,
                               .batch = B,
                               .heads = H,
                               .head_dim = d,
                               .x_stride = stride,
                               .y_stride = H * d,
                               .rotary_dim = 4,
                               .interleaved = 1,
                               .eps = 1e-3,
                               .cos_sin = table.data(),
                               .weight = weight.data(),
                               .x = x.data(),
                               .y = y.data(),
                               .rstd = rstd.data(),
                               .output_gradient = dy.data(),
                               .input_gradient = dx.data(),
                               .weight_gradient = dw.data(),
                               .positions = positions};
  const auto forward = [&] {
    Call(MT_OP_QK_NORM_ROPE_FORWARD, args);
    return Dot(y, dy);
  };
  forward();
  Call(MT_OP_QK_NORM_ROPE_BACKWARD, args);
  ExpectGradient(x, dx, forward, "x");
  ExpectGradient(weight, dw, forward, "weight");
}

TEST(GradientTest, QkNormRope) { ExpectQkNormRopeGradients(nullptr); }

TEST(GradientTest, QkNormRopeWithPositions) {
  const int32_t positions[] = {0, 7, 1, 0, 5, 1};
  ExpectQkNormRopeGradients(positions);
}

TEST(GradientTest, LayerNorm) {
  const int64_t rows = 3, C = 5;
  Vector x = Normals(rows * C, 1), residual = Normals(rows * C, 2), weight = Normals(C, 3),
         bias = Normals(C, 6), dy = Normals(rows * C, 4), extra = Normals(rows * C, 5);
  Vector sum(rows * C), y(rows * C), mean(rows), rstd(rows), dx(rows * C), dw(C, 0.0), db(C, 0.0);
  mt_layernorm_args args = {.gradient_dtype = MT_F64,
                            .rows = rows,
                            .columns = C,
                            .eps = 1e-3,
                            .x = x.data(),
                            .residual = residual.data(),
                            .sum = sum.data(),
                            .weight = weight.data(),
                            .bias = bias.data(),
                            .output = y.data(),
                            .mean = mean.data(),
                            .rstd = rstd.data(),
                            .output_gradient = dy.data(),
                            .residual_gradient = extra.data(),
                            .input_gradient = dx.data(),
                            .weight_gradient = dw.data(),
                            .bias_gradient = db.data()};
  const auto forward = [&] {
    Call(MT_OP_LAYERNORM_FORWARD, args);
    return Dot(y, dy) + Dot(sum, extra);
  };
  forward();
  Call(MT_OP_LAYERNORM_BACKWARD, args);
  ExpectGradient(x, dx, forward, "x");
  ExpectGradient(residual, dx, forward, "residual");
  ExpectGradient(weight, dw, forward, "weight");
  ExpectGradient(bias, db, forward, "bias");
}

TEST(GradientTest, GeluAndItsBias) {
  const int64_t rows = 4, C = 5;
  for (const int32_t tanh : {0, 1}) {
    Vector x = Normals(rows * C, 1), bias = Normals(C, 2), dy = Normals(rows * C, 3), y(rows * C),
           dx(rows * C), db(C, 0.0);
    mt_gelu_args args = {.rows = rows,
                         .columns = C,
                         .x = x.data(),
                         .bias = bias.data(),
                         .output = y.data(),
                         .output_gradient = dy.data(),
                         .input_gradient = dx.data(),
                         .tanh_approximation = tanh};
    const auto forward = [&] {
      Call(MT_OP_GELU_FORWARD, args);
      return Dot(y, dy);
    };
    Call(MT_OP_GELU_BACKWARD, args);
    Call(MT_OP_COLUMN_SUM, mt_column_sum_args{.gradient_dtype = MT_F64,
                                              .rows = rows,
                                              .columns = C,
                                              .row_stride = C,
                                              .data = dx.data(),
                                              .result = db.data()});
    ExpectGradient(x, dx, forward, "x");
    ExpectGradient(bias, db, forward, "bias");
  }
}

// The two forms at a point where anyone can look them up.
TEST(GeluTest, KnownValues) {
  for (const auto& [tanh, expected] : {std::pair<int32_t, double>{0, 0.8413447460685429},
                                       std::pair<int32_t, double>{1, 0.8411919906082768}}) {
    double x = 1, y = 0;
    Call(MT_OP_GELU_FORWARD,
         mt_gelu_args{.rows = 1, .columns = 1, .x = &x, .output = &y, .tanh_approximation = tanh});
    EXPECT_NEAR(y, expected, 1e-15);
  }
}

// Two ranks' halves of the vocabulary, the second with two columns of padding. The loss's scale, 1, comes in two factors.
TEST(GradientTest, CrossEntropyOverTwoRanks) {
  const int64_t rows = 4, half = 5, valid[] = {5, 3};
  const double z_loss = 0.05, factor = 8;
  const std::vector<int32_t> targets = {2, 7, -1, 4};
  Vector logits[] = {Normals(rows * half, 1), Normals(rows * half, 2)};
  Vector maximum(2 * rows), sum(2 * rows), target(2 * rows), lse(rows), loss(rows);
  const auto arguments = [&](int r, Vector& data) {
    return mt_cross_entropy_args{.rows = rows,
                                 .columns = half,
                                 .valid_columns = valid[r],
                                 .row_stride = half,
                                 .vocab_start = r * half,
                                 .logits = data.data(),
                                 .targets = targets.data(),
                                 .maximum = &maximum[r * rows],
                                 .sum = &sum[r * rows],
                                 .target_logit = &target[r * rows],
                                 .lse = lse.data(),
                                 .loss_scale = 1 / factor,
                                 .z_loss = z_loss,
                                 .loss_scale_pointer = &factor};
  };
  const auto forward = [&] {
    for (int r = 0; r < 2; ++r) Call(MT_OP_CROSS_ENTROPY_STATISTICS, arguments(r, logits[r]));
    Call(MT_OP_CROSS_ENTROPY_COMBINE, mt_cross_entropy_combine_args{.rows = rows,
                                                                    .world = 2,
                                                                    .maximum = maximum.data(),
                                                                    .sum = sum.data(),
                                                                    .target_logit = target.data(),
                                                                    .targets = targets.data(),
                                                                    .lse = lse.data(),
                                                                    .row_loss = loss.data(),
                                                                    .z_loss = z_loss});
    double total = 0;
    for (const double each : loss) total += each;
    return total;
  };
  forward();
  Vector gradients[] = {logits[0], logits[1]};
  for (int r = 0; r < 2; ++r) Call(MT_OP_CROSS_ENTROPY_GRADIENT, arguments(r, gradients[r]));
  EXPECT_EQ(loss[2], 0);
  ExpectGradient(logits[0], gradients[0], forward, "first rank's logits");
  ExpectGradient(logits[1], gradients[1], forward, "second rank's logits");
}

TEST(GradientTest, Embedding) {
  const int64_t rows = 5, C = 3, vocab = 4, start = 2;
  const std::vector<int32_t> ids = {2, 5, 2, 0, 3};
  Vector table = Normals(vocab * C, 1), dy = Normals(rows * C, 2), y(rows * C),
         gradient(vocab * C, 0.0);
  mt_embedding_args args = {.gradient_dtype = MT_F64,
                            .ids = ids.data(),
                            .rows = rows,
                            .columns = C,
                            .vocab_start = start,
                            .vocab_rows = vocab,
                            .table = table.data(),
                            .output = y.data(),
                            .output_gradient = dy.data(),
                            .table_gradient = gradient.data()};
  Call(MT_OP_EMBEDDING_BACKWARD, args);
  const auto forward = [&] {
    Call(MT_OP_EMBEDDING_FORWARD, args);
    return Dot(y, dy);
  };
  ExpectGradient(table, gradient, forward, "table");
}

}  // namespace
}  // namespace mt::conformance

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  std::string error = "usage: kernels_gradient_test REFERENCE_LIBRARY";
  if (argc == 2) mt::conformance::backend = mt::conformance::LoadLibrary(argv[1], &error);
  if (mt::conformance::backend == nullptr) {
    std::fprintf(stderr, "%s\n", error.c_str());
    return 2;
  }
  return RUN_ALL_TESTS();
}
