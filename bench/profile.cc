#include "bench/profile.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/abi/operation_names.h"

namespace mt {
namespace {

constexpr double kGoodShare = 0.85;

const char* TypeName(int32_t dtype) {
  switch (dtype) {
    case MT_F64:
      return "f64";
    case MT_BF16:
      return "bf16";
    case MT_F8_E4M3:
      return "e4m3";
    case MT_F8_E5M2:
      return "e5m2";
    default:
      return "f32";
  }
}

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Profile::~Profile() {
  for (const mt_event event : events_) (void)backend_->event_destroy(event);
}

int32_t Profile::Run(const mt_backend& backend, int32_t operation, const void* arguments) {
  if (backend_ == nullptr) {
    backend_ = &backend;
    mt_device_info info = {};
    info.struct_size = sizeof info;
    (void)backend.probe(&info);
    host_memory_ = (info.capabilities & MT_CAPABILITY_HOST_MEMORY) != 0;
  }
  const conformance::Cost cost = conformance::CostOf(operation, arguments);
  const char* kernel = backend.kernel_name(operation, arguments);
  Call call;
  call.key = absl::StrCat(mt_operation_name(operation), " ", TypeName(cost.dtype), " ", cost.shape,
                          " ", kernel == nullptr ? "" : kernel);
  Row& row = entries_[call.key].row;
  if (row.operation.empty()) {
    row.operation = absl::StrCat(mt_operation_name(operation), " ", TypeName(cost.dtype));
    row.shape = cost.shape;
    row.kernel = kernel == nullptr ? "" : kernel;
    row.cost = cost;
  }
  int32_t code = MT_OK;
  if (host_memory_) {
    const double start = Now();
    code = backend.run(operation, arguments, nullptr);
    call.seconds = Now() - start;
  } else {
    while (events_.size() < events_used_ + 2) {
      mt_event event = nullptr;
      if (const int32_t made = backend.event_create(&event); made != MT_OK) return made;
      events_.push_back(event);
    }
    call.begin = events_[events_used_++];
    call.end = events_[events_used_++];
    if ((code = backend.event_record(call.begin, nullptr)) != MT_OK) return code;
    if ((code = backend.run(operation, arguments, nullptr)) != MT_OK) return code;
    code = backend.event_record(call.end, nullptr);
  }
  calls_.push_back(std::move(call));
  return code;
}

absl::Status Profile::EndStep(bool counts) {
  std::map<std::string, std::pair<int64_t, double>> sums;
  for (const Call& call : calls_) {
    float milliseconds = 0;
    if (call.begin != nullptr &&
        (backend_->event_synchronize(call.end) != MT_OK ||
         backend_->event_milliseconds(call.begin, call.end, &milliseconds) != MT_OK)) {
      return absl::InternalError(absl::StrCat("profile: ", backend_->error_message()));
    }
    auto& [calls, seconds] = sums[call.key];
    ++calls;
    seconds += call.begin != nullptr ? milliseconds * 1e-3 : call.seconds;
  }
  calls_.clear();
  events_used_ = 0;
  if (!counts) {
    entries_.clear();
    return absl::OkStatus();
  }
  for (const auto& [key, sum] : sums) {
    entries_[key].row.calls = sum.first;
    entries_[key].step_seconds.push_back(sum.second);
  }
  return absl::OkStatus();
}

std::vector<Profile::Row> Profile::Rows(const conformance::Ceilings& ceilings) const {
  std::vector<Row> rows;
  for (const auto& [key, entry] : entries_) {
    if (entry.step_seconds.empty()) continue;
    std::vector<double> seconds = entry.step_seconds;
    std::sort(seconds.begin(), seconds.end());
    Row row = entry.row;
    row.seconds = seconds[seconds.size() / 2];
    row.floor = ceilings.Floor(row.cost) * static_cast<double>(row.calls);
    rows.push_back(std::move(row));
  }
  std::sort(rows.begin(), rows.end(),
            [](const Row& a, const Row& b) { return a.seconds > b.seconds; });
  return rows;
}

std::string FormatProfile(const std::vector<Profile::Row>& rows, double step_seconds,
                          const conformance::Ceilings& ceilings) {
  std::string out = absl::StrFormat(
      "ceilings: %.0f GB/s, %.3g TFLOP/s fp32, %.3g bf16, %.3g fp8\n"
      "%-32s %-26s %5s %9s %6s %9s %6s %8s %8s  %s\n",
      ceilings.bytes_per_second / 1e9, ceilings.f32_flops / 1e12, ceilings.bf16_flops / 1e12,
      ceilings.fp8_flops / 1e12, "operation", "shape", "calls", "ms/step", "share", "floor ms",
      "of", "GB/s", "TFLOP/s", "kernel");
  double sum = 0, floor = 0;
  for (const Profile::Row& row : rows) {
    const double each = row.seconds / static_cast<double>(std::max<int64_t>(1, row.calls));
    const double of = row.seconds > 0 ? row.floor / row.seconds : 0;
    const bool slow = ceilings.BoundByBytes(row.cost) && of < kGoodShare;
    absl::StrAppendFormat(&out, "%-32s %-26s %5d %9.3f %5.1f%% %9.3f %4.0f%%%s %8.0f %8.1f  %s\n",
                          row.operation, row.shape, row.calls, row.seconds * 1e3,
                          100 * row.seconds / step_seconds, row.floor * 1e3, 100 * of,
                          slow ? "<" : " ", each > 0 ? row.cost.bytes / each / 1e9 : 0,
                          each > 0 ? row.cost.flops / each / 1e12 : 0, row.kernel);
    sum += row.seconds;
    floor += row.floor;
  }
  absl::StrAppendFormat(&out, "%-65s %9.3f %5.1f%% %9.3f %4.0f%%\n", "sum of operations", sum * 1e3,
                        100 * sum / step_seconds, floor * 1e3, sum > 0 ? 100 * floor / sum : 0);
  absl::StrAppendFormat(&out, "%-65s %9.3f\n", "step as it runs", step_seconds * 1e3);
  return out;
}

std::string ProfileJson(const std::vector<Profile::Row>& rows) {
  return absl::StrCat(
      "[",
      absl::StrJoin(rows, ", ",
                    [](std::string* out, const Profile::Row& row) {
                      absl::StrAppendFormat(
                          out,
                          "{\"operation\": \"%s\", \"shape\": \"%s\", \"kernel\": \"%s\", "
                          "\"calls\": %d, \"seconds\": %.9f, \"floor_seconds\": %.9f, "
                          "\"bytes\": %.0f, \"flops\": %.0f}",
                          row.operation, row.shape, row.kernel, row.calls, row.seconds, row.floor,
                          row.cost.bytes, row.cost.flops);
                    }),
      "]");
}

}  // namespace mt
