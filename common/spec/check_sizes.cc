// Whether a job's sizes divide over its mesh.
#include <algorithm>

#include "common/spec/activation_plan.h"
#include "common/spec/check_moe.h"
#include "common/spec/model_traits.h"
#include "common/spec/round_up.h"

namespace mt {
namespace {

constexpr int64_t kFp8Multiple = 16;

// Divisors of `value`, at most `limit`, for messages: "1, 2, 4".
std::string DivisorsUpTo(int64_t value, int64_t limit) {
  std::string list;
  for (int64_t d = 1; d <= std::min(value, limit); ++d) {
    if (value % d == 0) absl::StrAppend(&list, list.empty() ? "" : ", ", d);
  }
  return list;
}

absl::Status CheckTensorSplit(absl::string_view field, int64_t size, int tensor) {
  if (size % tensor == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " = ", size, " does not divide over parallel.tensor = ", tensor,
                   "; set parallel.tensor to one of ", DivisorsUpTo(size, tensor), " or ", field,
                   " to ", RoundUp(size, tensor)));
}

// FP8 products want both operands contiguous along the summed dimension and every size a multiple
// of kFp8Multiple: forward and backward sum over each of the dimensions.
absl::Status CheckFp8Sizes(const v1::JobSpec& spec, const Mesh& mesh) {
  const v1::ModelSpec& m = spec.model();
  for (const auto& [trait, has] :
       {std::pair("latent attention (model.mla)", IsMla(m)),
        std::pair("experts (model.moe)", HasExperts(m)),
        std::pair("multi-token prediction (model.mtp)", MtpLayers(m) > 0)}) {
    if (has) {
      return absl::InvalidArgumentError(
          absl::StrCat("training.precision = fp8: a model with ", trait,
                       " has no FP8 products; set training.precision to bf16"));
    }
  }
  auto refused = [](absl::string_view what, int64_t size, int64_t multiple, absl::string_view field,
                    int64_t remedy) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " = ", size, " is not a multiple of ", multiple,
                     ", as training.precision = fp8 needs; set ", field, " to ", remedy,
                     " or training.precision to bf16"));
  };
  auto check = [&](absl::string_view field, int64_t size, int64_t multiple) {
    return size % multiple == 0 ? absl::OkStatus()
                                : refused(field, size, multiple, field, RoundUp(size, multiple));
  };
  const int64_t cut = mesh.tensor() * kFp8Multiple;
  MT_RETURN_IF_ERROR(check("model.hidden", m.hidden(), kFp8Multiple));
  MT_RETURN_IF_ERROR(check("model.ffn", m.ffn(), cut));
  for (const auto& [what, size] :
       {std::pair("model.heads × model.head_dim", m.heads() * m.head_dim()),
        std::pair("2 × model.kv_heads × model.head_dim", 2 * m.kv_heads() * m.head_dim())}) {
    if (size % cut != 0)
      return refused(what, size, cut, "model.head_dim", RoundUp(m.head_dim(), kFp8Multiple));
  }
  const int64_t rows = spec.data().sequence_length() * spec.training().micro_batch();
  if (rows % kFp8Multiple == 0) return absl::OkStatus();
  return refused("data.sequence_length × training.micro_batch", rows, kFp8Multiple,
                 "data.sequence_length", RoundUp(spec.data().sequence_length(), kFp8Multiple));
}

// Each size by itself, and the heads.
absl::Status CheckModel(const v1::JobSpec& spec) {
  const v1::ModelSpec& m = spec.model();
  const v1::TrainingSpec& t = spec.training();
  const std::pair<const char*, int64_t> positive[] = {
      {"model.layers", m.layers()},
      {"model.hidden", m.hidden()},
      {"model.heads", m.heads()},
      {"model.kv_heads", m.kv_heads()},
      {"model.head_dim", m.head_dim()},
      {"model.ffn", m.ffn()},
      {"model.vocab", m.vocab()},
      {"data.sequence_length", spec.data().sequence_length()},
      {"training.steps", t.steps()},
      {"training.global_batch", t.global_batch()},
      {"training.micro_batch", t.micro_batch()},
      {"training.loss_chunk", t.loss_chunk()}};
  for (const auto& [field, value] : positive) {
    if (value < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, " = ", value, "; it must be at least 1"));
    }
  }
  if (m.heads() % m.kv_heads() != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "model.kv_heads = ", m.kv_heads(), " does not divide model.heads = ", m.heads(),
        "; set it to one of ", DivisorsUpTo(m.heads(), m.heads())));
  }
  if (m.head_dim() % 2 != 0 && RotaryDim(m) > 0 && !IsMla(m)) {
    return absl::InvalidArgumentError(absl::StrCat("model.head_dim = ", m.head_dim(),
                                                   " is odd; rotary embeddings need an even one"));
  }
  if (HasLearnedPositions(m) && spec.data().sequence_length() > m.max_positions()) {
    return absl::InvalidArgumentError(
        absl::StrCat("data.sequence_length = ", spec.data().sequence_length(),
                     ": the table of learned positions has ", m.max_positions(),
                     " rows (model.max_positions); use at most that"));
  }
  if (m.qk_norm() && RotaryDim(m) == 0) {
    return absl::InvalidArgumentError(
        "model.qk_norm = true with model.position = learned: heads are normed and rotated in one "
        "pass; set model.qk_norm to false or model.position to rope");
  }
  return absl::OkStatus();
}

absl::Status CheckSequenceSplit(const v1::JobSpec& spec, const Mesh& mesh) {
  if (mesh.tensor() == 1) {
    return absl::InvalidArgumentError(
        "parallel.sequence splits rows over the tensor group, but parallel.tensor = 1; remove it "
        "or set "
        "parallel.tensor to 2 or more");
  }
  const int64_t rows = spec.data().sequence_length() * spec.training().micro_batch();
  if (rows % mesh.tensor() != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "data.sequence_length × training.micro_batch = ", rows,
        " does not divide over parallel.tensor = ", mesh.tensor(),
        ", as parallel.sequence needs; set data.sequence_length to ",
        RoundUp(spec.data().sequence_length(), mesh.tensor()), " or parallel.sequence to false"));
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<std::pair<std::string, int64_t>> TensorSplitSizes(const v1::ModelSpec& m) {
  std::vector<std::pair<std::string, int64_t>> sizes = {{"model.heads", m.heads()}};
  if (!IsMla(m)) sizes.emplace_back("model.kv_heads", m.kv_heads());
  if (HasDense(m)) sizes.emplace_back("model.ffn", m.ffn());
  if (HasExperts(m)) sizes.emplace_back("model.moe.ffn", m.moe().ffn());
  if (HasExperts(m) && m.moe().shared_ffn() > 0)
    sizes.emplace_back("model.moe.shared_ffn", m.moe().shared_ffn());
  return sizes;
}

absl::Status CheckSizes(const v1::JobSpec& spec, const Mesh& mesh) {
  const v1::ModelSpec& m = spec.model();
  const v1::TrainingSpec& t = spec.training();
  MT_RETURN_IF_ERROR(CheckModel(spec));
  MT_RETURN_IF_ERROR(CheckMoe(spec));
  for (const auto& [field, size] : TensorSplitSizes(m))
    MT_RETURN_IF_ERROR(CheckTensorSplit(field, size, mesh.tensor()));
  if (m.layers() < mesh.pipeline()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "parallel.pipeline = ", mesh.pipeline(), " needs a layer per stage, but model.layers = ",
        m.layers(), "; set parallel.pipeline to at most ", m.layers()));
  }
  if (spec.parallel().sequence()) MT_RETURN_IF_ERROR(CheckSequenceSplit(spec, mesh));
  if (t.precision() == v1::TrainingSpec::PRECISION_FP8)
    MT_RETURN_IF_ERROR(CheckFp8Sizes(spec, mesh));
  const int64_t batch = t.micro_batch() * mesh.data();
  if (t.global_batch() % batch != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "training.global_batch = ", t.global_batch(),
        " is not a multiple of training.micro_batch × parallel.data = ", t.micro_batch(), " × ",
        mesh.data(), "; set training.global_batch to ", RoundUp(t.global_batch(), batch)));
  }
  if (spec.parallel().zero() < 0 || spec.parallel().zero() > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("parallel.zero = ", spec.parallel().zero(), "; set it to 0 or 1"));
  }
  return absl::OkStatus();
}

}  // namespace mt
