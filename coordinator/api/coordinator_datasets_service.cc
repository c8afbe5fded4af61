#include "absl/synchronization/notification.h"
#include "common/dataset/datasets_service.h"
#include "coordinator/api/api.h"

namespace mt {

// The loop is asked only for which file it is; the file is read on the call's own thread.
std::unique_ptr<grpc::Service> NewCoordinatorDatasetsService(EventLoop* loop, Env* env,
                                                             Coordinator* coordinator) {
  return NewDatasetsService(
      env, [loop, coordinator](const std::string& digest) -> absl::StatusOr<ServedFile> {
        absl::StatusOr<v1::DatasetFile> file;
        absl::Notification done;
        loop->Post([&] {
          file = coordinator->FindDatasetFile(digest);
          done.Notify();
        });
        done.WaitForNotification();
        MT_RETURN_IF_ERROR(file.status());
        return ServedFile{file->path(), file->bytes()};
      });
}

}  // namespace mt
