#include "common/spec/model_differences.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/spec/model_traits.h"

namespace mt {
namespace {

// What training alone asks for, and the name that a model was called by.
bool IsOfTraining(absl::string_view path, const v1::ModelSpec& m) {
  for (const char* name :
       {"model.preset", "model.init_std", "model.moe.balance", "model.moe.balance_coefficient",
        "model.moe.z_loss", "model.moe.capacity_factor", "model.moe.drop",
        "model.moe.selection_bias_rate", "model.mtp.loss_coefficient"}) {
    if (path == name) return true;
  }
  return path == "model.max_positions" && !HasLearnedPositions(m);
}

bool IsOfShape(absl::string_view path) {
  for (const char* name : {"model.architecture",
                           "model.layers",
                           "model.hidden",
                           "model.heads",
                           "model.kv_heads",
                           "model.head_dim",
                           "model.ffn",
                           "model.vocab",
                           "model.tie_embeddings",
                           "model.norm",
                           "model.position",
                           "model.activation",
                           "model.max_positions",
                           "model.qkv_bias",
                           "model.output_bias",
                           "model.mlp_bias",
                           "model.qk_norm",
                           "model.sinks",
                           "model.mla.kv_rank",
                           "model.mla.q_rank",
                           "model.mla.nope_dim",
                           "model.mla.rope_dim",
                           "model.mla.v_dim",
                           "model.moe.experts",
                           "model.moe.ffn",
                           "model.moe.shared_ffn",
                           "model.moe.first_dense",
                           "model.moe.router_bias",
                           "model.moe.selection_bias"}) {
    if (path == name) return true;
  }
  return false;
}

std::string FieldText(const google::protobuf::Message& message,
                      const google::protobuf::FieldDescriptor* field) {
  const google::protobuf::Reflection& r = *message.GetReflection();
  switch (field->cpp_type()) {
    case google::protobuf::FieldDescriptor::CPPTYPE_INT64:
      return absl::StrCat(r.GetInt64(message, field));
    case google::protobuf::FieldDescriptor::CPPTYPE_DOUBLE:
      return nlohmann::json(r.GetDouble(message, field)).dump();
    case google::protobuf::FieldDescriptor::CPPTYPE_BOOL:
      return r.GetBool(message, field) ? "true" : "false";
    case google::protobuf::FieldDescriptor::CPPTYPE_ENUM:
      return r.GetEnum(message, field)->name();
    case google::protobuf::FieldDescriptor::CPPTYPE_STRING:
      return r.GetString(message, field);
    default:
      return "";
  }
}

void Differences(const google::protobuf::Message& a, const google::protobuf::Message& b,
                 const std::string& prefix, const v1::ModelSpec& model, bool shapes_only,
                 std::vector<std::string>* lines) {
  const google::protobuf::Descriptor& type = *a.GetDescriptor();
  for (int i = 0; i < type.field_count(); ++i) {
    const google::protobuf::FieldDescriptor* field = type.field(i);
    const std::string path = prefix + std::string(field->name());
    if (field->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_MESSAGE) {
      Differences(a.GetReflection()->GetMessage(a, field), b.GetReflection()->GetMessage(b, field),
                  path + ".", model, shapes_only, lines);
      continue;
    }
    if (IsOfTraining(path, model) || (shapes_only && !IsOfShape(path))) continue;
    const std::string is = FieldText(a, field), other = FieldText(b, field);
    if (is != other) lines->push_back(absl::StrCat(path, " is ", is, ", not ", other));
  }
}

}  // namespace

std::vector<std::string> ModelDifferences(const v1::ModelSpec& model, const v1::ModelSpec& other,
                                          bool shapes_only) {
  std::vector<std::string> lines;
  Differences(model, other, "model.", model, shapes_only, &lines);
  return lines;
}

}  // namespace mt
