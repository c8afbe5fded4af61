#include "worker/data/edit/split_plan.h"

#include <algorithm>
#include <array>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "worker/data/sample/sample_index.h"

namespace mt {
namespace {

constexpr std::array<absl::string_view, 3> kShareNames = {"train", "validation", "test"};

absl::StatusOr<std::vector<SplitPiece>> Shares(const IndexedDataset& data,
                                               const std::string& shares) {
  MT_ASSIGN_OR_RETURN(const std::vector<SequenceRange> ranges,
                      SplitSequences(shares, data.num_documents()));
  const std::vector<std::string> parts = absl::StrSplit(shares, ',');
  std::vector<SplitPiece> pieces;
  for (size_t i = 0; i < parts.size(); ++i) {
    double share = 0;
    if (!absl::SimpleAtod(parts[i], &share) || share == 0) continue;
    if (ranges[i].begin == ranges[i].end) {
      return absl::InvalidArgumentError(absl::StrCat(
          data.prefix(), ": its ", data.num_documents(), " documents leave none for the share of ",
          parts[i], " in \"", shares, "\"; write 0 for it, or a larger share"));
    }
    pieces.push_back({std::string(kShareNames[i]), ranges[i].begin, ranges[i].end});
  }
  pieces.back().end = data.num_documents();
  return pieces;
}

int64_t EndOfPiece(const IndexedDataset& data, int64_t begin, const SplitOptions& options) {
  if (options.max_documents > 0)
    return begin + std::min(options.max_documents, data.num_documents() - begin);
  // The last document that ends within the limit; tokens before a document never fall.
  const auto tokens_before = [&](int64_t document) {
    return data.TokenOffset(data.DocumentStart(document));
  };
  const auto token_bytes = static_cast<uint64_t>(TokenBytes(data.type()));
  const uint64_t limit = options.max_bytes / token_bytes;
  int64_t low = begin + 1;
  int64_t high = data.num_documents();
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    if (static_cast<uint64_t>(tokens_before(middle) - tokens_before(begin)) <= limit) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

}  // namespace

absl::StatusOr<std::vector<SplitPiece>> PlanSplit(const IndexedDataset& data,
                                                  const SplitOptions& options) {
  const int ways = (options.shares.empty() ? 0 : 1) + (options.max_documents > 0 ? 1 : 0) +
                   (options.max_bytes > 0 ? 1 : 0);
  if (ways != 1) {
    return absl::InvalidArgumentError(
        "say in one way where to split: --shares 98,1,1, --documents N or --size BYTES");
  }
  if (data.num_documents() == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(data.prefix(), ": has no documents, so there is nothing to split"));
  }
  if (!options.shares.empty()) return Shares(data, options.shares);
  std::vector<SplitPiece> pieces;
  for (int64_t begin = 0; begin < data.num_documents();) {
    if (static_cast<int64_t>(pieces.size()) == kMaxSplitPieces) {
      return absl::InvalidArgumentError(absl::StrCat(
          data.prefix(), ": ", begin, " of ", data.num_documents(), " documents already fill ",
          kMaxSplitPieces, " pieces, and more are not made; allow larger pieces"));
    }
    const int64_t end = EndOfPiece(data, begin, options);
    pieces.push_back({"", begin, end});
    begin = end;
  }
  const int digits = static_cast<int>(absl::StrCat(pieces.size() - 1).size());
  for (size_t i = 0; i < pieces.size(); ++i)
    pieces[i].name = absl::StrFormat("%0*d", digits, static_cast<int>(i));
  return pieces;
}

}  // namespace mt
