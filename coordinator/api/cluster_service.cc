#include "coordinator/api/api.h"
#include "coordinator/api/call.h"
#include "mt/v1/cluster.grpc.pb.h"

namespace mt {
namespace {

class ClusterService final : public v1::Cluster::CallbackService {
 public:
  ClusterService(EventLoop* loop, Coordinator* coordinator, std::function<void()> stop)
      : loop_(loop), coordinator_(coordinator), stop_(std::move(stop)) {}

  grpc::ServerUnaryReactor* Status(grpc::CallbackServerContext* context,
                                   const v1::ClusterStatusRequest*,
                                   v1::ClusterStatus* response) override {
    return RunOnLoop(loop_, context, Role::kViewer, response, [this](const Caller&) {
      return absl::StatusOr<v1::ClusterStatus>(coordinator_->ClusterStatus());
    });
  }
  grpc::ServerUnaryReactor* ListNodes(grpc::CallbackServerContext* context,
                                      const v1::ListNodesRequest*,
                                      v1::ListNodesResponse* response) override {
    return RunOnLoop(loop_, context, Role::kViewer, response,
                     [this](const Caller&) -> absl::StatusOr<v1::ListNodesResponse> {
                       v1::ListNodesResponse nodes;
                       for (v1::Node& node : coordinator_->ListNodes())
                         *nodes.add_nodes() = std::move(node);
                       return nodes;
                     });
  }
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const v1::DrainRequest* request, v1::Node* response) override {
    return RunOnLoop(loop_, context, Role::kOperator, response,
                     [this, request](const Caller& caller) {
                       absl::StatusOr<v1::Node> node = coordinator_->Drain(*request);
                       Audit(caller, request->stop_jobs() ? "drain, moving jobs," : "drain",
                             request->node(), node.status());
                       return node;
                     });
  }
  grpc::ServerUnaryReactor* Undrain(grpc::CallbackServerContext* context,
                                    const v1::DrainRequest* request, v1::Node* response) override {
    return RunOnLoop(loop_, context, Role::kOperator, response,
                     [this, request](const Caller& caller) {
                       absl::StatusOr<v1::Node> node = coordinator_->Undrain(*request);
                       Audit(caller, "undrain", request->node(), node.status());
                       return node;
                     });
  }
  // Answered when the workers have ended; the process ends after that.
  grpc::ServerUnaryReactor* Shutdown(grpc::CallbackServerContext* context,
                                     const v1::ShutdownRequest* request,
                                     v1::ShutdownResponse*) override {
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    const absl::StatusOr<Caller> caller = CheckCaller(*context->auth_context(), Role::kOperator);
    if (!caller.ok()) {
      reactor->Finish(ToGrpcStatus(caller.status()));
      return reactor;
    }
    loop_->Post([this, reactor, caller = *caller, graceful = request->graceful()] {
      Audit(caller, graceful ? "shut down" : "shut down at once", "the cluster", absl::OkStatus());
      coordinator_->Shutdown(graceful, [this, reactor] {
        reactor->Finish(grpc::Status::OK);
        stop_();
      });
    });
    return reactor;
  }

 private:
  EventLoop* const loop_;
  Coordinator* const coordinator_;
  const std::function<void()> stop_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewClusterService(EventLoop* loop, Coordinator* coordinator,
                                                 std::function<void()> stop) {
  return std::make_unique<ClusterService>(loop, coordinator, std::move(stop));
}

}  // namespace mt
