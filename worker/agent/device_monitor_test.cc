#include "worker/agent/device_monitor.h"

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/testing/sim_event_loop.h"
#include "worker/agent/testing/fake_nvml.h"

namespace mt {
namespace {

using ::testing::HasSubstr;

std::string Library(const std::string& name) {
  return std::string(MT_BINARY_DIR) + "/test/fake_nvml/" + name;
}

// Time passes when the test says so, or by `cost` at every look at it.
class SlowClock : public Clock {
 public:
  absl::Time Now() override { return absl::UnixEpoch() + Monotonic(); }
  absl::Duration Monotonic() override { return now += cost; }
  absl::Duration now, cost;
};

class DeviceMonitorTest : public ::testing::Test {
 protected:
  DeviceMonitorTest() {
    void* library = dlopen(Library("libnvidia-ml.so.1").c_str(), RTLD_NOW | RTLD_LOCAL);
    const auto entry = reinterpret_cast<FakeNvml* (*)()>(dlsym(library, "fake_nvml_state"));
    nvml_ = entry();
    *nvml_ = FakeNvml();
  }
  absl::StatusOr<std::unique_ptr<DeviceMonitor>> Open(
      const std::string& name = "libnvidia-ml.so.1") {
    return NewNvmlMonitor({.library = Library(name), .clock = &clock_});
  }

  SlowClock clock_;
  FakeNvml* nvml_;
};

TEST_F(DeviceMonitorTest, EveryFigureInBaseUnits) {
  nvml_->devices[1].uncorrected = 2;
  auto monitor = Open();
  ASSERT_TRUE(monitor.ok()) << monitor.status();
  const std::vector<v1::Device> devices = (*monitor)->Sample();
  ASSERT_EQ(devices.size(), 2u);
  const v1::Device& device = devices[1];
  EXPECT_EQ(device.index(), 1);
  EXPECT_EQ(device.name(), "Fake GPU-1");
  EXPECT_EQ(device.uuid(), "GPU-1");
  EXPECT_EQ(device.memory_used_bytes(), int64_t{2} << 30);
  EXPECT_EQ(device.memory_total_bytes(), int64_t{80} << 30);
  EXPECT_DOUBLE_EQ(device.utilization(), 0.75);
  EXPECT_EQ(device.temperature_celsius(), 61);
  EXPECT_EQ(device.power_watts(), 431.5);
  EXPECT_EQ(device.sm_clock_hertz(), 1755e6);
  EXPECT_EQ(device.ecc_corrected_errors(), 5);
  EXPECT_EQ(device.ecc_uncorrected_errors(), 2);
  EXPECT_EQ(device.error(), "");
}

TEST_F(DeviceMonitorTest, WhatADeviceDoesNotTellIsAbsent) {
  nvml_->devices[0].has_ecc = false;
  const auto devices = (*Open())->Sample();
  EXPECT_FALSE(devices[0].has_ecc_corrected_errors());
  EXPECT_FALSE(devices[0].has_ecc_uncorrected_errors());
  EXPECT_TRUE(devices[0].has_power_watts());
  EXPECT_EQ(devices[0].error(), "");
}

TEST_F(DeviceMonitorTest, AnOldLibraryGivesWhatItHas) {
  auto monitor = Open("old.so.1");
  ASSERT_TRUE(monitor.ok()) << monitor.status();
  const auto devices = (*monitor)->Sample();
  ASSERT_EQ(devices.size(), 2u);
  EXPECT_EQ(devices[0].temperature_celsius(), 61);
  EXPECT_FALSE(devices[0].has_power_watts());
  EXPECT_FALSE(devices[0].has_ecc_corrected_errors());
  EXPECT_EQ(devices[0].error(), "");
}

TEST_F(DeviceMonitorTest, ALostDeviceSaysSoAndTheOthersGoOn) {
  auto monitor = *Open();
  ASSERT_TRUE(monitor->Sample()[0].has_power_watts());
  nvml_->devices[0].code = 15;
  auto devices = monitor->Sample();
  ASSERT_EQ(devices.size(), 2u);
  EXPECT_THAT(devices[0].error(), HasSubstr("GPU is lost"));
  EXPECT_EQ(devices[0].name(), "Fake GPU-0");  // which one, is still told
  EXPECT_FALSE(devices[0].has_memory_used_bytes());
  EXPECT_EQ(devices[1].error(), "");
  EXPECT_TRUE(devices[1].has_memory_used_bytes());
  nvml_->devices[0].code = 0;  // it was reset
  devices = monitor->Sample();
  EXPECT_EQ(devices[0].error(), "");
  EXPECT_TRUE(devices[0].has_memory_used_bytes());
}

TEST_F(DeviceMonitorTest, NoLibraryOrNoDeviceIsNotFound) {
  EXPECT_EQ(Open("absent.so.1").status().code(), absl::StatusCode::kNotFound);
  nvml_->count = 0;
  EXPECT_EQ(Open().status().code(), absl::StatusCode::kNotFound);
}

TEST_F(DeviceMonitorTest, WhatIsNotNvmlOrDoesNotStartIsRefusedWithTheReason) {
  const absl::Status other = Open("empty.so.1").status();
  EXPECT_EQ(other.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(other.message(), HasSubstr("nvmlInit_v2"));
  nvml_->init_code = 9;
  const absl::Status stopped = Open().status();
  EXPECT_EQ(stopped.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(stopped.message(), HasSubstr("another error (NVML 9)"));
}

TEST_F(DeviceMonitorTest, ASlowDriverIsAskedSeldom) {
  auto monitor = *Open();
  clock_.cost = absl::Milliseconds(100);  // one look at the clock: the sample takes this long
  nvml_->devices[0].temperature = 61;
  EXPECT_EQ(monitor->Sample()[0].temperature_celsius(), 61);
  nvml_->devices[0].temperature = 62;
  const int calls = nvml_->calls;
  clock_.now += absl::Seconds(4);  // 50 times the 0.1 s have not passed: the last sample stands
  EXPECT_EQ(monitor->Sample()[0].temperature_celsius(), 61);
  EXPECT_EQ(nvml_->calls, calls);
  clock_.now += absl::Seconds(1);
  EXPECT_EQ(monitor->Sample()[0].temperature_celsius(), 62);
}

}  // namespace
}  // namespace mt
