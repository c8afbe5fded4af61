#include <chrono>
#include <thread>

#include "client/checkpoint_commands.h"
#include "common/env.h"
#include "common/hash.h"
#include "worker/checkpoint/manifest.h"

namespace mt::client {
namespace {

constexpr int kMaxBreaks = 5;  // without a byte between them

// Receives the files of one manifest in its order. Invariant: files before `index` are whole and checked; of file `index`,
// `offset` bytes are written to its temporary name and are in `digest`.
class Receiver {
 public:
  Receiver(std::string root) : root_(std::move(root)) {}

  bool has_manifest() const { return has_manifest_; }
  bool done() const { return has_manifest_ && index_ == manifest_.files_size(); }
  const v1::CheckpointManifest& manifest() const { return manifest_; }
  const std::string& folder() const { return folder_; }
  std::string next_file() const {
    return done() || !has_manifest_ ? "" : manifest_.files(index_).name();
  }
  int64_t offset() const { return offset_; }

  absl::Status SetManifest(const v1::CheckpointManifest& manifest) {
    MT_RETURN_IF_ERROR(ValidateManifest(manifest));
    MT_ASSIGN_OR_RETURN(folder_, CheckpointFolder(root_, manifest.job_id(), manifest.step()));
    MT_RETURN_IF_ERROR(Env::Real()->CreateDirectories(folder_));
    manifest_ = manifest;
    has_manifest_ = true;
    return SkipPresent();
  }

  absl::Status Add(const v1::PullPiece& piece) {
    if (done())
      return absl::DataLossError(
          absl::StrCat("the stream goes on after its last file with ", piece.file()));
    const v1::CheckpointFile& file = manifest_.files(index_);
    if (piece.file() != file.name() || piece.offset() != offset_) {
      return absl::DataLossError(absl::StrCat("the stream has ", piece.file(), " at ",
                                              piece.offset(), " where ", file.name(), " at ",
                                              offset_, " was due"));
    }
    if (offset_ + static_cast<int64_t>(piece.data().size()) > file.size_bytes()) {
      return absl::DataLossError(absl::StrCat(file.name(), " is longer than the ",
                                              file.size_bytes(), " bytes of the manifest"));
    }
    if (out_ == nullptr) {
      MT_ASSIGN_OR_RETURN(out_,
                          Env::Real()->NewWritableFile(Temporary(), Env::WriteMode::kTruncate));
      digest_ = std::make_unique<Xxh3Stream>();
    }
    MT_RETURN_IF_ERROR(out_->Append(piece.data()));
    digest_->Update(piece.data().data(), piece.data().size());
    offset_ += static_cast<int64_t>(piece.data().size());
    return offset_ == file.size_bytes() ? Finish() : absl::OkStatus();
  }

 private:
  std::string Final() const { return JoinPath(folder_, manifest_.files(index_).name()); }
  std::string Temporary() const { return Final() + ".tmp"; }

  absl::Status Finish() {
    const v1::CheckpointFile& file = manifest_.files(index_);
    const std::string digest = digest_->Hex();
    MT_RETURN_IF_ERROR(out_->Sync());
    MT_RETURN_IF_ERROR(out_->Close());
    out_.reset();
    if (digest != file.xxh3_128()) {
      (void)Env::Real()->RemoveFile(Temporary());
      return absl::DataLossError(
          absl::StrCat(file.name(), ": the digest ", digest, " is not the manifest's ",
                       file.xxh3_128(), "; `mtctl checkpoint verify ", manifest_.job_id(), "@",
                       manifest_.step(), "` tells which copy is whole"));
    }
    MT_RETURN_IF_ERROR(Env::Real()->Rename(Temporary(), Final()));
    ++index_;
    offset_ = 0;
    return SkipPresent();
  }

  // Files of an earlier pull that are whole.
  absl::Status SkipPresent() {
    while (index_ < manifest_.files_size()) {
      const v1::CheckpointFile& file = manifest_.files(index_);
      if (!Exists(Env::Real(), Final())) return absl::OkStatus();
      const absl::StatusOr<std::string> digest = Xxh3HexOfFile(Env::Real(), Final());
      if (!digest.ok() || *digest != file.xxh3_128()) return absl::OkStatus();
      ++index_;
    }
    return absl::OkStatus();
  }

  const std::string root_;
  std::string folder_;
  v1::CheckpointManifest manifest_;
  bool has_manifest_ = false;
  int index_ = 0;
  int64_t offset_ = 0;
  std::unique_ptr<WritableFile> out_;
  std::unique_ptr<Xxh3Stream> digest_;
};

}  // namespace

absl::StatusOr<std::string> PullCheckpoint(Session* session, const v1::CheckpointRef& checkpoint,
                                           const std::string& root) {
  Receiver receiver(root);
  v1::PullRequest request;
  *request.mutable_checkpoint() = checkpoint;
  for (int breaks = 0; !receiver.done();) {
    const absl::StatusOr<Client*> client = breaks == 0 ? session->client() : session->Reconnect();
    absl::Status status = client.status();
    if (client.ok()) {
      grpc::ClientContext context;
      if (receiver.has_manifest()) {
        // The newest may be another one by now; this pull stays with the one it began.
        request.mutable_checkpoint()->set_step(receiver.manifest().step());
        request.set_start_file(receiver.next_file());
        request.set_start_offset(receiver.offset());
      }
      auto stream = (*client)->checkpoints().Pull(&context, request);
      v1::PullPiece piece;
      absl::Status local;
      bool restart = false;
      while (local.ok() && !receiver.done() && stream->Read(&piece)) {
        if (piece.has_manifest() && !receiver.has_manifest()) {
          local = receiver.SetManifest(piece.manifest());
          // Part of it is here already: ask again from the first file that is not.
          restart = local.ok() && !receiver.done() &&
                    receiver.next_file() != receiver.manifest().files(0).name();
          if (restart) break;
        }
        if (!piece.file().empty()) {
          local = receiver.Add(piece);
          breaks = 0;
        }
      }
      if (!local.ok() || receiver.done() || restart) context.TryCancel();
      status = Client::FromGrpc(stream->Finish());
      if (!local.ok()) return local;
      if (receiver.done()) break;
      if (restart) continue;
      if (status.ok()) status = absl::UnavailableError("the stream ended before the last file");
    }
    if (!absl::IsUnavailable(status) || ++breaks > kMaxBreaks)
      return WithNext(status, absl::StrCat("mtctl checkpoint list ", checkpoint.job_id()));
    Note(absl::StrCat("stream broke (", status.message(), "); going on where it was"));
    std::this_thread::sleep_for(std::chrono::milliseconds(300 * breaks));
  }
  MT_RETURN_IF_ERROR(CommitManifest(Env::Real(), root, receiver.manifest()));
  return receiver.folder();
}

}  // namespace mt::client
