#include <cmath>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/spec/data_traits.h"
#include "common/spec/problems.h"

namespace mt {
namespace {

using Sources = google::protobuf::RepeatedPtrField<v1::DataSource>;

void CheckPrefix(absl::string_view key, const std::string& prefix, Problems* out) {
  if (prefix.empty()) {
    out->Add(key, "a dataset without a prefix: name it, as in `{prefix: /data/text, weight: 1}`");
  } else if (absl::EndsWith(prefix, ".bin") || absl::EndsWith(prefix, ".idx")) {
    out->Add(key, "`", prefix,
             "`: is a prefix; write it without the ending: ", prefix.substr(0, prefix.size() - 4));
  } else if (prefix[0] != '/') {
    out->Add(key, "`", prefix, "`: must be absolute, as every node sees it");
  }
}

void CheckSources(const std::string& key, const Sources& sources, Problems* out) {
  int weighted = 0;
  for (int i = 0; i < sources.size(); ++i) {
    const std::string here = sources.size() == 1 ? key : absl::StrCat(key, "[", i, "]");
    CheckPrefix(here, sources[i].prefix(), out);
    if (sources[i].weight() == 0) continue;
    ++weighted;
    out->Positive(here + ".weight", sources[i].weight());
  }
  if (weighted != 0 && weighted != sources.size()) {
    out->Add(key, weighted, " of ", sources.size(),
             " datasets have a weight: give one to all of them, or to none");
  }
}

void CheckSplit(const std::string& split, Problems* out) {
  const std::vector<std::string> parts = absl::StrSplit(split, ',');
  double first = 0, sum = 0;
  bool good = parts.size() <= 3;
  for (size_t i = 0; i < parts.size() && good; ++i) {
    double share = 0;
    good = absl::SimpleAtod(parts[i], &share) && std::isfinite(share) && share >= 0;
    if (i == 0) first = share;
    sum += share;
  }
  if (!good) {
    out->Add("data.split", "`", split.substr(0, 70),
             "`: use up to three shares for train, validation and test: 969,30,1");
  } else if (!(first > 0) || !std::isfinite(sum)) {
    out->Add("data.split", "`", split.substr(0, 70),
             "`: leaves nothing to train on; use 969,30,1 or 1,0,0");
  }
}

// False: the id is not one of the vocabulary, and that has been said.
bool CheckId(absl::string_view key, int64_t id, const v1::JobSpec& spec, Problems* out) {
  const int64_t vocab = spec.model().vocab();
  if (id >= 0 && (id < vocab || vocab < 1)) return true;
  out->Add(key, id, ": is no id of a vocabulary of ", vocab, " (model.vocab); use 0 to ",
           vocab - 1);
  return false;
}

void CheckEod(const v1::JobSpec& spec, Problems* out) {
  const v1::DataSpec& d = spec.data();
  const std::string asking = WhatNeedsEod(d);
  if (asking.empty()) {
    if (d.has_eod() && d.eod() != kNoEod) CheckId("data.eod", d.eod(), spec, out);
  } else if (!d.has_eod()) {
    out->AddLine(absl::StrCat("data.eod is not set, and ", asking,
                              " needs it; set it to the id that ends a document"));
  } else if (d.eod() == kNoEod) {
    out->Add("data.eod", d.eod(), ": documents have no end, and ", asking,
             " needs one; set data.eod to the id that ends a document");
  } else {
    CheckId("data.eod", d.eod(), spec, out);
  }
}

void CheckFim(const v1::JobSpec& spec, Problems* out) {
  const v1::FimSpec& fim = spec.data().fim();
  if (fim.rate() == 0) return;
  if (spec.data().packing() == v1::DataSpec::PACKING_DOCUMENTS) {
    out->Add(
        "data.packing",
        "documents: data.fim lengthens documents, which then do not fit; use stream, or delete "
        "data.fim");
  }
  for (const auto& [key, rate] :
       {std::pair{"data.fim.rate", fim.rate()}, std::pair{"data.fim.spm_rate", fim.spm_rate()}}) {
    if (!(rate >= 0 && rate <= 1)) out->Add(key, rate, ": must be 0 to 1");
  }
  std::set<int32_t> ids;
  for (const auto& [key, has, id] :
       {std::tuple{"data.fim.prefix", fim.has_prefix(), fim.prefix()},
        std::tuple{"data.fim.middle", fim.has_middle(), fim.middle()},
        std::tuple{"data.fim.suffix", fim.has_suffix(), fim.suffix()}}) {
    if (!has) {
      out->AddLine(absl::StrCat(key,
                                " is not set, and data.fim.rate needs it; set it to the id of "
                                "that sentinel"));
    } else if (CheckId(key, id, spec, out) && !ids.insert(id).second) {
      out->Add(key, id, ": is the id of another sentinel too; each has its own");
    }
  }
}

}  // namespace

void CheckDataSection(const v1::JobSpec& spec, Problems* out) {
  const v1::DataSpec& d = spec.data();
  if (d.train().empty()) {
    out->AddLine(
        "data.train is not set; set it to the prefix of a .bin/.idx pair (`mtctl data build` "
        "makes one)");
  } else {
    CheckSources("data.train", d.train(), out);
  }
  CheckSources("data.validation", d.validation(), out);
  CheckSources("data.test", d.test(), out);
  out->Size("data.sequence_length", d.sequence_length(), 1 << 24);
  CheckSplit(d.split(), out);
  for (const auto& [key, seed] :
       {std::pair{"data.seed", d.seed()}, std::pair{"training.seed", spec.training().seed()}}) {
    if (seed < 0 || seed > 0xffffffffLL) out->Add(key, seed, ": out of range; use 0 to 4294967295");
  }
  CheckEod(spec, out);
  CheckFim(spec, out);
}

}  // namespace mt
