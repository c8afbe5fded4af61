#include <functional>
#include <map>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/notification.h"
#include "common/hash.h"
#include "coordinator/api/api.h"
#include "coordinator/api/call.h"
#include "mt/v1/checkpoints.grpc.pb.h"
#include "mt/v1/worker.grpc.pb.h"

namespace mt {
namespace {

constexpr size_t kPieceBytes = 1 << 20;
constexpr absl::Duration kReadTimeout = absl::Minutes(30);  // of one file from one node

// This service blocks its own threads (Pull is as fast as its reader), so it is a synchronous one;
// it asks the coordinator's loop only for what is where.
class CheckpointsService final : public v1::Checkpoints::Service {
 public:
  CheckpointsService(EventLoop* loop, Env* env, Coordinator* coordinator, TlsFiles tls)
      : loop_(loop), env_(env), coordinator_(coordinator), tls_(std::move(tls)) {}

  grpc::Status List(grpc::ServerContext* context, const v1::ListCheckpointsRequest* request,
                    v1::ListCheckpointsResponse* response) override {
    return Answer(context, Role::kViewer, response,
                  [&](const Caller&) { return coordinator_->ListCheckpoints(request->job_id()); });
  }
  grpc::Status Show(grpc::ServerContext* context, const v1::CheckpointRef* request,
                    v1::CheckpointInfo* response) override {
    return Answer(context, Role::kViewer, response,
                  [&](const Caller&) { return coordinator_->GetCheckpoint(*request); });
  }

  grpc::Status Verify(grpc::ServerContext* context, const v1::CheckpointRef* request,
                      v1::VerifyResponse* response) override {
    const absl::StatusOr<Caller> caller = CheckCaller(*context->auth_context(), Role::kSubmitter);
    if (!caller.ok()) return ToGrpcStatus(caller.status());
    absl::StatusOr<Found> found = Find(*request);
    if (!found.ok()) return ToGrpcStatus(found.status());
    response->set_ok(true);
    std::vector<std::string> lost;
    for (const v1::CheckpointFile& file : found->info.manifest().files()) {
      bool whole = false, unreachable = false;
      for (const Copy& copy : CopiesOf(*found, file)) {
        const absl::Status status = Check(*context, copy, file);
        if (context->IsCancelled()) return grpc::Status::CANCELLED;
        v1::VerifyResponse::File* line = response->add_files();
        line->set_name(file.name());
        line->set_node(copy.node);
        line->set_ok(status.ok());
        line->set_message(std::string(status.message()));
        whole = whole || status.ok();
        // Only a copy that was looked at can be known to be lost.
        unreachable =
            unreachable || !(status.ok() || absl::IsDataLoss(status) || absl::IsNotFound(status));
      }
      if (whole) continue;
      response->set_ok(false);
      if (!unreachable) lost.push_back(file.name());
    }
    if (response->ok() && found->info.state() == v1::CheckpointInfo::STATE_BAD) {
      return ToGrpcStatus(
          OnLoop<absl::Status>([&] { return coordinator_->MarkCheckpointGood(*request); }));
    }
    if (lost.empty()) return grpc::Status::OK;
    const std::string reason = absl::StrCat("no whole copy is left of ", absl::StrJoin(lost, ", "));
    v1::CheckpointRef ref;
    ref.set_job_id(found->info.manifest().job_id());
    ref.set_step(found->info.manifest().step());
    const absl::Status marked =
        OnLoop<absl::Status>([&] { return coordinator_->MarkCheckpointBad(ref, reason); });
    Audit(*caller, "verify", absl::StrCat(ref.job_id(), "@", ref.step()),
          absl::DataLossError(reason));
    return ToGrpcStatus(absl::DataLossError(
        absl::StrCat("checkpoint ", ref.job_id(), "@", ref.step(), ": ", reason,
                     marked.ok() ? "; it is marked bad, and a restart uses the one before" : "")));
  }

  grpc::Status Pull(grpc::ServerContext* context, const v1::PullRequest* request,
                    grpc::ServerWriter<v1::PullPiece>* writer) override {
    const absl::StatusOr<Caller> caller = CheckCaller(*context->auth_context(), Role::kSubmitter);
    if (!caller.ok()) return ToGrpcStatus(caller.status());
    absl::StatusOr<Found> found = Find(request->checkpoint());
    if (!found.ok()) return ToGrpcStatus(found.status());
    const v1::CheckpointManifest& manifest = found->info.manifest();
    v1::PullPiece first;
    *first.mutable_manifest() = manifest;
    if (!writer->Write(first)) return grpc::Status::CANCELLED;
    bool started = request->start_file().empty();
    for (const v1::CheckpointFile& file : manifest.files()) {
      int64_t offset = 0;
      if (!started) {
        if (file.name() != request->start_file()) continue;
        started = true;
        offset = request->start_offset();
        if (offset < 0 || offset > file.size_bytes()) {
          return ToGrpcStatus(absl::OutOfRangeError(
              absl::StrCat("start_offset ", offset, " is outside ", file.name(), ", which has ",
                           file.size_bytes(), " bytes")));
        }
      }
      const absl::Status status = Send(*context, *found, file, offset, writer);
      if (!status.ok()) return ToGrpcStatus(status);
    }
    if (!started) {
      return ToGrpcStatus(absl::NotFoundError(
          absl::StrCat("start_file \"", request->start_file(), "\" is not in the checkpoint")));
    }
    return grpc::Status::OK;
  }

 private:
  struct Found {
    v1::CheckpointInfo info;
    std::map<std::string, v1::FileSource> sources;  // by file; without a shared path
  };
  struct Copy {
    std::string node;      // or "shared path"
    std::string path;      // of a file here, or empty
    std::string endpoint;  // of a Shards service
    std::string job_id;
    int64_t step = 0;
    bool reachable = true;
  };
  using Sink = std::function<bool(int64_t offset, std::string data)>;

  template <typename T>
  T OnLoop(std::function<T()> body) {
    absl::Notification done;
    absl::optional<T> result;
    loop_->Post([&] {
      result.emplace(body());
      done.Notify();
    });
    done.WaitForNotification();
    return *std::move(result);
  }
  template <typename Response, typename Body>
  grpc::Status Answer(grpc::ServerContext* context, Role needed, Response* response, Body body) {
    const absl::StatusOr<Caller> caller = CheckCaller(*context->auth_context(), needed);
    if (!caller.ok()) return ToGrpcStatus(caller.status());
    absl::StatusOr<Response> result =
        OnLoop<absl::StatusOr<Response>>([&] { return body(*caller); });
    if (result.ok()) *response = *std::move(result);
    return ToGrpcStatus(result.status());
  }

  absl::StatusOr<Found> Find(const v1::CheckpointRef& ref) {
    return OnLoop<absl::StatusOr<Found>>([&]() -> absl::StatusOr<Found> {
      Found found;
      MT_ASSIGN_OR_RETURN(found.info, coordinator_->GetCheckpoint(ref));
      v1::CheckpointRef exact;
      exact.set_job_id(found.info.manifest().job_id());
      exact.set_step(found.info.manifest().step());
      MT_ASSIGN_OR_RETURN(std::vector<v1::FileSource> sources,
                          coordinator_->CheckpointSources(exact));
      for (v1::FileSource& source : sources) {
        const std::string file = source.file();
        found.sources[file] = std::move(source);
      }
      return found;
    });
  }

  static std::vector<Copy> CopiesOf(const Found& found, const v1::CheckpointFile& file) {
    const v1::CheckpointManifest& manifest = found.info.manifest();
    if (found.info.location() != "nodes") {
      return {{"shared path", absl::StrFormat("%s/%s/step-%08d/%s", found.info.location(),
                                              manifest.job_id(), manifest.step(), file.name())}};
    }
    std::vector<Copy> copies;
    if (const auto it = found.sources.find(file.name()); it != found.sources.end()) {
      for (int i = 0; i < it->second.endpoints_size(); ++i) {
        copies.push_back(
            {it->second.nodes(i), "", it->second.endpoints(i), manifest.job_id(), manifest.step()});
      }
      for (const std::string& node : it->second.unreachable_nodes())
        copies.push_back({node, "", "", manifest.job_id(), manifest.step(), false});
    }
    return copies;
  }

  // Gives the file's bytes from `offset` to `sink` in pieces; stops when it answers false.
  absl::Status ReadCopy(grpc::ServerContext& context, const Copy& copy,
                        const v1::CheckpointFile& file, int64_t offset, const Sink& sink) {
    if (!copy.reachable)
      return absl::UnavailableError("it is not connected, so its copy could not be looked at");
    if (!copy.path.empty()) {
      const auto opened = env_->NewRandomAccessFile(copy.path);
      if (const std::string folder = copy.path.substr(0, copy.path.rfind('/'));
          absl::IsNotFound(opened.status()) &&
          !env_->Stat(JoinPath(folder, "manifest.json")).ok()) {
        return absl::UnavailableError(
            absl::StrCat(folder, " has no manifest.json as this machine sees it; ",
                         "mount the shared path of the checkpoints on the coordinator's machine"));
      }
      MT_RETURN_IF_ERROR(opened.status());
      const auto& source = *opened;
      for (;;) {
        std::string data(kPieceBytes, '\0');
        MT_ASSIGN_OR_RETURN(const size_t count, source->Read(offset, data.size(), data.data()));
        if (count == 0) return absl::OkStatus();
        data.resize(count);
        if (context.IsCancelled() || !sink(offset, std::move(data)))
          return absl::CancelledError("the caller has gone");
        offset += static_cast<int64_t>(count);
      }
    }
    MT_ASSIGN_OR_RETURN(const auto channel,
                        NewChannel(env_, copy.endpoint, tls_, kWorkerTargetName));
    const auto stub = v1::Shards::NewStub(channel);
    grpc::ClientContext call;
    call.set_deadline(absl::ToChronoTime(absl::Now() + kReadTimeout));
    v1::ReadFileRequest request;
    request.set_job_id(copy.job_id);
    request.set_step(copy.step);
    request.set_file(file.name());
    request.set_offset(offset);
    const auto reader = stub->Read(&call, request);
    v1::FilePiece piece;
    bool wanted = true;
    while (wanted && reader->Read(&piece)) {
      wanted = !context.IsCancelled() && sink(piece.offset(), std::move(*piece.mutable_data()));
    }
    if (!wanted) call.TryCancel();
    const grpc::Status status = reader->Finish();
    if (!wanted) return absl::CancelledError("the caller has gone");
    return Annotate(FromGrpcStatus(status), copy.endpoint);
  }

  absl::Status Check(grpc::ServerContext& context, const Copy& copy,
                     const v1::CheckpointFile& file) {
    Xxh3Stream digest;
    int64_t size = 0;
    MT_RETURN_IF_ERROR(ReadCopy(context, copy, file, 0, [&](int64_t, std::string data) {
      digest.Update(data.data(), data.size());
      size += static_cast<int64_t>(data.size());
      return true;
    }));
    if (size != file.size_bytes()) {
      return absl::DataLossError(
          absl::StrCat("it has ", size, " bytes instead of ", file.size_bytes()));
    }
    if (digest.Hex() != file.xxh3_128()) {
      return absl::DataLossError(
          absl::StrCat("its digest is ", digest.Hex(), " instead of ", file.xxh3_128()));
    }
    return absl::OkStatus();
  }

  // A copy is checked as a whole before any of it is sent, so that the caller never gets pieces of
  // a corrupt one.
  absl::Status Send(grpc::ServerContext& context, const Found& found,
                    const v1::CheckpointFile& file, int64_t offset,
                    grpc::ServerWriter<v1::PullPiece>* writer) {
    const std::vector<Copy> copies = CopiesOf(found, file);
    absl::Status last =
        absl::UnavailableError("no node that holds it is connected; see mtctl nodes");
    bool corrupt = !copies.empty();
    for (const Copy& copy : copies) {
      last = Annotate(Check(context, copy, file), copy.node);
      if (absl::IsCancelled(last)) return last;
      corrupt = corrupt && (absl::IsDataLoss(last) || absl::IsNotFound(last));
      if (!last.ok()) continue;
      int64_t next = offset;
      last = ReadCopy(context, copy, file, next, [&](int64_t at, std::string data) {
        while (!data.empty()) {
          v1::PullPiece piece;
          piece.set_file(file.name());
          piece.set_offset(at);
          piece.set_data(data.substr(0, kPieceBytes));
          data.erase(0, kPieceBytes);
          at += static_cast<int64_t>(piece.data().size());
          if (!writer->Write(piece)) return false;
        }
        next = at;
        return true;
      });
      if (last.ok() || absl::IsCancelled(last)) return last;
      offset = next;  // another copy goes on where this one stopped
    }
    return absl::Status(corrupt ? absl::StatusCode::kDataLoss : absl::StatusCode::kUnavailable,
                        absl::StrCat("file ", file.name(), ": ", last.message()));
  }

  EventLoop* const loop_;
  Env* const env_;
  Coordinator* const coordinator_;
  const TlsFiles tls_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewCheckpointsService(EventLoop* loop, Env* env,
                                                     Coordinator* coordinator, TlsFiles tls) {
  return std::make_unique<CheckpointsService>(loop, env, coordinator, std::move(tls));
}

}  // namespace mt
