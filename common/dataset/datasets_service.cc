#include "common/dataset/datasets_service.h"

#include <atomic>

#include "common/dataset/file_pieces.h"
#include "common/grpc_status.h"
#include "common/tls/credentials.h"
#include "mt/v1/worker.grpc.pb.h"

namespace mt {
namespace {

class DatasetsService : public v1::Datasets::Service {
 public:
  DatasetsService(Env* env, std::function<absl::StatusOr<ServedFile>(const std::string&)> find,
                  int max_streams)
      : env_(env), find_(std::move(find)), max_streams_(max_streams) {}

  grpc::Status Read(grpc::ServerContext* context, const v1::ReadDatasetRequest* request,
                    grpc::ServerWriter<v1::FilePiece>* writer) override {
    const bool busy = streams_.fetch_add(1) >= max_streams_;
    const absl::Status status = busy ? absl::ResourceExhaustedError(absl::StrCat(
                                           "gives files to ", max_streams_, " nodes already"))
                                     : DoRead(*context, *request, writer);
    streams_.fetch_sub(1);
    return ToGrpcStatus(status);
  }

 private:
  absl::Status DoRead(const grpc::ServerContext& context, const v1::ReadDatasetRequest& request,
                      grpc::ServerWriter<v1::FilePiece>* writer) const {
    MT_ASSIGN_OR_RETURN(const PeerIdentity peer, PeerOf(*context.auth_context()));
    if (peer.kind == PeerIdentity::Kind::kClient) {
      return absl::PermissionDeniedError(
          absl::StrCat(peer.common_name, " may not read datasets; only nodes may"));
    }
    MT_ASSIGN_OR_RETURN(const ServedFile served, find_(request.xxh3_128()));
    MT_ASSIGN_OR_RETURN(const int64_t bytes, SizeOf(served));
    if (served.bytes >= 0 && bytes != served.bytes) {
      return absl::DataLossError(absl::StrCat(served.path, " has ", bytes, " bytes and had ",
                                              served.bytes, " when it was digested"));
    }
    return WritePieces(env_, served.path, served.path, request.offset(),
                       [&](const v1::FilePiece& piece) { return writer->Write(piece); });
  }

  absl::StatusOr<int64_t> SizeOf(const ServedFile& served) const {
    const auto file = env_->NewRandomAccessFile(served.path);
    if (absl::IsNotFound(file.status())) return absl::DataLossError(file.status().message());
    if (!file.ok()) return absl::UnavailableError(file.status().message());  // it may be later
    MT_ASSIGN_OR_RETURN(const uint64_t size, (*file)->Size());
    return static_cast<int64_t>(size);
  }

  Env* const env_;
  const std::function<absl::StatusOr<ServedFile>(const std::string&)> find_;
  const int max_streams_;
  std::atomic<int> streams_{0};
};

}  // namespace

std::unique_ptr<grpc::Service> NewDatasetsService(
    Env* env, std::function<absl::StatusOr<ServedFile>(const std::string& digest)> find,
    int max_streams) {
  return std::make_unique<DatasetsService>(env, std::move(find), max_streams);
}

}  // namespace mt
