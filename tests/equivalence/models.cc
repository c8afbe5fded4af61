#include "tests/equivalence/models.h"

#include <functional>
#include <utility>

#include "tests/equivalence/harness.h"

namespace mt::equivalence {
namespace {

SmallModel Make(std::string name, const std::vector<std::function<void(v1::ModelSpec*)>>& traits) {
  SmallModel made{.name = std::move(name), .model = SmallJob().model()};
  for (const auto& trait : traits) trait(&made.model);
  return made;
}

// Heads of 10 query and key numbers and of 5 value numbers.
void Latent(v1::ModelSpec* m) {
  v1::MlaSpec& mla = *m->mutable_mla();
  mla.set_kv_rank(12);
  mla.set_nope_dim(6);
  mla.set_rope_dim(4);
  mla.set_v_dim(5);
  m->mutable_rope()->set_interleaved(true);
}
void LatentQueries(v1::ModelSpec* m) { m->mutable_mla()->set_q_rank(14); }
void TokenAfterNext(v1::ModelSpec* m) {
  m->mutable_mtp()->set_layers(1);
  m->mutable_mtp()->set_loss_coefficient(0.3);
}
void Tied(v1::ModelSpec* m) { m->set_tie_embeddings(true); }

}  // namespace

std::vector<SmallModel> AllModels() {
  return {Make("mla", {Latent}), Make("mla_q", {Latent, LatentQueries}),
          Make("mtp", {TokenAfterNext}), Make("mtp_tied", {TokenAfterNext, Tied}),
          Make("mla_mtp", {Latent, LatentQueries, TokenAfterNext})};
}

v1::JobSpec SmallJobOf(const SmallModel& model) {
  v1::JobSpec spec = SmallJob();
  *spec.mutable_model() = model.model;
  return spec;
}

}  // namespace mt::equivalence
