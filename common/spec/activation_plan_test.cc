#include "common/spec/activation_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace mt {
namespace {

using testing::HasSubstr;

v1::JobSpec Job() {
  v1::JobSpec spec;
  v1::ModelSpec& model = *spec.mutable_model();
  model.set_layers(4);
  model.set_hidden(32);
  model.set_heads(8);
  model.set_kv_heads(4);
  model.set_head_dim(4);
  model.set_ffn(48);
  model.set_vocab(100);
  spec.mutable_data()->set_sequence_length(16);
  v1::TrainingSpec& training = *spec.mutable_training();
  training.set_steps(10);
  training.set_global_batch(16);
  training.set_micro_batch(2);
  training.set_loss_chunk(8);
  training.set_precision(v1::TrainingSpec::PRECISION_FP32);
  training.set_recompute(v1::TrainingSpec::RECOMPUTE_NONE);
  spec.mutable_parallel()->set_zero(1);
  return spec;
}

// No two tensors that are alive at one moment share a byte; nothing lies outside the arena.
TEST(ActivationPlanTest, LivingTensorsDoNotOverlap) {
  for (const bool recompute : {false, true}) {
    for (const bool sequence : {false, true}) {
      v1::JobSpec spec = Job();
      spec.mutable_parallel()->set_sequence(sequence);
      if (recompute) spec.mutable_training()->set_recompute(v1::TrainingSpec::RECOMPUTE_BLOCK);
      const Mesh mesh = *Mesh::Create(2, 1, 2);
      for (int rank = 0; rank < 4; ++rank) {
        const ActivationPlan plan = PlanActivations(spec, mesh, rank);
        for (const PlannedTensor& a : plan.tensors) {
          EXPECT_EQ(a.offset % 64, 0);
          EXPECT_LE(a.offset + a.CopyBytes() * a.copies, plan.arena_bytes) << a.name;
          for (const PlannedTensor& b : plan.tensors) {
            if (&a == &b || a.last_use < b.first_use || b.last_use < a.first_use) continue;
            EXPECT_TRUE(a.offset + a.CopyBytes() * a.copies <= b.offset ||
                        b.offset + b.CopyBytes() * b.copies <= a.offset)
                << a.name << " and " << b.name;
          }
        }
      }
    }
  }
}

// A job without documents has no row of them; with them every stage has its own, one for each micro-batch in flight.
TEST(ActivationPlanTest, DocumentsAndPositionsAreThereWhereTheyAreSeen) {
  const Mesh mesh = *Mesh::Create(1, 1, 4);
  v1::JobSpec spec = Job();
  for (int rank = 0; rank < 4; ++rank) {
    const ActivationPlan plan = PlanActivations(spec, mesh, rank);
    EXPECT_EQ(plan.Find("documents.start"), nullptr);
    EXPECT_EQ(plan.Find("positions.ids"), nullptr);
  }
  spec.mutable_data()->set_document_mask(true);
  spec.mutable_data()->set_reset_positions(true);
  for (int rank = 0; rank < 4; ++rank) {
    const ActivationPlan plan = PlanActivations(spec, mesh, rank);
    for (const char* name : {"documents.start", "positions.ids"}) {
      ASSERT_NE(plan.Find(name), nullptr) << name << " of rank " << rank;
      EXPECT_EQ(plan.Find(name)->copies, 4 - rank);
      EXPECT_THAT(plan.Find(name)->shape, testing::ElementsAre(32));
    }
    const ActivationPlan text = PlanActivations(spec, mesh, rank, PlanPurpose::kGeneration);
    EXPECT_EQ(text.Find("documents.start"), nullptr) << "text is generated without";
    EXPECT_EQ(text.Find("positions.ids"), nullptr);
  }
  spec.mutable_model()->set_position(v1::ModelSpec::POSITION_LEARNED);
  spec.mutable_model()->set_max_positions(16);
  EXPECT_NE(PlanActivations(spec, mesh, 0).Find("positions.ids"), nullptr);
  EXPECT_EQ(PlanActivations(spec, mesh, 1).Find("positions.ids"), nullptr) << "added once";
}

// Recomputation makes the experts' part again while the gradient of the block's output waits.
TEST(ActivationPlanTest, RecomputedExpertsOverwriteNoGradient) {
  v1::JobSpec spec = Job();
  v1::MoeSpec& moe = *spec.mutable_model()->mutable_moe();
  moe.set_experts(4);
  moe.set_top_k(2);
  moe.set_ffn(16);
  spec.mutable_training()->set_recompute(v1::TrainingSpec::RECOMPUTE_BLOCK);
  const Mesh mesh = *Mesh::Create(1, 1, 2);
  for (int rank = 0; rank < 2; ++rank) {
    const ActivationPlan plan = PlanActivations(spec, mesh, rank);
    const PlannedTensor& waits = *plan.Find("stream.gradient");
    for (const char* name : {"moe.sorted", "moe.activated", "moe.gate_up", "moe.output"}) {
      const PlannedTensor& made = *plan.Find(name);
      EXPECT_TRUE(made.last_use >= waits.first_use && waits.last_use >= made.first_use) << name;
    }
    // The routing is kept: it is not made again.
    EXPECT_EQ(plan.Find("moe.ids")->policy, KeepPolicy::kKeep);
    EXPECT_EQ(plan.Find("moe.output")->policy, KeepPolicy::kRecompute);
    // Every choice may be a sorted row, whatever the capacity.
    EXPECT_EQ(plan.Find("moe.output")->shape, (std::vector<int64_t>{32 * 2, 32}));
  }
}

// Multi-token prediction runs a block forward and backward between the head's two passes: what the head's passes leave for each
// other lies where no block writes.
TEST(ActivationPlanTest, MultiTokenPredictionOverwritesNothingOfTheHead) {
  v1::JobSpec spec = Job();
  spec.mutable_model()->mutable_mtp()->set_layers(1);
  for (const bool recompute : {false, true}) {
    if (recompute) spec.mutable_training()->set_recompute(v1::TrainingSpec::RECOMPUTE_BLOCK);
    const Mesh mesh = *Mesh::Create(1, 1, 2);
    EXPECT_EQ(PlanActivations(spec, mesh, 0).Find("mtp.hidden_gradient"), nullptr);
    const ActivationPlan plan = PlanActivations(spec, mesh, 1);
    int kept = 0;
    for (const PlannedTensor& a : plan.tensors) {
      if (!a.name.starts_with("mtp.") && a.name != "head.sum" && a.name != "head.rstd" &&
          a.name != "head.norm" && a.name != "head.norm_gradient" && a.name != "head.row_loss")
        continue;
      ++kept;
      for (const PlannedTensor& b : plan.tensors) {
        EXPECT_TRUE(&a == &b || a.offset + a.CopyBytes() * a.copies <= b.offset ||
                    b.offset + b.CopyBytes() * b.copies <= a.offset)
            << a.name << " and " << b.name;
      }
    }
    EXPECT_EQ(kept, 5 + 12);
    // A row of sequences behind the targets, and a block behind the stage's own two.
    EXPECT_EQ(plan.Find("tokens.target")->shape[0], (16 + 1) * 2);
    EXPECT_EQ(plan.Find("block.input")->copies, 3);
    EXPECT_EQ(plan.Find("block.qkv")->copies, recompute ? 1 : 3);
  }
}

TEST(ActivationPlanTest, RecomputationAndPipelineStagesChangeWhatIsKept) {
  v1::JobSpec spec = Job();
  const Mesh mesh = *Mesh::Create(1, 1, 4);
  EXPECT_EQ(PlanActivations(spec, mesh, 0).Find("block.qkv")->copies,
            4);  // 4 micro-batches in flight × 1 block
  EXPECT_EQ(PlanActivations(spec, mesh, 3).Find("block.qkv")->copies, 1);
  EXPECT_EQ(PlanActivations(spec, mesh, 0).Find("head.logits"), nullptr);
  const int64_t kept = PlanActivations(spec, mesh, 0).arena_bytes;
  spec.mutable_training()->set_recompute(v1::TrainingSpec::RECOMPUTE_BLOCK);
  EXPECT_EQ(PlanActivations(spec, mesh, 0).Find("block.qkv")->copies, 1);
  EXPECT_EQ(PlanActivations(spec, mesh, 0).Find("block.input")->copies, 4);
  EXPECT_LT(PlanActivations(spec, mesh, 0).arena_bytes, kept / 2);
}

TEST(PlanMemoryTest, ZeroSharesTheOptimizerState) {
  v1::JobSpec spec = Job();
  const Mesh mesh = *Mesh::Create(1, 4, 1);
  const RankMemory sharded = PlanMemory(spec, mesh, 0);
  EXPECT_EQ(sharded.optimizer, 2 * sharded.weights / 4);
  spec.mutable_parallel()->set_zero(0);
  EXPECT_EQ(PlanMemory(spec, mesh, 0).optimizer, 2 * sharded.weights);
}

// bf16: 2 bytes of working weights, 4 of main gradients, and the optimizer's 12 are shared by ZeRO-1.
TEST(PlanMemoryTest, NarrowWeightsHaveFloat32GradientsAndMasterWeights) {
  v1::JobSpec spec = Job();
  const Mesh mesh = *Mesh::Create(1, 4, 1);
  const RankMemory wide = PlanMemory(spec, mesh, 0);
  spec.mutable_training()->set_precision(v1::TrainingSpec::PRECISION_BF16);
  const RankMemory narrow = PlanMemory(spec, mesh, 0);
  const int64_t parameters = wide.weights / 4;
  EXPECT_EQ(narrow.weights, 2 * parameters);
  EXPECT_EQ(narrow.gradients, 4 * parameters);
  EXPECT_EQ(narrow.optimizer, 12 * parameters / 4);
  EXPECT_LT(narrow.activations, 0.6 * wide.activations);
  const ActivationPlan plan = PlanActivations(spec, mesh, 0);
  for (const char* statistic : {"rope.table", "block.first_norm_rstd", "block.attention_lse",
                                "head.rstd", "head.maximum", "head.row_loss"}) {
    EXPECT_EQ(plan.Find(statistic)->element_bytes, 4) << statistic;
  }
  for (const char* activation : {"block.input", "block.gate_up", "head.logits"}) {
    EXPECT_EQ(plan.Find(activation)->element_bytes, 2) << activation;
  }
}

TEST(CheckSizesTest, NamesFieldValueAndRemedy) {
  auto message = [](const v1::JobSpec& spec, int tensor, int data, int pipeline) {
    const absl::Status status = CheckSizes(spec, *Mesh::Create(tensor, data, pipeline));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_TRUE(CheckSizes(Job(), *Mesh::Create(4, 2, 4)).ok());
  EXPECT_EQ(message(Job(), 3, 1, 1),
            "model.heads = 8 does not divide over parallel.tensor = 3; set parallel.tensor to one "
            "of 1, 2 or "
            "model.heads to 9");
  EXPECT_THAT(message(Job(), 8, 1, 1), HasSubstr("model.kv_heads = 4"));
  EXPECT_THAT(message(Job(), 1, 3, 1), HasSubstr("set training.global_batch to 18"));
  EXPECT_THAT(message(Job(), 1, 1, 5), HasSubstr("set parallel.pipeline to at most 4"));
  v1::JobSpec spec = Job();
  spec.mutable_parallel()->set_sequence(true);
  EXPECT_THAT(message(spec, 1, 1, 1), HasSubstr("parallel.tensor = 1"));
  spec.mutable_data()->set_sequence_length(5);
  EXPECT_THAT(message(spec, 4, 1, 1), HasSubstr("set data.sequence_length to 8"));
  spec = Job();
  spec.mutable_model()->set_head_dim(3);
  EXPECT_THAT(message(spec, 1, 1, 1), HasSubstr("odd"));
  spec.mutable_model()->set_head_dim(0);
  EXPECT_THAT(message(spec, 1, 1, 1), HasSubstr("model.head_dim = 0"));
  spec = Job();
  spec.mutable_training()->set_precision(v1::TrainingSpec::PRECISION_FP8);
  EXPECT_TRUE(CheckSizes(spec, *Mesh::Create(1, 1, 1)).ok());
  EXPECT_EQ(message(spec, 2, 1, 1),
            "model.ffn = 48 is not a multiple of 32, as training.precision = fp8 needs; set "
            "model.ffn to 64 or training.precision to bf16");
  spec.mutable_model()->set_ffn(64);
  EXPECT_EQ(message(spec, 4, 1, 1),
            "model.heads × model.head_dim = 32 is not a multiple of 64, as training.precision = "
            "fp8 needs; set model.head_dim to 16 or training.precision to bf16");
  spec.mutable_training()->set_micro_batch(1);
  spec.mutable_data()->set_sequence_length(20);
  EXPECT_THAT(message(spec, 1, 1, 1), HasSubstr("set data.sequence_length to 32"));
  spec = Job();
  spec.mutable_model()->set_position(v1::ModelSpec::POSITION_LEARNED);
  spec.mutable_model()->set_max_positions(16);
  EXPECT_TRUE(CheckSizes(spec, *Mesh::Create(1, 1, 1)).ok());
  spec.mutable_data()->set_sequence_length(17);
  EXPECT_EQ(message(spec, 1, 1, 1),
            "data.sequence_length = 17: the table of learned positions has 16 rows "
            "(model.max_positions); use at most that");
}

}  // namespace
}  // namespace mt
