#include "worker/data/edit/decode.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

namespace mt {
namespace {

std::string AsJson(const std::string& key, const std::string& text, int64_t* not_utf8) {
  using nlohmann::json;
  const json object = {{key, text}};
  // Strict first: an exception, which does not leave this function, is the library's word for bytes that are not UTF-8.
  try {
    return object.dump() + "\n";
  } catch (const json::exception&) {
    ++*not_utf8;
    return object.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
  }
}

void AppendIds(const std::vector<int32_t>& ids, std::string* out) {
  for (size_t i = 0; i < ids.size(); ++i) absl::StrAppend(out, i == 0 ? "" : " ", ids[i]);
  out->push_back('\n');
}

}  // namespace

absl::Status ReadDocument(const IndexedDataset& data, int64_t document, int64_t max_tokens,
                          std::vector<int32_t>* ids) {
  ids->clear();
  const int64_t end = data.DocumentStart(document + 1);
  for (int64_t sequence = data.DocumentStart(document); sequence < end; ++sequence) {
    const size_t before = ids->size();
    const int64_t count =
        std::min<int64_t>(data.Length(sequence), max_tokens - static_cast<int64_t>(before));
    ids->resize(before + static_cast<size_t>(count));
    MT_RETURN_IF_ERROR(data.Read(sequence, 0, std::span(*ids).subspan(before)));
  }
  return absl::OkStatus();
}

absl::StatusOr<DecodeCounts> DecodeDocuments(
    const IndexedDataset& data, const Tokenizer* tokenizer, const DecodeOptions& options,
    const std::function<absl::Status(absl::string_view)>& write) {
  if (options.begin < 0 || options.begin > options.end || options.end > data.num_documents()) {
    return absl::OutOfRangeError(absl::StrCat(data.prefix(), ": documents ", options.begin, ":",
                                              options.end, " do not exist; it has ",
                                              data.num_documents(), ", counted from 0"));
  }
  DecodeCounts counts;
  std::vector<int32_t> ids;
  std::string piece;
  for (int64_t document = options.begin; document < options.end; ++document) {
    MT_RETURN_IF_ERROR(ReadDocument(data, document, std::numeric_limits<int64_t>::max(), &ids));
    ++counts.documents;
    counts.tokens += static_cast<int64_t>(ids.size());
    piece.clear();
    if (options.form == DecodeForm::kIds) {
      AppendIds(ids, &piece);
      MT_RETURN_IF_ERROR(write(piece));
      continue;
    }
    absl::StatusOr<std::string> text = tokenizer->Decode(ids, options.special);
    if (!text.ok()) {
      return Annotate(text.status(), absl::StrCat(data.prefix(), ": document ", document));
    }
    if (options.form == DecodeForm::kJsonl) {
      piece = AsJson(options.text_key, *text, &counts.not_utf8);
    } else {
      if (document > options.begin && !options.separator.empty())
        absl::StrAppend(&piece, options.separator, "\n");
      piece += *text;
      if (piece.empty() || piece.back() != '\n') piece.push_back('\n');
    }
    MT_RETURN_IF_ERROR(write(piece));
  }
  return counts;
}

}  // namespace mt
