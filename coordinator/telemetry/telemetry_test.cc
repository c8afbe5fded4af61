// /metrics in front of the coordinator's real logic; a daemon's stream is played.
#include "coordinator/telemetry/telemetry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/synchronization/notification.h"
#include "common/check.h"
#include "common/testing/mem_env.h"
#include "coordinator/store/memory_store.h"

namespace mt {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class SilentStream : public WorkerStream {
 public:
  void Send(v1::CoordinatorMessage) override {}
  void Close(absl::Status) override {}
  std::string AuthenticatedNode() const override { return ""; }
};

class TelemetryTest : public ::testing::Test {
 protected:
  TelemetryTest() : loop_(NewThreadEventLoop("coordinator")) {
    store_ = NewMemoryStore(std::make_shared<MemoryDisk>());
    telemetry_ = Telemetry::Create(loop_.get(), {});
    OnLoop([this] {
      CoordinatorOptions options;
      options.loop = loop_.get();
      options.env = &env_;
      options.store = store_.get();
      options.nodes = {{.name = "gpu01"}};  // no slots in the hostfile
      options.state_directory = "/state";
      options.on_fatal = [](absl::Status status) { MT_CHECK_OK(status); };
      auto coordinator = Coordinator::Create(std::move(options));
      MT_CHECK_OK(coordinator.status());
      coordinator_ = std::move(*coordinator);
      coordinator_->Start();
      telemetry_->Attach(coordinator_.get());
    });
    v1::WorkerMessage message;
    message.mutable_register_()->set_protocol_version(1);
    message.mutable_register_()->set_slots(8);
    message.mutable_register_()->set_shards_endpoint("gpu01:1");
    message.mutable_register_()->set_next_sequence(1);
    Say(message);
  }
  ~TelemetryTest() override {
    OnLoop([this] {
      telemetry_->Detach();
      coordinator_.reset();
    });
    telemetry_.reset();
    loop_.reset();
  }
  void OnLoop(std::function<void()> body) {
    absl::Notification done;
    loop_->Post([&] {
      body();
      done.Notify();
    });
    done.WaitForNotification();
  }
  void Say(v1::WorkerMessage message) {
    message.set_node("gpu01");
    message.set_incarnation("i1");
    OnLoop([&] { coordinator_->OnMessage(stream_, message); });
  }
  static v1::Device Whole() {
    v1::Device device;
    device.set_index(3);
    device.set_name("NVIDIA H100 80GB HBM3");
    device.set_uuid("GPU-7e");
    device.set_memory_used_bytes(int64_t{3} << 30);
    device.set_memory_total_bytes(int64_t{80} << 30);
    device.set_utilization(0.25);
    device.set_temperature_celsius(61);
    device.set_power_watts(431.5);
    device.set_sm_clock_hertz(1755e6);
    device.set_ecc_corrected_errors(5);
    device.set_ecc_uncorrected_errors(0);
    return device;
  }

  std::unique_ptr<EventLoop> loop_;
  MemEnv env_;
  std::unique_ptr<StateStore> store_;
  std::unique_ptr<Coordinator> coordinator_;
  std::shared_ptr<Telemetry> telemetry_;
  const std::shared_ptr<SilentStream> stream_ = std::make_shared<SilentStream>();
};

TEST_F(TelemetryTest, ANodeWithoutSlotsInTheHostfileOffersWhatItsDaemonCounted) {
  EXPECT_THAT(telemetry_->Scrape(), HasSubstr("\nmt_slots 8\n"));
}

TEST_F(TelemetryTest, AHeartbeatsDevicesAreShownByNodeAndDevice) {
  EXPECT_THAT(telemetry_->Scrape(), Not(HasSubstr("mt_gpu_")));
  v1::WorkerMessage message;
  *message.mutable_heartbeat()->add_devices() = Whole();
  Say(message);
  const std::string text = telemetry_->Scrape();
  const std::string labels = "{node=\"gpu01\",device=\"3\"";
  for (const std::string& line :
       {"mt_gpu_info" + labels + ",name=\"NVIDIA H100 80GB HBM3\",uuid=\"GPU-7e\"} 1",
        "mt_gpu_up" + labels + "} 1", "mt_gpu_memory_used_bytes" + labels + "} 3221225472",
        "mt_gpu_memory_total_bytes" + labels + "} 85899345920",
        "mt_gpu_utilization_ratio" + labels + "} 0.25",
        "mt_gpu_temperature_celsius" + labels + "} 61", "mt_gpu_power_watts" + labels + "} 431.5",
        "mt_gpu_sm_clock_hertz" + labels + "} 1755000000",
        "mt_gpu_ecc_errors_total" + labels + ",kind=\"corrected\"} 5",
        "mt_gpu_ecc_errors_total" + labels + ",kind=\"uncorrected\"} 0"}) {
    EXPECT_THAT(text, HasSubstr("\n" + line + "\n"));
  }
}

TEST_F(TelemetryTest, ALostDeviceHasNoFiguresAndIsNotUp) {
  v1::WorkerMessage message;
  *message.mutable_heartbeat()->add_devices() = Whole();
  Say(message);
  v1::Device lost;
  lost.set_index(3);
  lost.set_error("GPU is lost (NVML 15)");
  *message.mutable_heartbeat()->mutable_devices(0) = lost;
  Say(message);
  const std::string text = telemetry_->Scrape();
  EXPECT_THAT(text, HasSubstr("\nmt_gpu_up{node=\"gpu01\",device=\"3\"} 0\n"));
  EXPECT_THAT(text, Not(HasSubstr("mt_gpu_power_watts")));
  EXPECT_THAT(text, Not(HasSubstr("mt_gpu_ecc_errors_total")));
}

}  // namespace
}  // namespace mt
