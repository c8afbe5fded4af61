#include "worker/data/indexed_dataset.h"

#include <array>
#include <cstring>
#include <limits>
#include <vector>

#include "common/check.h"

namespace mt {
namespace {

template <typename T>
T Load(const char* at) {
  T value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

template <typename T>
bool Widen(const char* raw, std::span<int32_t> tokens) {
  bool fits = true;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const T value = Load<T>(raw + i * sizeof(T));
    if constexpr (std::is_signed_v<T>) fits &= value >= 0;
    if constexpr (sizeof(T) > 4) fits &= value <= std::numeric_limits<int32_t>::max();
    tokens[i] = static_cast<int32_t>(value);
  }
  return fits;
}

bool Widen(TokenType type, const char* raw, std::span<int32_t> tokens) {
  switch (type) {
    case TokenType::kUint8:
      return Widen<uint8_t>(raw, tokens);
    case TokenType::kInt8:
      return Widen<int8_t>(raw, tokens);
    case TokenType::kInt16:
      return Widen<int16_t>(raw, tokens);
    case TokenType::kInt32:
      return Widen<int32_t>(raw, tokens);
    case TokenType::kInt64:
      return Widen<int64_t>(raw, tokens);
    case TokenType::kUint16:
      return Widen<uint16_t>(raw, tokens);
  }
  return false;
}

}  // namespace

int TokenBytes(TokenType type) {
  switch (type) {
    case TokenType::kUint8:
    case TokenType::kInt8:
      return 1;
    case TokenType::kInt16:
    case TokenType::kUint16:
      return 2;
    case TokenType::kInt32:
      return 4;
    case TokenType::kInt64:
      return 8;
  }
  return 0;
}

absl::string_view TokenTypeName(TokenType type) {
  switch (type) {
    case TokenType::kUint8:
      return "uint8";
    case TokenType::kInt8:
      return "int8";
    case TokenType::kInt16:
      return "int16";
    case TokenType::kInt32:
      return "int32";
    case TokenType::kInt64:
      return "int64";
    case TokenType::kUint16:
      return "uint16";
  }
  return "unknown";
}

TokenType TokenTypeForVocabulary(int64_t vocab_size) {
  return vocab_size < 65500 ? TokenType::kUint16 : TokenType::kInt32;
}

absl::StatusOr<std::unique_ptr<IndexedDataset>> IndexedDataset::Open(Env* env,
                                                                     const std::string& prefix) {
  auto dataset = std::unique_ptr<IndexedDataset>(new IndexedDataset());
  dataset->prefix_ = prefix;
  absl::StatusOr<std::unique_ptr<MappedFile>> mapping = MappedFile::Open(prefix + ".idx");
  if (absl::IsNotFound(mapping.status())) {
    return absl::NotFoundError(absl::StrCat(
        mapping.status().message(),
        "; data.train is the path without .idx or .bin (build it with `mtctl data build`)"));
  }
  MT_ASSIGN_OR_RETURN(dataset->mapping_, std::move(mapping));
  dataset->index_ = dataset->mapping_->bytes().data();
  dataset->index_bytes_ = dataset->mapping_->bytes().size();
  absl::StatusOr<std::unique_ptr<RandomAccessFile>> bin = env->NewRandomAccessFile(prefix + ".bin");
  if (absl::IsNotFound(bin.status())) {
    return absl::NotFoundError(absl::StrCat(
        prefix, ".bin is missing although ", prefix,
        ".idx is there; copy both files, or build them again with `mtctl data build`"));
  }
  if (!bin.ok()) return bin.status();
  dataset->bin_ = *std::move(bin);
  MT_ASSIGN_OR_RETURN(dataset->bin_bytes_, dataset->bin_->Size());
  MT_RETURN_IF_ERROR(dataset->Validate());
  return dataset;
}

absl::Status IndexedDataset::Validate() {
  const std::string file = prefix_ + ".idx";
  const auto foreign = [&](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": ", parts...));
  };
  const auto broken = [&](const auto&... parts) {
    return absl::DataLossError(absl::StrCat(
        file, ": ", parts..., "; copy it again or rebuild it with `mtctl data build`"));
  };
  if (index_bytes_ < kIndexHeaderBytes) {
    return broken("only ", index_bytes_, " bytes long, shorter than the header of ",
                  kIndexHeaderBytes);
  }
  if (std::memcmp(index_, kIndexMagic.data(), kIndexMagic.size()) != 0) {
    return foreign(
        "magic: does not begin with MMIDIDX, so it is not a Megatron index (data.train wants the "
        "prefix of a "
        ".bin/.idx pair)");
  }
  const uint64_t version = Load<uint64_t>(index_ + 9);
  if (version != kIndexVersion) {
    return foreign("version: ", version,
                   ", but only version 1 is known; convert the data with the tool that wrote it");
  }
  const uint8_t code = Load<uint8_t>(index_ + 17);
  if (code < 1 || code > 8 || code == 6 || code == 7) {
    return foreign(
        "token type: code ", static_cast<int>(code),
        code == 6 || code == 7 ? " is floating point" : " is unknown",
        ", but tokens are integers (1 uint8, 2 int8, 3 int16, 4 int32, 5 int64, 8 uint16)");
  }
  type_ = static_cast<TokenType>(code);
  const uint64_t sequences = Load<uint64_t>(index_ + 18);
  const uint64_t entries = Load<uint64_t>(index_ + 26);
  // Divide instead of multiplying: the counts are foreign and may be anything up to 2^64-1.
  const uint64_t room = index_bytes_ - kIndexHeaderBytes;
  if (sequences > room / 12 || entries > (room - 12 * sequences) / 8) {
    return broken("counts: ", sequences, " sequences and ", entries,
                  " document entries do not fit its ", index_bytes_, " bytes (cut off?)");
  }
  const uint64_t rest = room - 12 * sequences - 8 * entries;
  if (rest == sequences && sequences > 0) {
    return foreign(
        "has a byte of mode per sequence, so it is a multimodal dataset, which is not supported");
  }
  if (rest != 0) return broken("has ", rest, " bytes after its last document entry");
  if (entries == 0) return broken("counts: no document entries, not even the closing one");
  num_sequences_ = static_cast<int64_t>(sequences);
  num_document_entries_ = static_cast<int64_t>(entries);

  const uint64_t token_bytes = TokenBytes(type_);
  uint64_t end = 0;  // of the sequence before, in bytes of PREFIX.bin
  for (int64_t i = 0; i < num_sequences_; ++i) {
    const int32_t length = Length(i);
    if (length < 0) return broken("length of sequence ", i, ": ", length);
    const uint64_t pointer = Pointer(i);
    if (pointer != end) {
      return broken("pointer of sequence ", i, ": ", static_cast<int64_t>(pointer),
                    ", but the sequence before ends at ", end);
    }
    const uint64_t bytes = static_cast<uint64_t>(length) * token_bytes;
    if (bytes > bin_bytes_ - end) {
      return absl::DataLossError(absl::StrCat(
          prefix_, ".bin: ", bin_bytes_, " bytes, but sequence ", i, " of ", file, " ends at byte ",
          end + bytes, "; it is cut off or belongs to another .idx: copy both files again"));
    }
    end += bytes;
  }
  if (end != bin_bytes_) {
    return absl::DataLossError(absl::StrCat(prefix_, ".bin: ", bin_bytes_, " bytes, but ", file,
                                            " describes ", end,
                                            "; it belongs to another .idx: copy both files again"));
  }
  num_tokens_ = static_cast<int64_t>(end / token_bytes);
  int64_t before = 0;
  for (int64_t i = 0; i < num_document_entries_; ++i) {
    const int64_t start = DocumentStart(i);
    if ((i == 0 && start != 0) || start < before || start > num_sequences_) {
      return broken("document entry ", i, ": ", start, ", but entries rise from 0 to the ",
                    num_sequences_, " sequences");
    }
    before = start;
  }
  if (before != num_sequences_) {
    return broken("last document entry: ", before, ", but there are ", num_sequences_,
                  " sequences");
  }
  return absl::OkStatus();
}

int32_t IndexedDataset::Length(int64_t sequence) const {
  return Load<int32_t>(index_ + kIndexHeaderBytes + 4 * sequence);
}

uint64_t IndexedDataset::Pointer(int64_t sequence) const {
  return Load<uint64_t>(index_ + kIndexHeaderBytes + 4 * num_sequences_ + 8 * sequence);
}

int64_t IndexedDataset::TokenOffset(int64_t sequence) const {
  if (sequence == num_sequences_) return num_tokens_;
  return static_cast<int64_t>(Pointer(sequence)) / TokenBytes(type_);
}

int64_t IndexedDataset::DocumentStart(int64_t document) const {
  return Load<int64_t>(index_ + kIndexHeaderBytes + 12 * num_sequences_ + 8 * document);
}

absl::Status IndexedDataset::Read(int64_t sequence, int64_t offset,
                                  std::span<int32_t> tokens) const {
  if (sequence < 0 || sequence >= num_sequences_ || offset < 0 || offset > Length(sequence) ||
      static_cast<int64_t>(tokens.size()) > Length(sequence) - offset) {
    return absl::OutOfRangeError(absl::StrCat(prefix_, ": tokens ", offset, " to ",
                                              offset + static_cast<int64_t>(tokens.size()),
                                              " of sequence ", sequence, " do not exist"));
  }
  const size_t token_bytes = TokenBytes(type_);
  const uint64_t start = Pointer(sequence) + static_cast<uint64_t>(offset) * token_bytes;
  std::array<char, 16384> raw;
  for (size_t done = 0; done < tokens.size();) {
    const size_t count = std::min(tokens.size() - done, raw.size() / token_bytes);
    MT_ASSIGN_OR_RETURN(const size_t bytes,
                        bin_->Read(start + done * token_bytes, count * token_bytes, raw.data()));
    if (bytes != count * token_bytes) {
      return absl::DataLossError(
          absl::StrCat(prefix_, ".bin: ends at byte ", start + done * token_bytes + bytes,
                       ", shorter than when it was opened; it was changed during the run"));
    }
    if (!Widen(type_, raw.data(), tokens.subspan(done, count))) {
      return absl::DataLossError(
          absl::StrCat(prefix_, ".bin: sequence ", sequence, " has a ", TokenTypeName(type_),
                       " id that is negative or above 2147483647 near token ", offset + done,
                       "; rebuild it with `mtctl data build`"));
    }
    done += count;
  }
  return absl::OkStatus();
}

}  // namespace mt
