#include "common/spec/defaults.h"

#include <algorithm>

#include "common/spec/architectures.h"
#include "common/spec/data_traits.h"
#include "common/spec/presets.h"

namespace mt {
namespace {

template <typename Message, typename Value>
void Fill(Message* message, Value (Message::*get)() const, void (Message::*set)(Value),
          Value value) {
  if ((message->*get)() == Value{}) (message->*set)(value);
}

void FillDuration(google::protobuf::Duration* duration, int64_t seconds) {
  if (duration->seconds() == 0 && duration->nanos() == 0) duration->set_seconds(seconds);
}

// The folder that `model: hf:DIR` names, or that the weights come from, holds the model that the spec's model is a change of;
// a preset stands above the weights.
absl::Status TakeModelOfFolder(v1::JobSpec* spec, const SpecFiles& files) {
  v1::ModelSpec* m = spec->mutable_model();
  const bool named = IsFolderPreset(m->preset());
  const std::string folder = named                 ? m->preset()
                             : m->preset().empty() ? spec->initial_checkpoint()
                                                   : "";
  if (folder.empty()) return absl::OkStatus();
  if (files.model_of == nullptr) {
    if (m->layers() != 0) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("model is not set, and ", named ? "model.preset" : "initial_checkpoint",
                     " = `", folder, "` is not read here; set model to what it holds"));
  }
  absl::StatusOr<v1::ModelSpec> base = files.model_of(folder);
  if (!base.ok()) return Annotate(base.status(), named ? "model.preset" : "initial_checkpoint");
  base->MergeFrom(*m);
  *m = std::move(*base);
  return absl::OkStatus();
}

absl::Status FillModel(v1::JobSpec* spec, const SpecFiles& files) {
  MT_RETURN_IF_ERROR(TakeModelOfFolder(spec, files));
  v1::ModelSpec* m = spec->mutable_model();
  MT_RETURN_IF_ERROR(ResolveModel(m));
  if (m->vocab() != 0) return absl::OkStatus();
  int64_t size = 0;
  const std::string& tokenizer = spec->data().tokenizer();
  if (tokenizer == "byte") {
    size = kByteVocabulary;
  } else if (tokenizer.empty()) {
    return absl::InvalidArgumentError(
        "model.vocab is not set and there is no data.tokenizer to take it from; set model.vocab, "
        "or data.tokenizer: byte");
  } else if (files.vocabulary_of == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("model.vocab is not set, and the tokenizer ", tokenizer,
                     " is not read here; set model.vocab to its size"));
  } else {
    const absl::StatusOr<int64_t> known = files.vocabulary_of(tokenizer);
    if (!known.ok()) {
      return Annotate(
          known.status(),
          "model.vocab is not set and data.tokenizer does not tell it (set model.vocab)");
    }
    size = *known;
  }
  m->set_vocab((size + kVocabularyMultiple - 1) / kVocabularyMultiple * kVocabularyMultiple);
  return absl::OkStatus();
}

// A tokenizer that cannot tell leaves the key unset, which validation names with what needs it.
absl::Status FillEod(v1::DataSpec* data, const SpecFiles& files) {
  const std::string asking = WhatNeedsEod(*data);
  if (data->has_eod() || asking.empty()) return absl::OkStatus();
  if (data->tokenizer() == "byte") {
    data->set_eod(kByteEod);
    return absl::OkStatus();
  }
  if (data->tokenizer().empty() || files.eod_of == nullptr) return absl::OkStatus();
  const absl::StatusOr<int32_t> known = files.eod_of(data->tokenizer());
  if (!known.ok()) {
    return Annotate(known.status(),
                    absl::StrCat(asking,
                                 " needs the end of a document, data.eod is not set and "
                                 "data.tokenizer does not tell it (set data.eod)"));
  }
  if (*known == kNoEod) {
    return absl::InvalidArgumentError(
        absl::StrCat(asking, " needs the end of a document, and the tokenizer ", data->tokenizer(),
                     " has none; set data.eod to the id that ends a document"));
  }
  data->set_eod(*known);
  return absl::OkStatus();
}

absl::Status FillData(v1::JobSpec* spec, const SpecFiles& files) {
  v1::DataSpec* data = spec->mutable_data();
  if (data->split().empty()) data->set_split("1,0,0");
  if (!data->has_seed()) data->set_seed(spec->training().seed());
  Fill(data, &v1::DataSpec::packing, &v1::DataSpec::set_packing, v1::DataSpec::PACKING_STREAM);
  if (data->fim().rate() != 0 && !data->fim().has_spm_rate())
    data->mutable_fim()->set_spm_rate(0.5);
  return FillEod(data, files);
}

void FillTraining(v1::TrainingSpec* t) {
  Fill(t, &v1::TrainingSpec::micro_batch, &v1::TrainingSpec::set_micro_batch, int64_t{1});
  if (!t->has_seed()) t->set_seed(1234);
  if (!t->has_clip_grad_norm()) t->set_clip_grad_norm(1.0);
  Fill(t, &v1::TrainingSpec::precision, &v1::TrainingSpec::set_precision,
       v1::TrainingSpec::PRECISION_FP32);
  Fill(t, &v1::TrainingSpec::recompute, &v1::TrainingSpec::set_recompute,
       v1::TrainingSpec::RECOMPUTE_NONE);
  Fill(t, &v1::TrainingSpec::loss_chunk, &v1::TrainingSpec::set_loss_chunk, int64_t{1024});

  if (t->evaluation().every_steps() != 0) {
    Fill(t->mutable_evaluation(), &v1::EvaluationSpec::batches, &v1::EvaluationSpec::set_batches,
         int64_t{8});
  }

  v1::OptimizerSpec* o = t->mutable_optimizer();
  Fill(o, &v1::OptimizerSpec::kind, &v1::OptimizerSpec::set_kind, v1::OptimizerSpec::KIND_ADAMW);
  Fill(o, &v1::OptimizerSpec::lr, &v1::OptimizerSpec::set_lr, 3e-4);
  if (!o->has_beta1()) o->set_beta1(0.9);
  Fill(o, &v1::OptimizerSpec::beta2, &v1::OptimizerSpec::set_beta2, 0.95);
  Fill(o, &v1::OptimizerSpec::eps, &v1::OptimizerSpec::set_eps, 1e-8);
  if (!o->has_weight_decay()) o->set_weight_decay(0.1);

  v1::ScheduleSpec* s = t->mutable_schedule();
  Fill(s, &v1::ScheduleSpec::kind, &v1::ScheduleSpec::set_kind, v1::ScheduleSpec::KIND_COSINE);
  int64_t decay = t->steps() - s->warmup_steps();
  if (s->kind() == v1::ScheduleSpec::KIND_WSD) decay = std::min(decay, (t->steps() + 9) / 10);
  Fill(s, &v1::ScheduleSpec::decay_steps, &v1::ScheduleSpec::set_decay_steps,
       std::max<int64_t>(decay, 1));
  if (!s->has_min_lr()) s->set_min_lr(0.1 * o->lr());
}

}  // namespace

absl::Status FillDefaults(v1::JobSpec* spec, const SpecFiles& files) {
  FillTraining(spec->mutable_training());
  MT_RETURN_IF_ERROR(FillData(spec, files));

  v1::ParallelSpec* p = spec->mutable_parallel();
  Fill(p, &v1::ParallelSpec::tensor, &v1::ParallelSpec::set_tensor, 1);
  Fill(p, &v1::ParallelSpec::pipeline, &v1::ParallelSpec::set_pipeline, 1);
  Fill(p, &v1::ParallelSpec::data, &v1::ParallelSpec::set_data, 1);
  if (!p->zero_set() && p->zero() == 0 && p->data() > 1) p->set_zero(1);

  v1::CheckpointSpec* c = spec->mutable_checkpoint();
  Fill(c, &v1::CheckpointSpec::keep_last, &v1::CheckpointSpec::set_keep_last, 2);
  if (!c->has_replicas()) c->set_replicas(1);

  v1::FaultSpec* f = spec->mutable_fault();
  Fill(f, &v1::FaultSpec::max_attempts_without_progress,
       &v1::FaultSpec::set_max_attempts_without_progress, 3);
  FillDuration(f->mutable_min_step_deadline(), 60);
  FillDuration(f->mutable_start_deadline(), 300);
  FillDuration(f->mutable_stop_grace(), 10);

  v1::RuntimeSpec* r = spec->mutable_runtime();
  Fill(r, &v1::RuntimeSpec::log_every, &v1::RuntimeSpec::set_log_every, 1);
  if (r->transport().empty()) r->set_transport("auto");
  if (r->graphs().empty()) r->set_graphs("on");
  if (r->attention().empty()) r->set_attention("auto");
  return FillModel(spec, files);
}

}  // namespace mt
