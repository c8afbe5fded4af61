#include "worker/agent/shards_service.h"

#include "common/dataset/file_pieces.h"
#include "common/grpc_status.h"
#include "common/tls/credentials.h"
#include "mt/v1/worker.grpc.pb.h"
#include "worker/checkpoint/manifest.h"

namespace mt {
namespace {

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
    return WritePieces(env_, path, request.file(), request.offset(),
                       [&](const v1::FilePiece& piece) { return writer->Write(piece); });
  }

  Env* const env_;
  const std::string root_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewShardsService(Env* env, std::string root) {
  return std::make_unique<ShardsService>(env, std::move(root));
}

}  // namespace mt
