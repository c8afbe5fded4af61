#include "worker/data/dataset_verifier.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <vector>

#include "common/hash.h"
#include "worker/data/dataset_source.h"

namespace mt {

namespace {

constexpr int64_t kPiece = 1 << 18;  // tokens

// One document after the other into the report.
class Scanner {
 public:
  Scanner(const IndexedDataset& data, const LossFile* losses, int32_t eod, DatasetReport* report)
      : data_(data), losses_(losses), eod_(eod), report_(*report) {}

  absl::Status ScanDocument(int64_t document) {
    int64_t length = 0;
    int32_t last = -1;
    const int64_t end = data_.DocumentStart(document + 1);
    for (int64_t sequence = data_.DocumentStart(document); sequence < end; ++sequence) {
      MT_RETURN_IF_ERROR(ScanSequence(sequence, &last));
      length += data_.Length(sequence);
    }
    ++report_
          .documents_of_length[static_cast<size_t>(std::bit_width(static_cast<uint64_t>(length)))];
    if (eod_ >= 0 && last == eod_) ++report_.documents_with_eod;
    return absl::OkStatus();
  }

 private:
  absl::Status ScanSequence(int64_t sequence, int32_t* last) {
    const int32_t length = data_.Length(sequence);
    report_.shortest = std::min(report_.shortest, length);
    report_.longest = std::max(report_.longest, length);
    report_.empty_sequences += length == 0 ? 1 : 0;
    for (int64_t offset = 0; offset < length; offset += kPiece) {
      tokens_.resize(std::min<int64_t>(kPiece, length - offset));
      MT_RETURN_IF_ERROR(data_.Read(sequence, offset, tokens_));
      report_.largest_id =
          std::max(report_.largest_id, *std::max_element(tokens_.begin(), tokens_.end()));
      *last = tokens_.back();
      if (losses_ == nullptr) continue;
      with_loss_.resize(tokens_.size());
      MT_RETURN_IF_ERROR(losses_->Read(data_.TokenOffset(sequence) + offset, with_loss_));
      *report_.tokens_with_loss += std::count(with_loss_.begin(), with_loss_.end(), 1);
    }
    return absl::OkStatus();
  }

  const IndexedDataset& data_;
  const LossFile* const losses_;
  const int32_t eod_;
  DatasetReport& report_;
  std::vector<int32_t> tokens_;
  std::vector<uint8_t> with_loss_;
};

// Of the last byte of PREFIX.loss.
absl::Status CheckUnusedBits(Env* env, const std::string& prefix, int64_t num_tokens) {
  if (num_tokens % 8 == 0) return absl::OkStatus();
  MT_ASSIGN_OR_RETURN(const auto file, env->NewRandomAccessFile(LossPath(prefix)));
  char last = 0;
  MT_RETURN_IF_ERROR(file->Read(LossBytes(num_tokens) - 1, 1, &last).status());
  if ((static_cast<uint8_t>(last) >> (num_tokens % 8)) == 0) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(LossPath(prefix), ": bits behind the last token, number ",
                                          num_tokens - 1,
                                          ", are set; copy the file again or rebuild the data"));
}

}  // namespace

absl::StatusOr<DatasetReport> ScanDataset(Env* env, const std::string& prefix, int32_t eod) {
  MT_ASSIGN_OR_RETURN(const DatasetSource source, OpenDatasetSource(env, prefix));
  const IndexedDataset& data = *source.data;
  DatasetReport report;
  report.type = data.type();
  report.num_documents = data.num_documents();
  report.num_sequences = data.num_sequences();
  report.num_tokens = data.num_tokens();
  report.bin_bytes = data.bin_bytes();
  report.shortest = data.num_sequences() > 0 ? std::numeric_limits<int32_t>::max() : 0;
  report.manifest = source.manifest;
  if (source.losses != nullptr) report.tokens_with_loss = 0;
  Scanner scanner(data, source.losses.get(), eod, &report);
  for (int64_t document = 0; document < data.num_documents(); ++document)
    MT_RETURN_IF_ERROR(scanner.ScanDocument(document));
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
  if (report.tokens_with_loss.has_value()) {
    MT_RETURN_IF_ERROR(CheckUnusedBits(env, prefix, report.num_tokens));
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
  if (report.tokens_with_loss.has_value()) {
    MT_ASSIGN_OR_RETURN(const std::string loss, Xxh3HexOfFile(env, LossPath(prefix)));
    if (loss != manifest.files.loss_xxh3) {
      return differs(".loss has digest", loss,
                     manifest.files.loss_xxh3.empty() ? "nothing of it" : manifest.files.loss_xxh3);
    }
  }
  return report;
}

}  // namespace mt
