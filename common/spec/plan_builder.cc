#include "common/spec/plan_builder.h"

#include <algorithm>
#include <utility>

namespace mt {
namespace {

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

PlanBuilder::PlanBuilder(const v1::JobSpec& spec, const Mesh& mesh, int rank, PlanPurpose purpose)
    : model_(spec.model()),
      shape_(ShapeOf(spec, mesh, rank)),
      first_stage_(mesh.IsFirstStage(rank)),
      last_stage_(mesh.IsLastStage(rank)),
      recompute_(spec.training().recompute() == v1::TrainingSpec::RECOMPUTE_BLOCK),
      fp8_(spec.training().precision() == v1::TrainingSpec::PRECISION_FP8),
      generation_(purpose == PlanPurpose::kGeneration),
      document_mask_(!generation_ && spec.data().document_mask()),
      reset_positions_(!generation_ && spec.data().reset_positions()),
      tensor_(mesh.tensor()) {}

bool PlanBuilder::Any(const HasIt& has_it) const {
  std::vector<int64_t> copies;
  return IndexBlocks(has_it, &copies) > 0;
}

int64_t PlanBuilder::IndexBlocks(const HasIt& has_it, std::vector<int64_t>* copy_of_block) const {
  int64_t count = 0;
  for (int64_t block = 0; block < shape_.blocks + shape_.mtp_blocks; ++block)
    copy_of_block->push_back(has_it(shape_.first_layer + block) ? count++ : -1);
  return count;
}

PlannedTensor& PlanBuilder::Add(const char* name, Sizes shape, KeepPolicy policy, Moment first_use,
                                Moment last_use, int64_t element_bytes) {
  plan_.tensors.push_back({.name = name,
                           .shape = std::move(shape),
                           .element_bytes = element_bytes,
                           .policy = policy,
                           .first_use = first_use,
                           .last_use = last_use});
  return plan_.tensors.back();
}

void PlanBuilder::Keep(const char* name, Sizes shape, int64_t copies, int64_t element_bytes) {
  Add(name, std::move(shape), KeepPolicy::kKeep, kInput, kInputBackward, element_bytes).copies =
      copies;
}

void PlanBuilder::AddOfBlocks(const char* name, Sizes shape, int64_t element_bytes,
                              const HasIt& has_it, bool kept) {
  std::vector<int64_t> copy_of_block;
  const int64_t blocks = IndexBlocks(has_it, &copy_of_block);
  if (blocks == 0) return;
  PlannedTensor& t = Add(name, std::move(shape), kept ? KeepPolicy::kKeep : KeepPolicy::kRecompute,
                         kInput, kInputBackward, element_bytes);
  if (kept) {
    t.copies = shape_.in_flight * blocks;
    t.blocks = blocks;
  } else {
    for (int64_t& copy : copy_of_block) copy = std::min<int64_t>(copy, 0);
  }
  t.copy_of_block = std::move(copy_of_block);
}

void PlanBuilder::KeepOfBlocks(const char* name, Sizes shape, int64_t element_bytes,
                               const HasIt& has_it) {
  AddOfBlocks(name, std::move(shape), element_bytes, has_it, /*kept=*/!generation_);
}

void PlanBuilder::Block(const char* name, Sizes shape, int64_t element_bytes, const HasIt& has_it) {
  AddOfBlocks(name, std::move(shape), element_bytes, has_it, /*kept=*/!generation_ && !recompute_);
}

void PlanBuilder::Cached(const char* name, Sizes shape, int64_t element_bytes) {
  AddOfBlocks(name, std::move(shape), element_bytes, EveryBlock,
              /*kept=*/generation_ || !recompute_);
}

void PlanBuilder::Scratch(const char* name, Sizes shape, Moment first_use, Moment last_use,
                          int64_t element_bytes) {
  if (generation_ && first_use > kHead) return;  // of the backward pass
  Add(name, std::move(shape), KeepPolicy::kScratch, first_use, last_use, element_bytes);
}

ActivationPlan PlanBuilder::Finish() {
  Place(&plan_);
  return std::move(plan_);
}

}  // namespace mt
