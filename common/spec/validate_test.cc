#include "common/spec/validate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "common/spec/defaults.h"

namespace mt {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

v1::JobSpec Good() {
  v1::JobSpec spec;
  spec.set_name("tiny");
  auto* m = spec.mutable_model();
  m->set_layers(4);
  m->set_hidden(64);
  m->set_heads(8);
  m->set_kv_heads(4);
  m->set_ffn(128);
  spec.mutable_data()->add_train()->set_prefix("/data/a");
  spec.mutable_data()->set_tokenizer("byte");
  spec.mutable_data()->set_sequence_length(64);
  spec.mutable_training()->set_steps(100);
  spec.mutable_training()->set_global_batch(16);
  return spec;
}

std::vector<std::string> ProblemsOf(const std::function<void(v1::JobSpec*)>& change) {
  v1::JobSpec spec = Good();
  change(&spec);
  EXPECT_TRUE(FillDefaults(&spec).ok());
  return SpecProblems(spec);
}

TEST(FillDefaults, GivesEveryDocumentedDefault) {
  v1::JobSpec spec = Good();
  spec.mutable_model()->clear_kv_heads();
  spec.mutable_parallel()->set_data(2);
  ASSERT_TRUE(FillDefaults(&spec).ok());
  EXPECT_EQ(spec.model().architecture(), v1::ARCHITECTURE_LLAMA);
  EXPECT_EQ(spec.model().kv_heads(), 8);
  EXPECT_EQ(spec.model().head_dim(), 8);
  EXPECT_EQ(spec.model().vocab(), 320) << "257 ids, rounded up to a multiple of 64";
  EXPECT_EQ(spec.model().rope_theta(), 10000);
  EXPECT_EQ(spec.model().norm_eps(), 1e-5);
  EXPECT_EQ(spec.data().split(), "1,0,0");
  EXPECT_EQ(spec.data().seed(), 1234);
  EXPECT_EQ(spec.data().packing(), v1::DataSpec::PACKING_STREAM);
  EXPECT_FALSE(spec.data().has_eod()) << "nothing asks for it";
  EXPECT_EQ(spec.training().micro_batch(), 1);
  EXPECT_EQ(spec.training().clip_grad_norm(), 1);
  EXPECT_EQ(spec.training().loss_chunk(), 1024);
  EXPECT_EQ(spec.training().optimizer().lr(), 3e-4);
  EXPECT_EQ(spec.training().optimizer().beta2(), 0.95);
  EXPECT_EQ(spec.training().optimizer().weight_decay(), 0.1);
  EXPECT_EQ(spec.training().schedule().decay_steps(), 100);
  EXPECT_DOUBLE_EQ(spec.training().schedule().min_lr(), 3e-5);
  EXPECT_EQ(spec.parallel().tensor(), 1);
  EXPECT_EQ(spec.parallel().zero(), 1);
  EXPECT_EQ(spec.checkpoint().keep_last(), 2);
  EXPECT_EQ(spec.checkpoint().replicas(), 1);
  EXPECT_EQ(spec.fault().max_attempts_without_progress(), 3);
  EXPECT_EQ(spec.fault().min_step_deadline().seconds(), 60);
  EXPECT_EQ(spec.fault().start_deadline().seconds(), 300);
  EXPECT_EQ(spec.fault().stop_grace().seconds(), 10);
  EXPECT_EQ(spec.runtime().log_every(), 1);
  EXPECT_EQ(spec.runtime().transport(), "auto");
  const std::string once = spec.SerializeAsString();
  ASSERT_TRUE(FillDefaults(&spec).ok());
  EXPECT_EQ(spec.SerializeAsString(), once);
}

TEST(FillDefaults, ADecayHasRoomBehindItsWarmUp) {
  v1::JobSpec spec;
  spec.mutable_data()->set_tokenizer("byte");
  spec.mutable_training()->set_steps(40);
  spec.mutable_training()->mutable_schedule()->set_kind(v1::ScheduleSpec::KIND_WSD);
  for (const auto& [warmup, decay] : {std::pair(2, 4), std::pair(38, 2)}) {
    v1::JobSpec filled = spec;
    filled.mutable_training()->mutable_schedule()->set_warmup_steps(warmup);
    ASSERT_TRUE(FillDefaults(&filled).ok());
    EXPECT_EQ(filled.training().schedule().decay_steps(), decay);
  }
}

TEST(FillDefaults, ZeroThatWasWrittenStays) {
  v1::JobSpec spec = Good();
  spec.mutable_training()->mutable_optimizer()->set_weight_decay(0);
  spec.mutable_training()->mutable_schedule()->set_min_lr(0);
  spec.mutable_training()->set_seed(0);
  spec.mutable_checkpoint()->set_replicas(0);
  spec.mutable_parallel()->set_data(2);
  spec.mutable_parallel()->set_zero_set(true);
  ASSERT_TRUE(FillDefaults(&spec).ok());
  EXPECT_EQ(spec.training().optimizer().weight_decay(), 0);
  EXPECT_EQ(spec.training().schedule().min_lr(), 0);
  EXPECT_EQ(spec.training().seed(), 0);
  EXPECT_EQ(spec.checkpoint().replicas(), 0);
  EXPECT_EQ(spec.parallel().zero(), 0);
}

TEST(FillDefaults, TheVocabularyIsTheTokenizersOrAsked) {
  v1::JobSpec spec = Good();
  spec.mutable_data()->set_tokenizer("/t/a.model");
  v1::JobSpec other = spec;
  EXPECT_THAT(FillDefaults(&spec).message(), HasSubstr("set model.vocab"));
  ASSERT_TRUE(FillDefaults(&other, {.vocabulary_of = [](const std::string& path) {
                EXPECT_EQ(path, "/t/a.model");
                return absl::StatusOr<int64_t>(32000);
              }}).ok());
  EXPECT_EQ(other.model().vocab(), 32000);
  other.clear_data();
  other.mutable_model()->clear_vocab();
  EXPECT_THAT(FillDefaults(&other).message(), HasSubstr("model.vocab is not set"));
}

TEST(FillDefaults, TheEndOfADocumentIsTheTokenizersWhereItIsNeeded) {
  const auto resolved = [](const std::function<void(v1::DataSpec*)>& change, int32_t eod) {
    v1::JobSpec spec = Good();
    spec.mutable_model()->set_vocab(100);
    spec.mutable_data()->set_tokenizer("/t/a.model");
    change(spec.mutable_data());
    const absl::Status status =
        FillDefaults(&spec, {.eod_of = [eod](const std::string& path) -> absl::StatusOr<int32_t> {
          EXPECT_EQ(path, "/t/a.model");
          if (eod < -1) return absl::NotFoundError("/t/a.model: no such file");
          return eod;
        }});
    return status.ok() ? absl::StrCat(spec.data().has_eod() ? spec.data().eod() : -2)
                       : std::string(status.message());
  };
  EXPECT_EQ(resolved([](v1::DataSpec*) {}, 7), "-2") << "nothing asks for it";
  for (const auto& asks : std::vector<std::function<void(v1::DataSpec*)>>{
           [](v1::DataSpec* d) { d->set_mask_eod(true); },
           [](v1::DataSpec* d) { d->set_document_mask(true); },
           [](v1::DataSpec* d) { d->set_reset_positions(true); },
           [](v1::DataSpec* d) { d->set_packing(v1::DataSpec::PACKING_DOCUMENTS); },
           [](v1::DataSpec* d) { d->mutable_fim()->set_rate(0.1); }}) {
    EXPECT_EQ(resolved(asks, 7), "7");
  }
  const auto asks = [](v1::DataSpec* d) { d->set_mask_eod(true); };
  EXPECT_EQ(resolved([](v1::DataSpec* d) { d->set_mask_eod(true), d->set_eod(3); }, 7), "3");
  EXPECT_EQ(resolved([](v1::DataSpec* d) { d->set_mask_eod(true), d->set_tokenizer("byte"); }, 7),
            "256");
  EXPECT_EQ(resolved(asks, -1),
            "data.mask_eod = true needs the end of a document, and the tokenizer /t/a.model has "
            "none; set data.eod to the id that ends a document");
  EXPECT_THAT(resolved(asks, -2), HasSubstr("(set data.eod): /t/a.model: no such file"));
}

TEST(ValidateSpec, AGoodOneHasNoProblems) {
  EXPECT_THAT(ProblemsOf([](v1::JobSpec*) {}), IsEmpty());
}

void SetRampup(v1::JobSpec* spec, int64_t start, int64_t increment, int64_t samples) {
  v1::BatchRampup* rampup = spec->mutable_training()->mutable_batch_rampup();
  rampup->set_start(start);
  rampup->set_increment(increment);
  rampup->set_samples(samples);
}

TEST(ValidateSpec, DocumentsBlendsAndRampsThatAreWholeHaveNoProblems) {
  EXPECT_THAT(ProblemsOf([](v1::JobSpec* s) {
                SetRampup(s, 4, 4, 1000);
                v1::DataSpec* d = s->mutable_data();
                d->mutable_train(0)->set_weight(0.3);
                v1::DataSource* other = d->add_train();
                other->set_prefix("/data/b");
                other->set_weight(7);
                d->add_test()->set_prefix("/data/c");
                d->set_mask_eod(true);
                d->set_document_mask(true);
                d->set_reset_positions(true);
                d->set_packing(v1::DataSpec::PACKING_DOCUMENTS);
                s->mutable_parallel()->set_data(2);
                s->mutable_training()->set_micro_batch(2);
              }),
              IsEmpty());
}

TEST(SpecNotes, TellOfABatchThatGrowsFasterThanTheLearnedDeadline) {
  v1::JobSpec spec = Good();
  SetRampup(&spec, 4, 12, 100);
  EXPECT_THAT(SpecNotes(spec), IsEmpty());
  SetRampup(&spec, 2, 14, 100);
  EXPECT_THAT(SpecNotes(spec),
              ElementsAre("training.batch_rampup.increment = 14: from one step to the next the "
                          "batch grows from 2 to 16; set fault.min_step_deadline to more than such "
                          "a step takes, or a smaller increment"));
}

struct Case {
  const char* name;
  std::function<void(v1::JobSpec*)> change;
  const char* problem;
};
class ProblemTest : public testing::TestWithParam<Case> {};
TEST_P(ProblemTest, IsNamedWithItsRemedy) {
  EXPECT_THAT(ProblemsOf(GetParam().change), ElementsAre(GetParam().problem));
}
INSTANTIATE_TEST_SUITE_P(
    Table, ProblemTest,
    testing::Values(
        Case{"name", [](v1::JobSpec* s) { s->set_name("Tiny!"); },
             "name = `Tiny!`: use 1 to 63 of a-z, 0-9, `.`, `_`, `-`, beginning with a letter or "
             "digit"},
        Case{"layers", [](v1::JobSpec* s) { s->mutable_model()->clear_layers(); },
             "model.layers is not set; set it to a number from 1 to 10000"},
        Case{"negative", [](v1::JobSpec* s) { s->mutable_model()->set_ffn(-3); },
             "model.ffn = -3: out of range; use 1 to 4194304"},
        Case{"hidden_by_heads", [](v1::JobSpec* s) { s->mutable_model()->set_hidden(100); },
             "model.hidden = 100: does not divide by model.heads = 8; set model.heads to 4 or 5 or "
             "10, or set model.head_dim"},
        Case{"kv_heads", [](v1::JobSpec* s) { s->mutable_model()->set_kv_heads(3); },
             "model.kv_heads = 3: does not divide model.heads = 8; use 1 or 2 or 4"},
        Case{"head_dim", [](v1::JobSpec* s) { s->mutable_model()->set_head_dim(7); },
             "model.head_dim = 7: rotary positions need an even number; use 6 or 8"},
        Case{"vocab", [](v1::JobSpec* s) { s->mutable_model()->set_vocab(100); },
             "model.vocab = 100: the byte tokenizer has 257 ids; use at least that many"},
        Case{"prefix",
             [](v1::JobSpec* s) { s->mutable_data()->mutable_train(0)->set_prefix("/data/a.bin"); },
             "data.train = `/data/a.bin`: is a prefix; write it without the ending: /data/a"},
        Case{"split", [](v1::JobSpec* s) { s->mutable_data()->set_split("0,1,1"); },
             "data.split = `0,1,1`: leaves nothing to train on; use 969,30,1 or 1,0,0"},
        Case{"sources",
             [](v1::JobSpec* s) {
               s->mutable_data()->mutable_train(0)->set_weight(0.5);
               s->mutable_data()->add_train()->set_prefix("/data/b");
             },
             "data.train = 1 of 2 datasets have a weight: give one to all of them, or to none"},
        Case{"weight",
             [](v1::JobSpec* s) {
               s->mutable_data()->mutable_train(0)->set_weight(0.5);
               s->mutable_data()->add_train()->set_prefix("/data/b");
               s->mutable_data()->mutable_train(1)->set_weight(-2);
             },
             "data.train[1].weight = -2: must be greater than 0"},
        Case{"relative_source",
             [](v1::JobSpec* s) { s->mutable_data()->add_test()->set_prefix("b"); },
             "data.test = `b`: must be absolute, as every node sees it"},
        Case{"no_eod",
             [](v1::JobSpec* s) {
               s->mutable_data()->set_tokenizer("");
               s->mutable_model()->set_vocab(100);
               s->mutable_data()->set_document_mask(true);
             },
             "data.eod is not set, and data.document_mask = true needs it; set it to the id that "
             "ends a document"},
        Case{"eod_refused",
             [](v1::JobSpec* s) {
               s->mutable_data()->set_eod(-1);
               s->mutable_data()->set_packing(v1::DataSpec::PACKING_DOCUMENTS);
             },
             "data.eod = -1: documents have no end, and data.packing = documents needs one; set "
             "data.eod to the id that ends a document"},
        Case{"eod_outside", [](v1::JobSpec* s) { s->mutable_data()->set_eod(320); },
             "data.eod = 320: is no id of a vocabulary of 320 (model.vocab); use 0 to 319"},
        Case{"fim_rate",
             [](v1::JobSpec* s) {
               v1::FimSpec* fim = s->mutable_data()->mutable_fim();
               fim->set_rate(1.5);
               fim->set_prefix(257);
               fim->set_middle(258);
               fim->set_suffix(259);
             },
             "data.fim.rate = 1.5: must be 0 to 1"},
        Case{"fim_packed",
             [](v1::JobSpec* s) {
               v1::FimSpec* fim = s->mutable_data()->mutable_fim();
               fim->set_rate(0.5);
               fim->set_prefix(257);
               fim->set_middle(258);
               fim->set_suffix(259);
               s->mutable_data()->set_packing(v1::DataSpec::PACKING_DOCUMENTS);
             },
             "data.packing = documents: data.fim lengthens documents, which then do not fit; use "
             "stream, or delete data.fim"},
        Case{"fim_sentinel",
             [](v1::JobSpec* s) {
               v1::FimSpec* fim = s->mutable_data()->mutable_fim();
               fim->set_rate(0.5);
               fim->set_prefix(257);
               fim->set_middle(258);
             },
             "data.fim.suffix is not set, and data.fim.rate needs it; set it to the id of that "
             "sentinel"},
        Case{"fim_twice",
             [](v1::JobSpec* s) {
               v1::FimSpec* fim = s->mutable_data()->mutable_fim();
               fim->set_rate(0.5);
               fim->set_prefix(257);
               fim->set_middle(258);
               fim->set_suffix(257);
             },
             "data.fim.suffix = 257: is the id of another sentinel too; each has its own"},
        Case{
            "rampup_start",
            [](v1::JobSpec* s) { s->mutable_training()->mutable_batch_rampup()->set_samples(100); },
            "training.batch_rampup.start is not set; set it to the global batch of the first "
            "step, or delete training.batch_rampup"},
        Case{"rampup_samples", [](v1::JobSpec* s) { SetRampup(s, 8, 4, 0); },
             "training.batch_rampup.samples is not set; set it to a number from 1 to "
             "281474976710656"},
        Case{"rampup_level", [](v1::JobSpec* s) { SetRampup(s, 16, 4, 10); },
             "training.batch_rampup.start = 16: must be below training.global_batch = 16; delete "
             "training.batch_rampup for batches of one size"},
        Case{"rampup_increment", [](v1::JobSpec* s) { SetRampup(s, 4, 5, 10); },
             "training.batch_rampup.increment = 5: does not divide the rise from 4 to "
             "training.global_batch = 16; use 3 or 4 or 6"},
        Case{"rampup_layout",
             [](v1::JobSpec* s) {
               SetRampup(s, 8, 4, 10);
               s->mutable_training()->set_micro_batch(2);
               s->mutable_parallel()->set_data(4);
             },
             "training.batch_rampup.increment = 4: is not a multiple of training.micro_batch × "
             "parallel.data = 2 × 4; use 8"},
        Case{"cudnn_documents",
             [](v1::JobSpec* s) {
               s->mutable_data()->set_document_mask(true);
               s->mutable_runtime()->set_attention("cudnn");
             },
             "runtime.attention = cudnn: has no document masks (data.document_mask = true); use "
             "auto or flash"},
        Case{"batch", [](v1::JobSpec* s) { s->mutable_parallel()->set_data(3); },
             "training.global_batch = 16: is not a multiple of training.micro_batch × "
             "parallel.data = 1 × 3; use 15 or 18, or "
             "set parallel.data to 1 or 2 or 4"},
        Case{"tensor", [](v1::JobSpec* s) { s->mutable_parallel()->set_tensor(8); },
             "parallel.tensor = 8: does not divide model.kv_heads = 4; use 1 or 2 or 4"},
        Case{"sequence",
             [](v1::JobSpec* s) {
               s->mutable_parallel()->set_tensor(4);
               s->mutable_parallel()->set_sequence(true);
               s->mutable_data()->set_sequence_length(66);
             },
             "parallel.tensor = 4: does not divide data.sequence_length = 66; use 1 or 2"},
        Case{"sequence_alone", [](v1::JobSpec* s) { s->mutable_parallel()->set_sequence(true); },
             "parallel.sequence = true: cuts the sequence over the tensor group, and "
             "parallel.tensor = 1; use tensor 2 or more, "
             "or false"},
        Case{"pipeline", [](v1::JobSpec* s) { s->mutable_parallel()->set_pipeline(5); },
             "parallel.pipeline = 5: is more than model.layers = 4; every stage needs a block, use "
             "at most 4"},
        Case{"zero", [](v1::JobSpec* s) { s->mutable_parallel()->set_zero(3); },
             "parallel.zero = 3: use 0 or 1 (optimizer state sharded over data)"},
        Case{"world",
             [](v1::JobSpec* s) {
               s->mutable_parallel()->set_tensor(1 << 20);
               s->mutable_parallel()->set_data(1 << 20);
             },
             "parallel = tensor 1048576 × pipeline 1 × data 1048576: is more than 1048576 ranks"},
        Case{"warmup",
             [](v1::JobSpec* s) {
               s->mutable_training()->mutable_schedule()->set_warmup_steps(101);
             },
             "training.schedule.warmup_steps = 101: must be 0 to training.steps = 100"},
        Case{"clip_negative",
             [](v1::JobSpec* s) { s->mutable_training()->set_clip_grad_norm(-0.5); },
             "training.clip_grad_norm = -0.5: must be above 0; only -1 switches clipping off"},
        Case{"wsd_overflow",
             [](v1::JobSpec* s) {
               v1::ScheduleSpec& schedule = *s->mutable_training()->mutable_schedule();
               schedule.set_kind(v1::ScheduleSpec::KIND_WSD);
               schedule.set_warmup_steps(2);
               schedule.set_decay_steps(std::numeric_limits<int64_t>::max());
             },
             "training.schedule.decay_steps = 9223372036854775807: with "
             "training.schedule.warmup_steps = 2 is more than training.steps = 100; use at most "
             "98"},
        Case{"wsd_warmup_alone",
             [](v1::JobSpec* s) {
               v1::ScheduleSpec& schedule = *s->mutable_training()->mutable_schedule();
               schedule.set_kind(v1::ScheduleSpec::KIND_WSD);
               schedule.set_warmup_steps(s->training().steps());
             },
             "training.schedule.warmup_steps = 100: leaves none of training.steps = 100 to decay; "
             "use at most 99"},
        Case{"clip", [](v1::JobSpec* s) { s->mutable_training()->set_clip_grad_norm(0); },
             "training.clip_grad_norm = 0: would scale every gradient to nothing; use -1 to switch "
             "clipping off"},
        Case{"beta",
             [](v1::JobSpec* s) { s->mutable_training()->mutable_optimizer()->set_beta2(1); },
             "training.optimizer.beta2 = 1: must be at least 0 and below 1"},
        Case{"fp64",
             [](v1::JobSpec* s) {
               s->mutable_training()->set_precision(v1::TrainingSpec::PRECISION_FP64);
             },
             "training.precision = fp64: only the reference backend computes in it; set "
             "runtime.backend: reference, or use fp32"},
        Case{"fp8",
             [](v1::JobSpec* s) {
               s->mutable_training()->set_precision(v1::TrainingSpec::PRECISION_FP8);
               s->mutable_model()->set_ffn(120);
             },
             "model.ffn = 120 is not a multiple of 16, as training.precision = fp8 needs; set "
             "model.ffn to 128 or training.precision to bf16"},
        Case{"graphs", [](v1::JobSpec* s) { s->mutable_runtime()->set_graphs("yes"); },
             "runtime.graphs = `yes`: use on or off"},
        Case{"transport", [](v1::JobSpec* s) { s->mutable_runtime()->set_transport("glo"); },
             "runtime.transport = `glo`: use gloo"},
        Case{"relative", [](v1::JobSpec* s) { s->mutable_checkpoint()->set_path("ckpt"); },
             "checkpoint.path = `ckpt`: must be absolute, every node writes there; or delete it to "
             "keep shards on their nodes"},
        Case{"resume", [](v1::JobSpec* s) { s->mutable_checkpoint()->set_resume_from("a@b"); },
             "checkpoint.resume_from = `a@b`: use JOB or JOB@STEP (`mtctl checkpoint list JOB` "
             "shows them)"}),
    [](const auto& info) { return info.param.name; });

TEST(NearestCommonDivisors, AreNearestAndAscending) {
  EXPECT_THAT(NearestCommonDivisors({12, 18}, 5), ElementsAre(2, 3, 6));
  EXPECT_THAT(NearestCommonDivisors({7}, 3), ElementsAre(1, 7));
}

}  // namespace
}  // namespace mt
