#include "common/spec/activation_plan.h"

#include <algorithm>

#include "common/spec/parameter_layout.h"
#include "common/spec/round_up.h"

namespace mt {
namespace {

// The moments of one micro-batch's way through a stage, in order. A block's moments repeat for
// every block; a scratch tensor must not outlive its block, but for `stream.delta`, which carries a
// block's output into the next one's first norm.
enum Moment {
  kInput,
  kFirstNorm,
  kQkv,
  kAttention,
  kOutput,
  kSecondNorm,
  kGateUp,
  kDown,
  kHead,
  kStreamGradient,
  kDownBackward,
  kSwigluBackward,
  kGateUpBackward,
  kSecondNormBackward,
  kOutputBackward,
  kAttentionBackward,
  kQkvBackward,
  kFirstNormBackward,
  kInputBackward,
};

constexpr int64_t kArenaAlignment = 64;

// First fit, largest first: a tensor goes to the lowest place where no tensor that is alive at the
// same moment lies.
void Place(ActivationPlan* plan) {
  std::vector<PlannedTensor*> order;
  for (PlannedTensor& t : plan->tensors) order.push_back(&t);
  std::stable_sort(order.begin(), order.end(), [](const PlannedTensor* a, const PlannedTensor* b) {
    if ((a->policy == KeepPolicy::kKeep) != (b->policy == KeepPolicy::kKeep)) {
      return a->policy == KeepPolicy::kKeep;
    }
    return a->CopyBytes() * a->copies > b->CopyBytes() * b->copies;
  });
  std::vector<const PlannedTensor*> placed;
  for (PlannedTensor* t : order) {
    const int64_t bytes = t->CopyBytes() * t->copies;
    std::vector<const PlannedTensor*> rivals;
    for (const PlannedTensor* p : placed) {
      if (p->first_use <= t->last_use && t->first_use <= p->last_use) rivals.push_back(p);
    }
    std::sort(rivals.begin(), rivals.end(),
              [](const PlannedTensor* a, const PlannedTensor* b) { return a->offset < b->offset; });
    int64_t offset = 0;
    for (const PlannedTensor* p : rivals) {
      if (p->offset >= offset + bytes) break;
      offset = std::max(offset, p->offset + p->CopyBytes() * p->copies);
    }
    t->offset = offset;
    plan->arena_bytes = std::max(plan->arena_bytes, offset + bytes);
    placed.push_back(t);
  }
}

}  // namespace

NumberBytes BytesOf(v1::TrainingSpec::Precision precision) {
  switch (precision) {
    case v1::TrainingSpec::PRECISION_FP64:
      return {.data = 8, .statistic = 8, .gradient = 8, .state = 8};
    case v1::TrainingSpec::PRECISION_BF16:
    case v1::TrainingSpec::PRECISION_FP8:
      return {.data = 2};
    default:
      return {};
  }
}

RankShape ShapeOf(const v1::JobSpec& spec, const Mesh& mesh, int rank) {
  const v1::ModelSpec& m = spec.model();
  const int stage = mesh.CoordinatesOf(rank).pipeline;
  const LayerRange layers = LayersOfStage(m.layers(), mesh.pipeline(), stage);
  const ParameterLayout layout = LayoutOf(m, mesh, rank);
  RankShape s;
  s.sequence = spec.data().sequence_length();
  s.batch = spec.training().micro_batch();
  s.rows = s.sequence * s.batch;
  s.stream_rows = spec.parallel().sequence() ? s.rows / mesh.tensor() : s.rows;
  s.hidden = m.hidden();
  s.heads = m.heads() / mesh.tensor();
  s.kv_heads = m.kv_heads() / mesh.tensor();
  s.head_dim = m.head_dim();
  s.query = s.heads * s.head_dim;
  s.qkv = s.query + 2 * s.kv_heads * s.head_dim;
  s.ffn = m.ffn() / mesh.tensor();
  s.vocab_rows = layout.vocab_rows;
  s.vocab_start = layout.vocab_start;
  s.vocab_valid = layout.vocab_valid;
  s.loss_chunk = std::min(spec.training().loss_chunk(), s.rows);
  s.first_layer = layers.first;
  s.blocks = layers.last - layers.first;
  s.micro_batches = spec.training().global_batch() / (s.batch * mesh.data());
  s.in_flight = std::min<int64_t>(s.micro_batches, mesh.pipeline() - stage);
  const NumberBytes bytes = BytesOf(spec.training().precision());
  s.element_bytes = bytes.data;
  s.statistic_bytes = bytes.statistic;
  return s;
}

int64_t PlannedTensor::CopyBytes() const {
  int64_t bytes = element_bytes;
  for (const int64_t size : shape) bytes *= size;
  return RoundUp(bytes, kArenaAlignment);
}

const PlannedTensor* ActivationPlan::Find(absl::string_view name) const {
  for (const PlannedTensor& t : tensors) {
    if (t.name == name) return &t;
  }
  return nullptr;
}

namespace {

// Adds a rank's tensors to its plan.
class PlanBuilder {
 public:
  PlanBuilder(const v1::JobSpec& spec, const Mesh& mesh, int rank)
      : s_(ShapeOf(spec, mesh, rank)),
        first_stage_(mesh.IsFirstStage(rank)),
        last_stage_(mesh.IsLastStage(rank)),
        recompute_(spec.training().recompute() == v1::TrainingSpec::RECOMPUTE_BLOCK),
        fp8_(spec.training().precision() == v1::TrainingSpec::PRECISION_FP8),
        tensor_(mesh.tensor()) {}

  ActivationPlan Build() {
    Keep("rope.table", {s_.sequence, s_.head_dim}, 1, s_.statistic_bytes);
    if (first_stage_) Keep("tokens.input", {s_.rows}, s_.in_flight, 4);
    if (last_stage_) Keep("tokens.target", {s_.rows}, s_.in_flight, 4);
    Blocks();
    BlockScratch();
    if (fp8_) Fp8();
    if (last_stage_) Head();
    Place(&plan_);
    return std::move(plan_);
  }

 private:
  using Sizes = std::vector<int64_t>;

  void Add(const char* name, Sizes shape, KeepPolicy policy, int64_t copies, int first_use,
           int last_use, int64_t element_bytes) {
    plan_.tensors.push_back({.name = name,
                             .shape = std::move(shape),
                             .element_bytes = element_bytes,
                             .policy = policy,
                             .first_use = first_use,
                             .last_use = last_use,
                             .copies = copies});
  }
  void Keep(const char* name, Sizes shape, int64_t copies, int64_t bytes) {
    Add(name, std::move(shape), KeepPolicy::kKeep, copies, kInput, kInputBackward, bytes);
  }
  // Made by a block's forward pass for its backward pass.
  void Block(const char* name, Sizes shape, int64_t bytes) {
    if (recompute_) {
      Add(name, std::move(shape), KeepPolicy::kRecompute, 1, kInput, kInputBackward, bytes);
    } else {
      Keep(name, std::move(shape), s_.in_flight * s_.blocks, bytes);
    }
  }
  void Scratch(const char* name, Sizes shape, int first_use, int last_use, int64_t bytes) {
    Add(name, std::move(shape), KeepPolicy::kScratch, 1, first_use, last_use, bytes);
  }
  void Scratch(const char* name, Sizes shape, int first_use, int last_use) {
    Scratch(name, std::move(shape), first_use, last_use, s_.element_bytes);
  }

  void Blocks() {
    const int64_t N = s_.rows, S = s_.stream_rows, C = s_.hidden;
    const int64_t data = s_.element_bytes, statistic = s_.statistic_bytes;
    Keep("block.input", {S, C}, s_.in_flight * s_.blocks, data);
    Block("block.first_norm_rstd", {S}, statistic);
    Block("block.first_norm", {S, C}, data);
    Block("block.qkv", {N, s_.qkv}, data);
    Block("block.attention", {N, s_.query}, data);
    Block("block.attention_lse", {s_.heads, N}, statistic);
    Block("block.middle", {S, C}, data);
    Block("block.second_norm_rstd", {S}, statistic);
    Block("block.second_norm", {S, C}, data);
    Block("block.gate_up", {N, 2 * s_.ffn}, data);
  }

  void BlockScratch() {
    const int64_t N = s_.rows, S = s_.stream_rows, C = s_.hidden;
    // A projection's output before and after the sum over the tensor group; carried into the next
    // block.
    Scratch("stream.delta", {N, C}, kInput, recompute_ ? kInputBackward : kHead);
    Scratch("block.activated", {N, s_.ffn}, kGateUp, kDown);
    Scratch("stream.gradient", {S, C}, kHead, kInputBackward);
    // Two buffers take turns, so that a weight gradient can still read what came in when its
    // block's input gradient is made.
    Scratch("stream.middle_gradient", {S, C}, kSecondNormBackward, kInputBackward);
    Scratch("block.activated_gradient", {N, s_.ffn}, kDownBackward, kSwigluBackward);
    Scratch("block.activated_again", {N, s_.ffn}, kSwigluBackward, kSecondNormBackward);
    Scratch("block.norm_gradient", {N, C}, kGateUpBackward, kFirstNormBackward);
    Scratch("block.attention_gradient", {N, s_.query}, kOutputBackward, kAttentionBackward);
    Scratch("block.qkv_gradient", {N, s_.qkv}, kAttentionBackward, kInputBackward);
    if (S != N) {
      Scratch("gathered.input", {N, C}, kFirstNorm, kInputBackward);
      Scratch("gathered.gradient", {N, C}, kDownBackward, kInputBackward);
    }
  }

  // Quantised operands of the blocks' products. An output gradient's transposed copy waits from its
  // input gradient to its weight gradient, which is after the half block's norm.
  void Fp8() {
    const int64_t N = s_.rows, C = s_.hidden, D = s_.ffn;
    const int64_t widest_in = std::max({C, s_.query, D}), widest = std::max({C, s_.qkv, 2 * D});
    Keep("fp8.amax", {s_.blocks, kFp8ScalesPerBlock}, s_.in_flight, 4);
    Keep("fp8.scale", {s_.blocks, kFp8ScalesPerBlock}, s_.in_flight, 4);
    Scratch("fp8.rows", {N, std::max(widest, widest_in)}, kInput, kInputBackward, 1);
    Scratch("fp8.columns", {widest_in, N}, kDownBackward, kInputBackward, 1);
    Scratch("fp8.down_gradient", {C, N}, kDownBackward, kSecondNormBackward, 1);
    Scratch("fp8.gate_up_gradient", {2 * D, N}, kGateUpBackward, kSecondNormBackward, 1);
    Scratch("fp8.output_gradient", {C, N}, kOutputBackward, kInputBackward, 1);
    Scratch("fp8.qkv_gradient", {s_.qkv, N}, kQkvBackward, kInputBackward, 1);
  }

  void Head() {
    const int64_t N = s_.rows, S = s_.stream_rows, C = s_.hidden, chunk = s_.loss_chunk;
    const int64_t statistic = s_.statistic_bytes;
    Scratch("head.sum", {S, C}, kHead, kStreamGradient);
    Scratch("head.rstd", {S}, kHead, kStreamGradient, statistic);
    Scratch("head.norm", {S, C}, kHead, kHead);
    Scratch("head.norm_gradient", {N, C}, kHead, kStreamGradient);
    Scratch("head.logits", {chunk, s_.vocab_rows}, kHead, kHead);
    Scratch("head.maximum", {tensor_, chunk}, kHead, kHead, statistic);
    Scratch("head.sum_exp", {tensor_, chunk}, kHead, kHead, statistic);
    Scratch("head.target_logit", {tensor_, chunk}, kHead, kHead, statistic);
    Scratch("head.lse", {chunk}, kHead, kHead, statistic);
    Scratch("head.row_loss", {N}, kHead, kHead, statistic);
  }

  const RankShape s_;
  const bool first_stage_, last_stage_, recompute_, fp8_;
  const int64_t tensor_;
  ActivationPlan plan_;
};

}  // namespace

ActivationPlan PlanActivations(const v1::JobSpec& spec, const Mesh& mesh, int rank) {
  return PlanBuilder(spec, mesh, rank).Build();
}

RankMemory PlanMemory(const v1::JobSpec& spec, const Mesh& mesh, int rank) {
  const ParameterLayout layout = LayoutOf(spec.model(), mesh, rank);
  const RankShape s = ShapeOf(spec, mesh, rank);
  const bool sharded = spec.parallel().zero() == 1;
  const NumberBytes bytes = BytesOf(spec.training().precision());
  const int64_t owned = sharded ? layout.size / mesh.data() : layout.size;
  RankMemory memory;
  memory.weights = layout.size * bytes.data;
  if (spec.training().precision() == v1::TrainingSpec::PRECISION_FP8) {
    // Every matrix of a block as stored and transposed, with its largest value and its scale.
    const int64_t matrices = s.hidden * (s.qkv + s.query + 3 * s.ffn);
    memory.weights += s.blocks * (2 * matrices + kFp8MatricesPerBlock * 8);
  }
  memory.gradients = layout.size * bytes.gradient;
  memory.optimizer = (bytes.master_weights() ? 3 : 2) * owned * bytes.state;
  memory.activations = PlanActivations(spec, mesh, rank).arena_bytes;
  // One sample batch as read, and two micro-batches of token ids and targets on their way.
  memory.workspace = s.batch * (s.sequence + 1) * 4 + 2 * 2 * s.rows * 4;
  // Messages to a neighbouring stage that it has not received yet (Communicator::kSendAhead).
  const int64_t neighbours = (mesh.IsFirstStage(rank) ? 0 : 1) + (mesh.IsLastStage(rank) ? 0 : 1);
  memory.workspace += neighbours * 2 * s.stream_rows * s.hidden * bytes.data;
  return memory;
}

}  // namespace mt
