// layers_test REFERENCE_LIBRARY EMULATED_LIBRARY: what the table of cases (kernels/conformance) does not say about norms,
// rotations, activations, cross entropy and the embedding: every size at which a kernel changes its way of working, any
// alignment, the same bits in any order of threads and blocks.
#include "kernels/cuda/emulated/problem.h"

namespace mt::cuda {
namespace {

// Where a row's owner changes: shapes of RowShape, their edges, rows that fit neither registers nor packs.
constexpr int64_t kColumns[] = {8, 248, 256, 257, 264, 512, 520, 1024, 2048, 4096, 8192, 8200};

template <typename Args>
void CheckNormForward(int32_t operation, int64_t rows, int64_t columns, bool residual) {
  Check("norm of " + std::to_string(columns), [&](Problem& p) {
    const int x = p.Normal("x", rows * columns), r = p.Normal("residual", rows * columns);
    const int weight = p.Normal("weight", columns, 1, 0.3f), bias = p.Normal("bias", columns);
    const int output = p.Normal("output", rows * columns);
    const int mean = p.Statistic("mean", rows), rstd = p.Statistic("rstd", rows);
    const int amax = p.Statistic("amax", 1);
    return p.Run<Args>(operation, [&](Args& args, auto at) {
      args.rows = rows;
      args.columns = columns;
      args.eps = 1e-5;
      args.x = at(x);
      args.residual = at(residual ? r : -1);
      args.sum = at(residual ? r : -1);
      args.weight = at(weight);
      args.output = at(output);
      args.rstd = at(rstd);
      args.amax = at(amax);
      if constexpr (requires { args.bias; }) {
        args.bias = at(bias);
        args.mean = at(mean);
      }
    });
  });
}

template <typename Args>
void CheckNormBackward(int32_t operation, int64_t rows, int64_t columns, bool residual,
                       const std::vector<int64_t>& offsets = {0, 1}) {
  Check(
      "norm's gradient of " + std::to_string(columns),
      [&](Problem& p) {
        const int sum = p.Normal("sum", rows * columns, 0.2f);
        const int weight = p.Normal("weight", columns, 1, 0.3f);
        const int mean = p.Statistic("mean", rows, 0.1f), rstd = p.Statistic("rstd", rows, 0.9f);
        const int dy = p.Normal("output_gradient", rows * columns);
        const int extra = p.Normal("residual_gradient", rows * columns);
        const int dw = p.Statistic("weight_gradient", columns, 1, 1);
        const int db = p.Statistic("bias_gradient", columns, 1, 1);
        const int amax = p.Statistic("amax", 1);
        return p.Run<Args>(operation, [&](Args& args, auto at) {
          args.rows = rows;
          args.columns = columns;
          args.sum = at(sum);
          args.weight = at(weight);
          args.rstd = at(rstd);
          args.output_gradient = at(dy);
          args.residual_gradient = at(residual ? extra : -1);
          args.input_gradient = at(residual ? extra : dy);
          args.weight_gradient = at(dw);
          args.amax = at(amax);
          if constexpr (requires { args.bias; }) {
            args.bias_gradient = at(db);
            args.mean = at(mean);
          }
        });
      },
      offsets);
}

TEST(Norms, ForwardAtEverySize) {
  for (const int64_t columns : kColumns) {
    for (const bool residual : {false, true}) {
      const int64_t rows = columns > 1024 ? 2 : 9;
      CheckNormForward<mt_rmsnorm_args>(MT_OP_RMSNORM_FORWARD, rows, columns, residual);
      CheckNormForward<mt_layernorm_args>(MT_OP_LAYERNORM_FORWARD, rows, columns, residual);
    }
  }
}

// More rows than blocks, of which a kernel with an amax starts few (amax.h).
TEST(Norms, ForwardOfManyRows) {
  for (const auto& [rows, columns] :
       {std::pair<int64_t, int64_t>{110, 24}, {30, 1032}, {9, 4104}, {15, 101}}) {
    CheckNormForward<mt_rmsnorm_args>(MT_OP_RMSNORM_FORWARD, rows, columns, true);
    CheckNormForward<mt_layernorm_args>(MT_OP_LAYERNORM_FORWARD, rows, columns, false);
  }
}

TEST(Norms, BackwardAtEverySize) {
  for (const int64_t columns : kColumns) {
    CheckNormBackward<mt_rmsnorm_args>(MT_OP_RMSNORM_BACKWARD, 3, columns, true);
    CheckNormBackward<mt_layernorm_args>(MT_OP_LAYERNORM_BACKWARD, 3, columns, columns < 512);
  }
}

// More rows than blocks: a block has several, the last ones fewer.
TEST(Norms, BackwardOfManyRows) {
  CheckNormBackward<mt_rmsnorm_args>(MT_OP_RMSNORM_BACKWARD, 2500, 16, true, {0});
  CheckNormBackward<mt_layernorm_args>(MT_OP_LAYERNORM_BACKWARD, 2500, 16, false, {0});
  CheckNormBackward<mt_rmsnorm_args>(MT_OP_RMSNORM_BACKWARD, 140, 4104, true, {0});
  CheckNormBackward<mt_layernorm_args>(MT_OP_LAYERNORM_BACKWARD, 140, 4097, true, {0});
}

struct Head {
  int64_t dim;
  int32_t rotary;
};
constexpr Head kHeads[] = {{2, 0},   {6, 4},     {16, 0},  {40, 16},  {64, 0},
                           {80, 48}, {96, 32},   {128, 0}, {192, 64}, {256, 128},
                           {264, 0}, {512, 512}, {528, 16}};

TEST(Rotations, InPlaceForEveryHead) {
  for (const Head head : kHeads) {
    for (const int32_t interleaved : {0, 1}) {
      for (const int32_t inverse : {0, 1}) {
        Check("head of " + std::to_string(head.dim), [&](Problem& p) {
          const int64_t stride = 3 * head.dim + 16, rotary = head.rotary ? head.rotary : head.dim;
          const int data = p.Normal("data", 5 * 2 * stride);
          const int table = p.Statistic("cos_sin", 9 * rotary, 0, 0.7f);
          return p.Run<mt_rope_args>(MT_OP_ROPE, [&](mt_rope_args& args, auto at) {
            args.data = at(data);
            args.sequence = 5;
            args.batch = 2;
            args.heads = 3;
            args.head_dim = head.dim;
            args.row_stride = stride;
            args.first_position = 4;
            args.cos_sin = at(table);
            args.inverse = inverse;
            args.rotary_dim = head.rotary;
            args.interleaved = interleaved;
          });
        });
      }
    }
  }
}

void CheckQkNorm(Head head, bool backward, int32_t interleaved, int64_t sequence, bool in_place) {
  Check("normed head of " + std::to_string(head.dim), [&](Problem& p) {
    const int64_t heads = 3, batch = 2, rotary = head.rotary ? head.rotary : head.dim;
    const int64_t x_stride = heads * head.dim + 8, y_stride = in_place ? x_stride : x_stride + 8;
    const int64_t rows = sequence * batch;
    const int x = p.Normal("x", rows * x_stride), y = p.Normal("y", rows * y_stride);
    const int weight = p.Normal("weight", head.dim, 1, 0.3f);
    const int rstd = p.Statistic("rstd", rows * heads, 0.8f);
    const int table = p.Statistic("cos_sin", (sequence + 1) * rotary, 0, 0.7f);
    const int dx = p.Normal("input_gradient", rows * x_stride);
    const int dw = p.Statistic("weight_gradient", head.dim, 1, 1);
    const auto fill = [&](mt_qk_norm_rope_args& args, auto at) {
      args.sequence = sequence;
      args.batch = batch;
      args.heads = heads;
      args.head_dim = head.dim;
      args.x_stride = x_stride;
      args.y_stride = y_stride;
      args.first_position = 1;
      args.rotary_dim = head.rotary;
      args.interleaved = interleaved;
      args.eps = 1e-6;
      args.cos_sin = at(table);
      args.weight = at(weight);
      args.x = at(x);
      args.y = at(backward ? -1 : y);
      args.rstd = at(rstd);
      args.output_gradient = at(backward ? y : -1);
      args.input_gradient = at(!backward ? -1 : in_place ? y : dx);
      args.weight_gradient = at(backward ? dw : -1);
    };
    return p.Run<mt_qk_norm_rope_args>(
        backward ? MT_OP_QK_NORM_ROPE_BACKWARD : MT_OP_QK_NORM_ROPE_FORWARD, fill);
  });
}

TEST(Rotations, WithNormsForEveryHead) {
  for (const Head head : kHeads) {
    for (const int32_t interleaved : {0, 1}) {
      CheckQkNorm(head, false, interleaved, 5, false);
      CheckQkNorm(head, true, interleaved, 5, false);
      CheckQkNorm(head, true, interleaved, 5, true);
    }
  }
  CheckQkNorm({7, 4}, false, 0, 3, false);
  CheckQkNorm({7, 4}, true, 1, 3, true);
  CheckQkNorm({16, 0}, true, 0, 2000, false);  // every block has several heads
}

struct Clamp {
  double limit = 0, alpha = 0, offset = 0;
};
std::string RunSwiglu(Problem& p, int64_t rows, int64_t columns, const Clamp& clamp) {
  const int64_t n = rows * columns;
  const int gate_up = p.Normal("gate_up", 2 * n, 0, 3), output = p.Normal("output", n);
  const int amax = p.Statistic("amax", 1);
  return p.Run<mt_swiglu_args>(MT_OP_SWIGLU_FORWARD, [&](mt_swiglu_args& args, auto at) {
    args.rows = rows;
    args.columns = columns;
    args.gate_up = at(gate_up);
    args.output = at(output);
    args.amax = at(amax);
    args.limit = clamp.limit;
    args.alpha = clamp.alpha;
    args.offset = clamp.offset;
  });
}
// `again`: the output is made again. The gradient lies over the inputs.
std::string RunSwigluBackward(Problem& p, int64_t rows, int64_t columns, const Clamp& clamp,
                              bool again) {
  const int64_t n = rows * columns;
  const int gate_up = p.Normal("gate_up", 2 * n, 0, 3), output = p.Normal("output", n);
  const int dy = p.Normal("output_gradient", n), amax = p.Statistic("amax", 1);
  return p.Run<mt_swiglu_args>(MT_OP_SWIGLU_BACKWARD, [&](mt_swiglu_args& args, auto at) {
    args.rows = rows;
    args.columns = columns;
    args.gate_up = at(gate_up);
    args.output = at(again ? output : -1);
    args.output_gradient = at(dy);
    args.gate_up_gradient = at(gate_up);
    args.amax = at(amax);
    args.limit = clamp.limit;
    args.alpha = clamp.alpha;
    args.offset = clamp.offset;
  });
}

TEST(Activations, AtEverySize) {
  for (const int64_t columns : {1, 7, 8, 24, 264, 2056}) {
    const int64_t rows = columns > 1000 ? 3 : 37, n = rows * columns;
    for (const Clamp& clamp : {Clamp{}, {2.5, 1.702, 1}, {3, 0, 0}, {0, 0.5, -1}}) {
      Check("swiglu of " + std::to_string(columns),
            [&](Problem& p) { return RunSwiglu(p, rows, columns, clamp); });
      for (const bool again : {false, true}) {
        Check("swiglu's gradient of " + std::to_string(columns),
              [&](Problem& p) { return RunSwigluBackward(p, rows, columns, clamp, again); });
      }
    }
    for (const int kind : {0, 1, 2, 3, 4, 5, 6, 7}) {
      const bool backward = (kind & 1) != 0, bias = (kind & 2) != 0;
      Check("gelu of " + std::to_string(columns), [&](Problem& p) {
        const int x = p.Normal("x", n, 0, 3), b = p.Normal("bias", columns);
        const int y = p.Normal("output", n), dy = p.Normal("output_gradient", n);
        const int amax = p.Statistic("amax", 1);
        const int32_t operation = backward ? MT_OP_GELU_BACKWARD : MT_OP_GELU_FORWARD;
        return p.Run<mt_gelu_args>(operation, [&](mt_gelu_args& args, auto at) {
          args.rows = rows;
          args.columns = columns;
          args.x = at(x);
          args.bias = at(bias ? b : -1);
          args.output = at(backward ? -1 : y);
          args.output_gradient = at(backward ? dy : -1);
          args.input_gradient = at(backward ? x : -1);
          args.tanh_approximation = (kind & 4) != 0;
          args.amax = at(amax);
        });
      });
    }
  }
}

TEST(CrossEntropy, AtEverySizeStrideAndAlignment) {
  constexpr int64_t kRows = 6, kStart = 5;
  for (const int64_t columns : {1, 7, 8, 33, 2048, 8192, 9001, 20000}) {
    for (const int64_t padding : {0, 3}) {
      const int64_t valid = columns - padding > 0 ? columns - padding : columns;
      const int64_t stride = columns + padding;
      // Some targets masked, some of other ranks, some in the padding.
      const std::vector<float> targets = {-100,
                                          2,
                                          static_cast<float>(kStart),
                                          7,
                                          static_cast<float>(kStart + valid - 1),
                                          static_cast<float>(kStart + columns)};
      for (const bool gradient : {false, true}) {
        Check("cross entropy of " + std::to_string(columns),
              [&](Problem& p) {
                const int logits = p.Normal("logits", kRows * stride, 0, 4);
                const int ids = p.Integers("targets", targets);
                const int maximum = p.Statistic("maximum", kRows), sum = p.Statistic("sum", kRows);
                const int hit = p.Statistic("target_logit", kRows),
                          lse = p.Statistic("lse", kRows, 9, 1);
                return p.Run<mt_cross_entropy_args>(
                    gradient ? MT_OP_CROSS_ENTROPY_GRADIENT : MT_OP_CROSS_ENTROPY_STATISTICS,
                    [&](mt_cross_entropy_args& args, auto at) {
                      args.rows = kRows;
                      args.columns = columns;
                      args.valid_columns = valid;
                      args.row_stride = stride;
                      args.vocab_start = kStart;
                      args.logits = at(logits);
                      args.targets = at(ids);
                      args.maximum = at(maximum);
                      args.sum = at(sum);
                      args.target_logit = at(hit);
                      args.lse = at(lse);
                      args.loss_scale = 0.25;
                      args.z_loss = gradient ? 1e-3 : 0;
                    });
              },
              {0, 1, 5});
      }
    }
  }
}

// As in text: the k-th most frequent id has a share like 1 / k.
std::vector<float> ZipfIds(int64_t rows, int64_t vocab) {
  std::mt19937 random(3);
  std::uniform_real_distribution<double> uniform;
  std::vector<float> ids;
  for (int64_t i = 0; i < rows; ++i)
    ids.push_back(static_cast<float>(
        static_cast<int64_t>(std::pow(static_cast<double>(vocab), uniform(random))) - 1));
  return ids;
}

std::string RunEmbedding(Problem& p, bool backward, const std::vector<float>& ids, int64_t columns,
                         int64_t start, int64_t vocab) {
  const auto rows = static_cast<int64_t>(ids.size());
  const int id = p.Integers("ids", ids), data = p.Normal("rows", rows * columns);
  const int table = p.Normal("table", vocab * columns);
  const int gradient = p.Statistic("table_gradient", vocab * columns, 0, 1);
  return p.Run<mt_embedding_args>(backward ? MT_OP_EMBEDDING_BACKWARD : MT_OP_EMBEDDING_FORWARD,
                                  [&](mt_embedding_args& args, auto at) {
                                    args.ids = at(id);
                                    args.rows = rows;
                                    args.columns = columns;
                                    args.vocab_start = start;
                                    args.vocab_rows = vocab;
                                    args.table = at(backward ? -1 : table);
                                    args.output = at(backward ? -1 : data);
                                    args.output_gradient = at(backward ? data : -1);
                                    args.table_gradient = at(backward ? gradient : -1);
                                  });
}

TEST(Embedding, AtEverySize) {
  struct Size {
    int64_t rows, columns, start, vocab;
  };
  for (const Size& size : std::vector<Size>{{1, 8, 0, 1},
                                            {33, 16, 0, 1},
                                            {3000, 24, 0, 40},
                                            {3000, 33, 10, 100},
                                            {2100, 8, 0, 5000},
                                            {70, 2064, 0, 3},
                                            {1025, 8, 600, 700},
                                            {40, 8, 50, 0}}) {
    const std::vector<float> ids = ZipfIds(size.rows, size.start + size.vocab + size.vocab / 8 + 1);
    for (const bool backward : {false, true}) {
      Check("embedding of " + std::to_string(size.rows) + " rows", [&](Problem& p) {
        return RunEmbedding(p, backward, ids, size.columns, size.start, size.vocab);
      });
    }
  }
}

// One rank with 64 ids or two with 32 each: the same bits, also where an id has hundreds of rows.
TEST(Embedding, AnIdsGradientDependsOnItsOwnRowsAlone) {
  constexpr int64_t kRows = 3000, kColumns = 8, kVocab = 64;
  const std::vector<float> ids = ZipfIds(kRows, kVocab);
  std::vector<int32_t> numbers(ids.begin(), ids.end());
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<float> data(kRows * kColumns);
  for (float& value : data) value = normal(random);
  const auto gradient = [&](int64_t start, int64_t vocab) {
    std::vector<float> result(static_cast<size_t>(vocab * kColumns), 0.5f);
    mt_embedding_args args = {};
    args.struct_size = sizeof args;
    args.dtype = args.gradient_dtype = MT_F32;
    args.ids = numbers.data();
    args.rows = kRows;
    args.columns = kColumns;
    args.vocab_start = start;
    args.vocab_rows = vocab;
    args.output_gradient = data.data();
    args.table_gradient = result.data();
    args.workspace_bytes =
        static_cast<size_t>(emulated->workspace_bytes(MT_OP_EMBEDDING_BACKWARD, &args));
    std::vector<char> workspace(args.workspace_bytes);
    args.workspace = workspace.data();
    EXPECT_EQ(emulated->run(MT_OP_EMBEDDING_BACKWARD, &args, nullptr), MT_OK);
    return result;
  };
  std::vector<float> halves = gradient(0, kVocab / 2);
  const std::vector<float> second = gradient(kVocab / 2, kVocab / 2);
  halves.insert(halves.end(), second.begin(), second.end());
  EXPECT_EQ(gradient(0, kVocab), halves);
}

}  // namespace
}  // namespace mt::cuda

int main(int argc, char** argv) { return mt::cuda::Main(argc, argv); }
