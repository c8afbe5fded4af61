#include "tests/simulation/sim_datasets.h"

#include <algorithm>

#include "common/hash.h"

namespace mt {
namespace {

constexpr size_t kPieceBytes = 1000;

struct Reading : std::enable_shared_from_this<Reading> {
  EventLoop* loop = nullptr;
  Random* random = nullptr;
  SimDatasetTransport::Source source;
  std::string endpoint, digest;
  size_t offset = 0;
  std::function<void(const v1::FilePiece&)> on_piece;
  std::function<void(absl::Status)> on_end;
  bool alive = true;

  void Go() {
    loop->After(absl::Milliseconds(5 + 100 * random->Uniform()), [self = shared_from_this()] {
      if (self->alive) self->Step();
    });
  }
  void Step() {
    const absl::StatusOr<std::string> contents = source(endpoint, digest);
    if (!contents.ok()) return on_end(contents.status());
    if (offset >= contents->size()) return on_end(absl::OkStatus());
    v1::FilePiece piece;
    piece.set_offset(static_cast<int64_t>(offset));
    piece.set_data(contents->substr(offset, kPieceBytes));
    piece.set_total_bytes(static_cast<int64_t>(contents->size()));
    offset += piece.data().size();
    Go();
    on_piece(piece);
  }
};

struct Stream : DatasetStream {
  explicit Stream(std::shared_ptr<Reading> given) : reading(std::move(given)) {}
  ~Stream() override { reading->alive = false; }
  const std::shared_ptr<Reading> reading;
};

}  // namespace

std::string SimDatasetFile(const std::string& path) {
  const size_t bytes =
      path.ends_with(".idx") ? 100 : 2000 + 97 * (Xxh3Hex(path)[0] + Xxh3Hex(path)[1]);
  std::string contents;
  while (contents.size() < bytes) absl::StrAppend(&contents, path, " ", contents.size(), "\n");
  contents.resize(bytes);
  return contents;
}

std::shared_ptr<const void> SimDigester::Digest(
    std::vector<std::string> prefixes, std::function<void(int64_t, int64_t)> progress,
    std::function<void(absl::StatusOr<std::vector<v1::DatasetFile>>)> done) {
  std::vector<v1::DatasetFile> files;
  for (const std::string& prefix : prefixes) {
    for (const char* suffix : {".idx", ".bin"}) {
      v1::DatasetFile& file = files.emplace_back();
      file.set_path(prefix + suffix);
      const std::string contents = SimDatasetFile(file.path());
      file.set_bytes(static_cast<int64_t>(contents.size()));
      file.set_xxh3_128(Xxh3Hex(contents));
    }
  }
  loop_->After(absl::Seconds(random_->Uniform()), [progress] { progress(1, 2); });
  loop_->After(absl::Seconds(1 + 5 * random_->Uniform()),
               [done, files = std::move(files)] { done(files); });
  return nullptr;  // it is done soon
}

std::unique_ptr<DatasetStream> SimDatasetTransport::Read(
    const std::string& endpoint, const std::string& digest, int64_t offset,
    std::function<void(const v1::FilePiece&)> on_piece, std::function<void(absl::Status)> on_end) {
  auto reading = std::make_shared<Reading>();
  reading->loop = loop_;
  reading->random = random_;
  reading->source = source_;
  reading->endpoint = endpoint;
  reading->digest = digest;
  reading->offset = static_cast<size_t>(offset);
  reading->on_piece = std::move(on_piece);
  reading->on_end = std::move(on_end);
  reading->Go();
  return std::make_unique<Stream>(std::move(reading));
}

}  // namespace mt
