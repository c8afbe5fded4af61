#include "worker/agent/data_checker.h"

#include "common/dataset/dataset_fingerprint.h"
#include "worker/checkpoint/hugging_face/initial_checkpoint.h"
#include "worker/data/sample/dataset_batch_source.h"

namespace mt {
namespace {

class ThreadDataChecker : public DataChecker {
 public:
  ThreadDataChecker(EventLoop* loop, Env* env)
      : loop_(loop), env_(env), reader_(NewThreadEventLoop("data check")) {}
  void Check(const v1::JobSpec& spec,
             std::function<void(absl::StatusOr<DataFingerprints>)> done) override {
    reader_->Post([this, spec, done = std::move(done)]() mutable {
      absl::StatusOr<DataFingerprints> fingerprints = Look(spec);
      loop_->Post([done = std::move(done), fingerprints = std::move(fingerprints)]() mutable {
        done(std::move(fingerprints));
      });
    });
  }

 private:
  absl::StatusOr<DataFingerprints> Look(const v1::JobSpec& spec) const {
    MT_RETURN_IF_ERROR(CheckInitialCheckpoint(env_, spec));
    MT_RETURN_IF_ERROR(CheckTrainingData(env_, spec));
    DataFingerprints fingerprints;
    for (const std::string& prefix : DatasetPrefixesOf(spec)) {
      MT_ASSIGN_OR_RETURN(fingerprints[prefix], DatasetFingerprint(env_, prefix));
    }
    return fingerprints;
  }

  EventLoop* const loop_;
  Env* const env_;
  const std::unique_ptr<EventLoop> reader_;
};

}  // namespace

std::unique_ptr<DataChecker> NewDataChecker(EventLoop* loop, Env* env) {
  return std::make_unique<ThreadDataChecker>(loop, env);
}

}  // namespace mt
