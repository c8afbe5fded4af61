#include "tests/golden/sample_order/sample_order.h"

#include "common/env.h"
#include "worker/data/sample/dataset_batch_source.h"

namespace mt {
namespace {

template <typename Sources>
void AddSources(const nlohmann::json& c, const char* key, const std::string& folder,
                const Sources& add) {
  for (const auto& source : c.value(key, nlohmann::json::array())) {
    v1::DataSource* const out = add();
    out->set_prefix(JoinPath(folder, source.at(0).get<std::string>()));
    out->set_weight(source.at(1).get<double>());
  }
}

v1::JobSpec SpecOf(const nlohmann::json& c, const std::string& folder) {
  v1::JobSpec spec;
  v1::DataSpec& data = *spec.mutable_data();
  AddSources(c, "train", folder, [&] { return data.add_train(); });
  AddSources(c, "validation", folder, [&] { return data.add_validation(); });
  AddSources(c, "test", folder, [&] { return data.add_test(); });
  data.set_split(c.value("split", ""));
  data.set_sequence_length(c.at("sequence_length").get<int64_t>());
  data.set_seed(c.at("seed").get<int64_t>());
  data.set_eod(c.at("eod").get<int32_t>());
  data.set_mask_eod(c.at("mask_eod").get<bool>());
  data.set_packing(v1::DataSpec::PACKING_STREAM);
  v1::TrainingSpec& training = *spec.mutable_training();
  training.set_global_batch(1);
  training.set_steps(c.at("samples").get<int64_t>());
  training.mutable_evaluation()->set_batches(training.steps());
  return spec;
}

absl::Status ReadSamples(const v1::JobSpec& spec, DataShare share, int64_t count,
                         OrderArrays* arrays) {
  MT_ASSIGN_OR_RETURN(const std::unique_ptr<BatchSource> source,
                      OpenData(Env::Real(), spec, share));
  const auto length = static_cast<size_t>(spec.data().sequence_length());
  std::vector<int32_t> tokens(length + 1), starts(length);
  std::vector<uint8_t> mask(length);
  for (int64_t sample = 0; sample < count; ++sample) {
    MT_RETURN_IF_ERROR(source->Fetch(
        {&sample, 1}, {.tokens = tokens, .loss_mask = mask, .document_start = starts}));
    const auto append = [&](const char* name, const auto& values) {
      auto& out = (*arrays)[name];
      out.insert(out.end(), values.begin(), values.end());
    };
    append("tokens", tokens);
    append("loss_mask", mask);
    for (size_t t = 0; t < length; ++t) starts[t] = static_cast<int32_t>(t) - starts[t];
    append("positions", starts);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<OrderArrays> OrderOf(const nlohmann::json& c, const std::string& folder) {
  const v1::JobSpec spec = SpecOf(c, folder);
  const auto share = static_cast<DataShare>(c.at("share").get<int>());
  const BlendOptions options = BlendOptionsOf(spec, share);
  MT_ASSIGN_OR_RETURN(const std::unique_ptr<BlendedDataset> blended,
                      BlendedDataset::Open(Env::Real(), options));
  OrderArrays arrays;
  for (size_t i = 0; i < options.sources.size(); ++i) {
    const SampleIndex& index = blended->dataset(i).index();
    arrays[absl::StrCat(i, ".document")] = {index.document_index.begin(),
                                            index.document_index.end()};
    arrays[absl::StrCat(i, ".shuffle")] = {index.shuffle_index.begin(), index.shuffle_index.end()};
    for (const SampleStart& start : index.sample_index) {
      auto& out = arrays[absl::StrCat(i, ".sample")];
      out.push_back(start.position);
      out.push_back(start.offset);
    }
  }
  for (int64_t k = 0; blended->is_blend() && k < blended->num_samples(); ++k) {
    const BlendedDataset::Origin origin = blended->OriginOf(k);
    arrays["blend.dataset"].push_back(static_cast<int64_t>(origin.dataset));
    arrays["blend.sample"].push_back(origin.sample);
  }
  MT_RETURN_IF_ERROR(ReadSamples(spec, share, c.at("read").get<int64_t>(), &arrays));
  return arrays;
}

}  // namespace mt
