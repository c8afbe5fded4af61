#include "worker/data/indexed_dataset_writer.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "common/check.h"
#include "worker/data/dataset_commit.h"

namespace mt {
namespace {

constexpr size_t kBufferBytes = 1 << 20;

template <typename T>
absl::string_view Raw(const T& value) {
  return absl::string_view(reinterpret_cast<const char*>(&value), sizeof(T));
}

absl::Status DoesNotFit(int32_t token, TokenType type) {
  return absl::InvalidArgumentError(
      absl::StrCat("token id ", token, " does not fit ", TokenTypeName(type)));
}

}  // namespace

absl::Status AppendTokens(TokenType type, std::span<const int32_t> tokens, std::string* bin) {
  const size_t had = bin->size();
  if (type == TokenType::kUint16) {
    bin->resize(had + 2 * tokens.size());
    uint32_t all = 0;
    char* to = bin->data() + had;
    for (size_t i = 0; i < tokens.size(); ++i) {
      all |= static_cast<uint32_t>(tokens[i]);
      const uint16_t id = static_cast<uint16_t>(tokens[i]);
      std::memcpy(to + 2 * i, &id, sizeof(id));
    }
    if (all <= std::numeric_limits<uint16_t>::max()) return absl::OkStatus();
  } else {
    const char* from = reinterpret_cast<const char*>(tokens.data());
    bin->append(from, tokens.size() * sizeof(int32_t));
    if (tokens.empty() || *std::min_element(tokens.begin(), tokens.end()) >= 0)
      return absl::OkStatus();
  }
  bin->resize(had);
  const int32_t largest = type == TokenType::kUint16 ? std::numeric_limits<uint16_t>::max()
                                                     : std::numeric_limits<int32_t>::max();
  return DoesNotFit(*std::find_if(tokens.begin(), tokens.end(),
                                  [&](int32_t id) { return id < 0 || id > largest; }),
                    type);
}

IndexedDatasetWriter::IndexedDatasetWriter(Env* env, std::string prefix, TokenType type,
                                           bool makes_loss)
    : env_(env), prefix_(std::move(prefix)), type_(type), makes_loss_(makes_loss) {}

absl::StatusOr<std::unique_ptr<IndexedDatasetWriter>> IndexedDatasetWriter::Create(
    Env* env, const std::string& prefix, TokenType type, bool makes_loss, const State* state,
    std::unique_ptr<FileLock> lock) {
  if (lock == nullptr) {
    MT_ASSIGN_OR_RETURN(lock, LockDataset(env, prefix));
  }
  auto writer = std::unique_ptr<IndexedDatasetWriter>(
      new IndexedDatasetWriter(env, prefix, type, makes_loss));
  writer->lock_ = std::move(lock);
  writer->keep_ = state != nullptr;  // until all of it was found to be there
  const auto open = [&](absl::string_view name, const SpoolFile::State* from) {
    return SpoolFile::Open(env, absl::StrCat(prefix, name, ".partial"), from);
  };
  MT_ASSIGN_OR_RETURN(writer->bin_, open(".bin", state == nullptr ? nullptr : &state->bin));
  MT_ASSIGN_OR_RETURN(writer->lengths_,
                      open(".lengths", state == nullptr ? nullptr : &state->lengths));
  if (makes_loss) {
    MT_ASSIGN_OR_RETURN(writer->loss_, open(".loss", state == nullptr ? nullptr : &state->loss));
  }
  if (state != nullptr) {
    writer->packer_.set_open_byte(state->open_loss);
    writer->num_documents_ = state->num_documents;
    writer->num_tokens_ = state->num_tokens;
  }
  writer->keep_ = false;
  return writer;
}

IndexedDatasetWriter::~IndexedDatasetWriter() {
  // Without the lock the files belong to someone else. Errors have nowhere to go: a leftover
  // .partial is harmless.
  if (lock_ == nullptr || keep_) return;
  bin_.reset();
  lengths_.reset();
  loss_.reset();
  for (absl::string_view name : {".bin.partial", ".idx.partial", ".lengths.partial",
                                 ".loss.partial", ".manifest.json.partial"}) {
    env_->RemoveFile(absl::StrCat(prefix_, name)).IgnoreError();
  }
}

absl::Status IndexedDatasetWriter::AddDocument(std::span<const int32_t> tokens,
                                               std::span<const uint8_t> loss) {
  if (tokens.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    return absl::InvalidArgumentError(
        absl::StrCat("document ", num_documents_, " has ", tokens.size(),
                     " tokens; one document holds at most 2147483647"));
  }
  scratch_.clear();
  MT_RETURN_IF_ERROR(
      Annotate(AppendTokens(type_, tokens, &scratch_), absl::StrCat("document ", num_documents_)));
  const int32_t length = static_cast<int32_t>(tokens.size());
  return AddEncoded(scratch_, std::span(&length, 1), loss);
}

absl::Status IndexedDatasetWriter::AddEncoded(absl::string_view bin,
                                              std::span<const int32_t> lengths,
                                              std::span<const uint8_t> loss) {
  MT_CHECK(bin_ != nullptr) << "a document after Seal";
  const int64_t num_tokens = static_cast<int64_t>(bin.size()) / TokenBytes(type_);
  MT_CHECK(loss.empty() || (makes_loss_ && static_cast<int64_t>(loss.size()) == num_tokens));
  MT_RETURN_IF_ERROR(bin_->Append(bin));
  MT_RETURN_IF_ERROR(lengths_->Append(absl::string_view(
      reinterpret_cast<const char*>(lengths.data()), lengths.size() * sizeof(int32_t))));
  if (makes_loss_) MT_RETURN_IF_ERROR(AddLoss(num_tokens, loss));
  num_documents_ += static_cast<int64_t>(lengths.size());
  num_tokens_ += num_tokens;
  return absl::OkStatus();
}

absl::Status IndexedDatasetWriter::AddLoss(int64_t num_tokens, std::span<const uint8_t> loss) {
  std::string packed;
  if (loss.empty()) {
    packer_.Append(std::vector<uint8_t>(num_tokens, 1), &packed);
  } else {
    packer_.Append(loss, &packed);
  }
  return loss_->Append(packed);
}

absl::StatusOr<IndexedDatasetWriter::State> IndexedDatasetWriter::Sync() {
  State state{.num_documents = num_documents_, .num_tokens = num_tokens_};
  MT_ASSIGN_OR_RETURN(state.bin, bin_->Sync());
  MT_ASSIGN_OR_RETURN(state.lengths, lengths_->Sync());
  if (makes_loss_) {
    MT_ASSIGN_OR_RETURN(state.loss, loss_->Sync());
    state.open_loss = packer_.open_byte();
  }
  return state;
}

absl::StatusOr<IndexedDatasetSummary> IndexedDatasetWriter::Seal() {
  MT_CHECK(bin_ != nullptr) << "Seal twice";
  IndexedDatasetSummary summary{.num_documents = num_documents_, .num_tokens = num_tokens_};
  MT_ASSIGN_OR_RETURN(const SpoolFile::State bin, bin_->Finish());
  MT_RETURN_IF_ERROR(lengths_->Finish().status());
  bin_.reset();
  lengths_.reset();
  summary.bin_bytes = bin.bytes;
  summary.bin_xxh3 = bin.xxh3;
  if (makes_loss_) {
    std::string last;
    packer_.Finish(&last);
    MT_RETURN_IF_ERROR(loss_->Append(last));
    MT_ASSIGN_OR_RETURN(const SpoolFile::State loss, loss_->Finish());
    loss_.reset();
    summary.loss_bytes = loss.bytes;
    summary.loss_xxh3 = loss.xxh3;
  }
  MT_ASSIGN_OR_RETURN(const SpoolFile::State index, WriteIndex());
  summary.idx_bytes = index.bytes;
  summary.idx_xxh3 = index.xxh3;
  MT_RETURN_IF_ERROR(env_->SyncDirectory(DatasetFolder(prefix_)));
  return summary;
}

absl::Status IndexedDatasetWriter::Commit(const DatasetManifest* manifest) {
  if (manifest != nullptr) MT_RETURN_IF_ERROR(StageManifest(env_, prefix_, *manifest).status());
  return CommitDataset(env_, prefix_, {.manifest = manifest != nullptr, .loss = makes_loss_});
}

absl::StatusOr<SpoolFile::State> IndexedDatasetWriter::WriteIndex() {
  MT_ASSIGN_OR_RETURN(const auto index, SpoolFile::Open(env_, prefix_ + ".idx.partial"));
  MT_ASSIGN_OR_RETURN(const auto lengths, env_->NewRandomAccessFile(prefix_ + ".lengths.partial"));
  const auto for_each_length = [&](const auto& visit) -> absl::Status {
    std::string buffer(kBufferBytes, '\0');
    for (uint64_t offset = 0;; offset += buffer.size()) {
      MT_ASSIGN_OR_RETURN(const size_t bytes, lengths->Read(offset, buffer.size(), buffer.data()));
      for (size_t i = 0; i + sizeof(int32_t) <= bytes; i += sizeof(int32_t)) {
        int32_t length;
        std::memcpy(&length, buffer.data() + i, sizeof(length));
        MT_RETURN_IF_ERROR(visit(length));
      }
      if (bytes < buffer.size()) return absl::OkStatus();
    }
  };
  MT_RETURN_IF_ERROR(index->Append(kIndexMagic));
  MT_RETURN_IF_ERROR(index->Append(Raw(kIndexVersion)));
  MT_RETURN_IF_ERROR(index->Append(Raw(type_)));
  MT_RETURN_IF_ERROR(index->Append(Raw(num_documents_)));
  MT_RETURN_IF_ERROR(index->Append(Raw(num_documents_ + 1)));
  MT_RETURN_IF_ERROR(for_each_length([&](int32_t length) { return index->Append(Raw(length)); }));
  int64_t pointer = 0;
  MT_RETURN_IF_ERROR(for_each_length([&](int32_t length) {
    const absl::Status status = index->Append(Raw(pointer));
    pointer += int64_t{length} * TokenBytes(type_);
    return status;
  }));
  for (int64_t document = 0; document <= num_documents_; ++document)
    MT_RETURN_IF_ERROR(index->Append(Raw(document)));
  return index->Finish();
}

}  // namespace mt
