#include "worker/comm/checked_communicator.h"

#include <chrono>
#include <cstring>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "common/check.h"
#include "worker/comm/reduce.h"

namespace mt {
namespace {

constexpr char kMemberPayload[] = "mt/communicator-member";
constexpr char kRankPayload[] = "mt/communicator-rank";

std::optional<int> IntPayload(const absl::Status& status, const char* name) {
  const absl::optional<absl::Cord> payload = status.GetPayload(name);
  int value = 0;
  if (!payload.has_value() || !absl::SimpleAtoi(std::string(*payload), &value)) return std::nullopt;
  return value;
}

std::string AmountOf(int64_t count, mt_dtype dtype) {
  return absl::StrCat(" of ", count, " ", DtypeName(dtype), " (",
                      count * static_cast<int64_t>(ElementSize(dtype)), " bytes)");
}

}  // namespace

absl::Status PeerError(absl::StatusCode code, absl::string_view message, int member) {
  absl::Status status(code, message);
  status.SetPayload(kMemberPayload, absl::Cord(absl::StrCat(member)));
  return status;
}

std::optional<int> BlamedMember(const absl::Status& status) {
  return IntPayload(status, kMemberPayload);
}

std::optional<int> BlamedRank(const absl::Status& status) {
  return IntPayload(status, kRankPayload);
}

CheckedCommunicator::CheckedCommunicator(std::string name, int rank, int size,
                                         std::vector<int> ranks)
    : Communicator(std::move(name), rank, size), ranks_(std::move(ranks)) {
  MT_CHECK(size >= 1 && rank >= 0 && rank < size)
      << this->name() << ": member " << rank << " of " << size;
  MT_CHECK(ranks_.empty() || static_cast<int>(ranks_.size()) == size)
      << this->name() << ": " << ranks_.size() << " ranks";
}

std::string CheckedCommunicator::MemberName(int member) const {
  if (ranks_.empty()) return absl::StrCat("member ", member);
  return absl::StrCat("rank ", ranks_[member], " (member ", member, ")");
}

absl::Status CheckedCommunicator::FailCall(const absl::Status& status,
                                           const CommunicatorCall& call) {
  absl::Status named(status.code(),
                     absl::StrCat(name(), " group, ", MemberName(rank()), ": ", call.operation, " ",
                                  call.number, call.detail, ": ", status.message()));
  if (const std::optional<int> member = IntPayload(status, kMemberPayload); member.has_value()) {
    named.SetPayload(kMemberPayload, absl::Cord(absl::StrCat(*member)));
    named.SetPayload(kRankPayload,
                     absl::Cord(absl::StrCat(ranks_.empty() ? *member : ranks_[*member])));
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (failure_.ok()) {
      failure_ = named;
    } else {
      named = failure_;  // Abort came first: it is the cause
    }
  }
  OnFailure(named);
  return named;
}

template <typename Body>
absl::Status CheckedCommunicator::Run(const char* operation, std::string detail, int64_t moved,
                                      Body body) {
  call_ = {operation, call_.number + 1, std::move(detail)};
  MT_RETURN_IF_ERROR(Health());
  const auto start = std::chrono::steady_clock::now();
  const absl::Status status = body();
  time_spent_ += absl::FromChrono(std::chrono::steady_clock::now() - start);
  if (!status.ok()) return FailCall(status, call_);
  bytes_moved_ += moved;
  return status;
}

absl::Status CheckedCommunicator::Health() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return failure_;
}

absl::Status CheckedCommunicator::JoinGroup(const std::function<absl::Status()>& join) {
  return Run("join", "", 0, join);
}

absl::Status CheckedCommunicator::AllReduce(void* data, int64_t count, mt_dtype dtype,
                                            ReduceOp op) {
  const int64_t element = ElementSize(dtype);
  MT_CHECK(Reducible(dtype) && count >= 0)
      << name() << ": all-reduce of " << count << " " << DtypeName(dtype);
  return Run(
      "all-reduce", AmountOf(count, dtype), 2 * count * element * (size() - 1) / size(), [&] {
        return size() == 1 || count == 0 ? absl::OkStatus() : DoAllReduce(data, count, dtype, op);
      });
}

absl::Status CheckedCommunicator::ReduceScatter(const void* input, void* output, int64_t count,
                                                mt_dtype dtype) {
  const int64_t element = ElementSize(dtype);
  MT_CHECK(Reducible(dtype) && count >= 0)
      << name() << ": reduce-scatter of " << count << " " << DtypeName(dtype);
  return Run("reduce-scatter", AmountOf(count, dtype), count * element * (size() - 1), [&] {
    if (count == 0) return absl::OkStatus();
    if (size() > 1) return DoReduceScatter(input, output, count, dtype);
    if (output != input) std::memcpy(output, input, count * element);
    return absl::OkStatus();
  });
}

absl::Status CheckedCommunicator::AllGather(const void* input, void* output, int64_t count,
                                            mt_dtype dtype) {
  const int64_t element = ElementSize(dtype);
  MT_CHECK(element > 0 && count >= 0)
      << name() << ": all-gather of " << count << " " << DtypeName(dtype);
  return Run("all-gather", AmountOf(count, dtype), count * element * (size() - 1), [&] {
    if (count == 0) return absl::OkStatus();
    if (size() > 1) return DoAllGather(input, output, count * element);
    if (output != input) std::memcpy(output, input, count * element);
    return absl::OkStatus();
  });
}

absl::Status CheckedCommunicator::Broadcast(void* data, int64_t count, mt_dtype dtype, int root) {
  const int64_t element = ElementSize(dtype);
  MT_CHECK(element > 0 && count >= 0)
      << name() << ": broadcast of " << count << " " << DtypeName(dtype);
  MT_CHECK(root >= 0 && root < size())
      << name() << ": broadcast from member " << root << " of " << size();
  return Run("broadcast", absl::StrCat(AmountOf(count, dtype), " from ", MemberName(root)),
             root == rank() ? count * element * (size() - 1) : 0, [&] {
               return size() == 1 || count == 0 ? absl::OkStatus()
                                                : DoBroadcast(data, count * element, root);
             });
}

absl::Status CheckedCommunicator::Barrier() {
  return Run("barrier", "", 0, [&] { return size() == 1 ? absl::OkStatus() : DoBarrier(); });
}

absl::Status CheckedCommunicator::Send(const void* data, int64_t bytes, int peer) {
  MT_CHECK(peer >= 0 && peer < size() && peer != rank() && bytes >= 0)
      << name() << ": send of " << bytes << " to " << peer;
  return Run("send", absl::StrCat(" of ", bytes, " bytes to ", MemberName(peer)), bytes,
             [&] { return DoSend(data, bytes, peer); });
}

absl::Status CheckedCommunicator::Receive(void* data, int64_t bytes, int peer) {
  MT_CHECK(peer >= 0 && peer < size() && peer != rank() && bytes >= 0)
      << name() << ": receive of " << bytes << " from " << peer;
  return Run("receive", absl::StrCat(" of ", bytes, " bytes from ", MemberName(peer)), 0,
             [&] { return DoReceive(data, bytes, peer); });
}

void CheckedCommunicator::Abort(absl::string_view reason) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!failure_.ok()) return;
    failure_ = absl::AbortedError(
        absl::StrCat(name(), " group, ", MemberName(rank()), ": aborted: ", reason));
  }
  DoAbort(reason);
}

}  // namespace mt
