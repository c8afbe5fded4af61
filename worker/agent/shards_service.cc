#include "worker/agent/shards_service.h"

#include <algorithm>

#include "common/grpc_status.h"
#include "common/tls/credentials.h"
#include "mt/v1/worker.grpc.pb.h"
#include "worker/checkpoint/manifest.h"

namespace mt {
namespace {

constexpr int64_t kPieceBytes = 1 << 20;

class ShardsService : public v1::Shards::Service {
 public:
  ShardsService(Env* env, std::string root) : env_(env), root_(std::move(root)) {}

  grpc::Status Read(grpc::ServerContext* context, const v1::ReadFileRequest* request,
                    grpc::ServerWriter<v1::FilePiece>* writer) override {
    return ToGrpcStatus(DoRead(*context, *request, writer));
  }

 private:
  absl::Status DoRead(const grpc::ServerContext& context, const v1::ReadFileRequest& request,
                      grpc::ServerWriter<v1::FilePiece>* writer) const {
    MT_ASSIGN_OR_RETURN(const PeerIdentity peer, PeerOf(*context.auth_context()));
    if (peer.kind == PeerIdentity::Kind::kClient) {
      return absl::PermissionDeniedError(
          absl::StrCat(peer.common_name, " may not read files of a node; ask the coordinator"));
    }
    MT_ASSIGN_OR_RETURN(const std::string path, CheckpointFilePath(root_, request.job_id(),
                                                                   request.step(), request.file()));
    MT_ASSIGN_OR_RETURN(const FileInfo info, env_->Stat(path));
    if (info.is_symlink || info.is_directory)
      return absl::NotFoundError(absl::StrCat(request.file(), " is not a file"));
    MT_ASSIGN_OR_RETURN(const auto file, env_->NewRandomAccessFile(path));
    MT_ASSIGN_OR_RETURN(const uint64_t size, file->Size());
    if (request.offset() < 0 || static_cast<uint64_t>(request.offset()) > size) {
      return absl::OutOfRangeError(absl::StrCat("offset ", request.offset(), " of ", request.file(),
                                                ", which has ", size, " bytes"));
    }
    v1::FilePiece piece;
    piece.set_total_bytes(static_cast<int64_t>(size));
    uint64_t offset = request.offset();
    do {
      std::string& data = *piece.mutable_data();
      data.resize(std::min<uint64_t>(kPieceBytes, size - offset));
      MT_ASSIGN_OR_RETURN(const size_t count, file->Read(offset, data.size(), data.data()));
      if (count != data.size())
        return absl::DataLossError(
            absl::StrCat(request.file(), " became shorter while it was read"));
      piece.set_offset(static_cast<int64_t>(offset));
      offset += count;
      if (!writer->Write(piece)) return absl::CancelledError("the reader went away");
    } while (offset < size);
    return absl::OkStatus();
  }

  Env* const env_;
  const std::string root_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewShardsService(Env* env, std::string root) {
  return std::make_unique<ShardsService>(env, std::move(root));
}

}  // namespace mt
