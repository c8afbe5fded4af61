#include "worker/data/dataset_verifier.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "common/hash.h"

namespace mt {

absl::StatusOr<DatasetReport> ScanDataset(Env* env, const std::string& prefix) {
  MT_ASSIGN_OR_RETURN(const auto data, IndexedDataset::Open(env, prefix));
  DatasetReport report;
  report.type = data->type();
  report.num_documents = data->num_documents();
  report.num_sequences = data->num_sequences();
  report.num_tokens = data->num_tokens();
  report.bin_bytes = data->bin_bytes();
  report.shortest = data->num_sequences() > 0 ? std::numeric_limits<int32_t>::max() : 0;
  constexpr int64_t kPiece = 1 << 18;
  std::vector<int32_t> tokens;
  for (int64_t sequence = 0; sequence < data->num_sequences(); ++sequence) {
    const int32_t length = data->Length(sequence);
    report.shortest = std::min(report.shortest, length);
    report.longest = std::max(report.longest, length);
    report.empty_sequences += length == 0 ? 1 : 0;
    for (int64_t offset = 0; offset < length; offset += kPiece) {
      tokens.resize(std::min<int64_t>(kPiece, length - offset));
      MT_RETURN_IF_ERROR(data->Read(sequence, offset, tokens));
      report.largest_id =
          std::max(report.largest_id, *std::max_element(tokens.begin(), tokens.end()));
    }
  }
  absl::StatusOr<DatasetManifest> manifest = ReadDatasetManifest(env, prefix);
  if (manifest.ok()) {
    report.manifest = *std::move(manifest);
  } else if (!absl::IsNotFound(manifest.status())) {
    return manifest.status();
  }
  return report;
}

absl::StatusOr<DatasetReport> VerifyDataset(Env* env, const std::string& prefix,
                                            int64_t vocab_size) {
  MT_ASSIGN_OR_RETURN(DatasetReport report, ScanDataset(env, prefix));
  if (vocab_size == 0 && report.manifest.has_value()) vocab_size = report.manifest->vocab_size;
  if (vocab_size > 0 && report.largest_id >= vocab_size) {
    return absl::DataLossError(absl::StrCat(prefix, ".bin: has token id ", report.largest_id,
                                            ", but the vocabulary is ", vocab_size,
                                            "; use the vocabulary that the data was built with"));
  }
  if (!report.manifest.has_value()) return report;
  const DatasetManifest& manifest = *report.manifest;
  const auto differs = [&](absl::string_view what, const auto& found, const auto& promised) {
    return absl::DataLossError(absl::StrCat(prefix, ": ", what, " ", found, ", but ",
                                            DatasetManifestPath(prefix), " says ", promised,
                                            "; copy the files again or rebuild them"));
  };
  if (manifest.type != std::string(TokenTypeName(report.type))) {
    return differs("token type", TokenTypeName(report.type), manifest.type);
  }
  if (manifest.files.num_documents != report.num_documents) {
    return differs("documents", report.num_documents, manifest.files.num_documents);
  }
  if (manifest.files.num_tokens != report.num_tokens) {
    return differs("tokens", report.num_tokens, manifest.files.num_tokens);
  }
  MT_ASSIGN_OR_RETURN(const std::string bin, Xxh3HexOfFile(env, prefix + ".bin"));
  if (bin != manifest.files.bin_xxh3)
    return differs(".bin has digest", bin, manifest.files.bin_xxh3);
  MT_ASSIGN_OR_RETURN(const std::string idx, Xxh3HexOfFile(env, prefix + ".idx"));
  if (idx != manifest.files.idx_xxh3)
    return differs(".idx has digest", idx, manifest.files.idx_xxh3);
  return report;
}

}  // namespace mt
