#include "common/spec/keys.h"

#include <set>

#include "common/spec/print.h"
#include "mt/v1/spec.pb.h"

namespace mt {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::FieldDescriptor;

bool IsSpecKey(const FieldDescriptor& field) {
  return field.full_name() != "mt.v1.ParallelSpec.zero_set";
}

bool ZeroIsAValue(const FieldDescriptor& field) {
  static const auto* const kNames = new std::set<std::string>{"mt.v1.JobSpec.priority",
                                                              "mt.v1.TrainingSpec.z_loss",
                                                              "mt.v1.EvaluationSpec.every_steps",
                                                              "mt.v1.ScheduleSpec.warmup_steps",
                                                              "mt.v1.CheckpointSpec.every_steps",
                                                              "mt.v1.ParallelSpec.zero",
                                                              "mt.v1.FimSpec.rate",
                                                              "mt.v1.BatchRampup.start"};
  return field.has_optional_keyword() || kNames->count(field.full_name()) > 0;
}

std::vector<std::string> SpecKeysOf(const Descriptor& message) {
  std::vector<std::string> keys;
  for (int i = 0; i < message.field_count(); ++i) {
    if (IsSpecKey(*message.field(i))) keys.push_back(message.field(i)->name());
  }
  return keys;
}

std::vector<std::string> EnumTexts(const EnumDescriptor& type) {
  std::vector<std::string> texts;
  for (int i = 0; i < type.value_count(); ++i) {
    if (type.value(i)->number() != 0) texts.push_back(EnumToText(*type.value(i)));
  }
  return texts;
}

bool IsDuration(const FieldDescriptor& field) {
  return field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE &&
         field.message_type()->full_name() == "google.protobuf.Duration";
}

bool IsSpecMessage(const Descriptor& message) {
  return message.file() == v1::JobSpec::descriptor()->file();
}

}  // namespace mt
