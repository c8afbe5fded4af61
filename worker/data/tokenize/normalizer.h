// What tokenizer.json does to a text before it is cut into pieces: Unicode's normal forms, and replacements.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace mt {

// Immutable and thread-safe once filled.
class Normalizer {
 public:
  enum class Form { kNfc, kNfd, kNfkc, kNfkd };

  void AddForm(Form form) { steps_.push_back({.kind = Step::kForm, .form = form}); }
  // Before every text that is not empty.
  void AddPrepend(std::string prefix) {
    steps_.push_back({.kind = Step::kPrepend, .to = std::move(prefix)});
  }
  // Every occurrence of `from`, which is not empty.
  void AddReplace(std::string from, std::string to) {
    steps_.push_back({.kind = Step::kReplace, .from = std::move(from), .to = std::move(to)});
  }
  bool empty() const { return steps_.empty(); }

  // `text` itself if nothing changes it, else what lies in *buffer then. Bytes that are not UTF-8 stay as they are.
  absl::string_view Normalize(absl::string_view text, std::string* buffer) const;

 private:
  struct Step {
    enum { kForm, kPrepend, kReplace } kind;
    Form form = Form::kNfc;
    std::string from, to;
  };

  std::vector<Step> steps_;
};

}  // namespace mt
