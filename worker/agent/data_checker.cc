#include "worker/agent/data_checker.h"

#include "worker/checkpoint/hugging_face/initial_checkpoint.h"
#include "worker/data/sample/dataset_batch_source.h"

namespace mt {
namespace {

class ThreadDataChecker : public DataChecker {
 public:
  ThreadDataChecker(EventLoop* loop, Env* env)
      : loop_(loop), env_(env), reader_(NewThreadEventLoop("data check")) {}
  void Check(const v1::JobSpec& spec, std::function<void(absl::Status)> done) override {
    reader_->Post([this, spec, done = std::move(done)]() mutable {
      absl::Status status = CheckInitialCheckpoint(env_, spec);
      if (status.ok()) status = CheckTrainingData(env_, spec);
      loop_->Post([done = std::move(done), status = std::move(status)] { done(status); });
    });
  }

 private:
  EventLoop* const loop_;
  Env* const env_;
  const std::unique_ptr<EventLoop> reader_;
};

}  // namespace

std::unique_ptr<DataChecker> NewDataChecker(EventLoop* loop, Env* env) {
  return std::make_unique<ThreadDataChecker>(loop, env);
}

}  // namespace mt
