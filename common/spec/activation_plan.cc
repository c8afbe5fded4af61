#include "common/spec/activation_plan.h"

#include <algorithm>

#include "common/spec/data_traits.h"
#include "common/spec/model_traits.h"
#include "common/spec/parameter_layout.h"
#include "common/spec/plan_builder.h"
#include "common/spec/round_up.h"

namespace mt {
namespace {

constexpr int64_t kArenaAlignment = 64;

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
  s.rotary_dim = RotaryDim(m);
  s.ffn = m.ffn() / mesh.tensor();
  s.gate_up = IsGated(m) ? 2 * s.ffn : s.ffn;
  s.expert_ffn = m.moe().ffn() / mesh.tensor();
  s.shared_ffn = m.moe().shared_ffn() / mesh.tensor();
  s.vocab_rows = layout.vocab_rows;
  s.vocab_start = layout.vocab_start;
  s.vocab_valid = layout.vocab_valid;
  s.loss_chunk = std::min(spec.training().loss_chunk(), s.rows);
  s.first_layer = layers.first;
  s.blocks = layers.last - layers.first;
  s.mtp_blocks = mesh.IsLastStage(rank) ? MtpLayers(m) : 0;
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

ActivationPlan PlanActivations(const v1::JobSpec& spec, const Mesh& mesh, int rank,
                               PlanPurpose purpose) {
  PlanBuilder plan(spec, mesh, rank, purpose);
  PlanStream(plan);
  PlanAttention(plan);
  PlanMla(plan);
  PlanFeedForward(plan);
  PlanMoe(plan);
  PlanFp8(plan);
  PlanHead(plan);
  PlanMtp(plan);
  return plan.Finish();
}

namespace {

// Samples as read (a micro-batch, or a whole step where labels are counted first) and two micro-batches on their way to the device.
int64_t SampleBytes(const v1::JobSpec& spec, const RankShape& s, bool last_stage) {
  const v1::DataSpec& data = spec.data();
  const bool masked = last_stage && MasksLabels(data), documents = SeesDocuments(data);
  const int64_t read =
      s.batch * (s.sequence + 1) * 4 + (masked ? s.rows : 0) + (documents ? s.rows * 4 : 0);
  const int64_t kinds =
      2 + data.document_mask() + data.reset_positions() + (masked && s.mtp_blocks > 0 ? 2 : 0);
  return (masked ? s.micro_batches : 1) * read + 2 * kinds * s.rows * 4;
}

}  // namespace

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
    const int64_t matrices = s.hidden * (s.qkv + s.query + s.gate_up + s.ffn);
    memory.weights += s.blocks * (2 * matrices + kFp8MatricesPerBlock * 8);
  }
  memory.gradients = layout.size * bytes.gradient;
  memory.optimizer = (bytes.master_weights() ? 3 : 2) * owned * bytes.state;
  memory.snapshot = 3 * (layout.size / mesh.data()) * bytes.state;
  memory.activations = PlanActivations(spec, mesh, rank).arena_bytes;
  memory.workspace = SampleBytes(spec, s, mesh.IsLastStage(rank));
  // What balances experts (worker/train/expert_balance.h), at most: per own block state and counts, and a report of all blocks.
  for (int64_t layer = 0; layer < spec.model().layers() + MtpLayers(spec.model()); ++layer) {
    if (!IsMoe(spec.model(), layer)) continue;
    const bool own = layer >= s.first_layer && layer < s.first_layer + s.blocks + s.mtp_blocks;
    memory.workspace +=
        RoundUp(spec.model().moe().experts(), 16) *
        (8 + (own ? bytes.state + 2 * bytes.statistic + bytes.gradient + 3 * 8 : 0));
  }
  // Messages to a neighbouring stage that it has not received yet (Communicator::kSendAhead).
  const int64_t neighbours = (mesh.IsFirstStage(rank) ? 0 : 1) + (mesh.IsLastStage(rank) ? 0 : 1);
  memory.workspace += neighbours * 2 * s.stream_rows * s.hidden * bytes.data;
  return memory;
}

}  // namespace mt
