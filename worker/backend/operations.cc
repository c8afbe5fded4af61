#include "worker/backend/operations.h"

#include <algorithm>

#include "kernels/abi/minor_version.h"
#include "kernels/abi/operation_names.h"

namespace mt {
namespace {

// 0 if no operation has this name.
int32_t OperationByName(const std::string& name) {
  for (int32_t operation = 1; operation < MT_OP_END; ++operation) {
    if (name == mt_operation_name(operation)) return operation;
  }
  return 0;
}

// Empty, or why this backend would not do what the arguments ask. One that does not know a field ignores it and would accept them: it is
// not asked.
std::string Refusal(const Backend& backend, mt_operation operation, const void* arguments) {
  const mt_newest_field newest = mt_newest_field_of(operation, arguments);
  const mt_backend& abi = backend.abi();
  if (newest.minor > abi.abi_minor)
    return absl::StrCat("its contract is ", abi.abi_major, ".", abi.abi_minor, " and ", newest.name,
                        " came with ", MT_BACKEND_ABI_MAJOR, ".", newest.minor,
                        ": install the backend of this release");
  if (abi.supports(operation, arguments) == 1) return "";
  const std::string message = abi.error_message();
  return message.empty() ? "it gives no reason" : message;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Operations>> Operations::Create(const Options& options) {
  std::unique_ptr<Operations> operations(new Operations);
  MT_ASSIGN_OR_RETURN(const Backend* own, ChooseBackend(options.backend));
  operations->observer_ = options.observer;
  operations->candidates_.push_back(own);
  for (const auto& [name, backend_name] : options.overrides) {
    const int32_t operation = OperationByName(name);
    if (operation == 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "runtime.operations: '", name, "' is no operation; see kernels/abi/operation_names.h"));
    }
    MT_ASSIGN_OR_RETURN(const Backend* backend, LoadBackend(backend_name));
    if (backend != own && !(backend->host_memory() && own->host_memory())) {
      return absl::InvalidArgumentError(
          absl::StrCat("runtime.operations: ", name, " on backend ", backend_name,
                       " cannot read the memory of backend ", own->name()));
    }
    operations->overrides_[operation] = backend;
  }
  // Others that share the memory catch what the own backend lacks, the oracle last.
  for (const char* name : {"cpu", "reference"}) {
    if (!own->host_memory() || own->name() == name || own->name() == "reference") continue;
    if (const auto other = LoadBackend(name); other.ok()) operations->candidates_.push_back(*other);
  }
  std::vector<const Backend*> all = operations->candidates_;
  for (const auto& [operation, backend] : operations->overrides_) {
    if (std::find(all.begin(), all.end(), backend) == all.end()) all.push_back(backend);
  }
  for (const auto& [key, value] : options.configuration) {
    const int32_t code = own->abi().configure(key.c_str(), value.c_str());
    if (code != MT_ERROR_UNSUPPORTED) MT_RETURN_IF_ERROR(own->ToStatus(code, "configure"));
  }
  for (const Backend* backend : all) {
    // A backend in host memory has one device, however many slots its node has.
    const int device = backend == own && !backend->host_memory() ? options.device : 0;
    MT_RETURN_IF_ERROR(backend->ToStatus(backend->abi().open(device, options.threads), "open"));
  }
  return operations;
}

Operations::~Operations() {
  if (workspace_ != nullptr) Free(workspace_);
}

absl::Status Operations::NeedBytes(mt_operation operation, const void* shape, size_t bytes) {
  Entry& entry = entries_[operation];
  entry.shapes.emplace_back(static_cast<const char*>(shape), bytes);
  if (entry.backend != nullptr && Refusal(*entry.backend, operation, shape).empty()) {
    const int64_t need = entry.backend->abi().workspace_bytes(operation, shape);
    if (need < 0) return entry.backend->ToStatus(static_cast<int32_t>(need), "workspace_bytes");
    return ReserveWorkspace(need);
  }
  std::vector<const Backend*> candidates = candidates_;
  if (const auto it = overrides_.find(operation); it != overrides_.end()) candidates = {it->second};
  std::string reasons;
  for (const Backend* backend : candidates) {
    bool all = true;
    for (const std::string& each : entry.shapes) {
      const std::string refusal = Refusal(*backend, operation, each.data());
      if (refusal.empty()) continue;
      absl::StrAppend(&reasons, reasons.empty() ? "" : "; ", backend->name(), ": ", refusal);
      all = false;
      break;
    }
    if (!all) continue;
    entry.backend = backend;
    entry.minor = backend->abi().abi_minor;
    for (const std::string& each : entry.shapes) {
      const int64_t need = backend->abi().workspace_bytes(operation, each.data());
      if (need < 0) return backend->ToStatus(static_cast<int32_t>(need), "workspace_bytes");
      MT_RETURN_IF_ERROR(ReserveWorkspace(need));
    }
    return absl::OkStatus();
  }
  entry.shapes.pop_back();
  return absl::UnimplementedError(absl::StrCat("operation ", mt_operation_name(operation),
                                               ": no backend supports it (", reasons, ")"));
}

absl::Status Operations::ReserveWorkspace(int64_t bytes) {
  if (bytes <= static_cast<int64_t>(workspace_bytes_)) return absl::OkStatus();
  MT_ASSIGN_OR_RETURN(void* larger, Allocate(static_cast<size_t>(bytes)));
  if (workspace_ != nullptr) Free(workspace_);
  workspace_ = larger;
  workspace_bytes_ = static_cast<size_t>(bytes);
  return absl::OkStatus();
}

absl::Status Operations::NotResolved(mt_operation operation) const {
  return absl::FailedPreconditionError(absl::StrCat("operation ", mt_operation_name(operation),
                                                    " runs without having been declared by Need"));
}

absl::Status Operations::TooNew(mt_operation operation, const void* arguments) const {
  return absl::FailedPreconditionError(
      absl::StrCat("operation ", mt_operation_name(operation), " runs with ",
                   mt_newest_field_of(operation, arguments).name,
                   ", which it was not declared with by Need: backend ",
                   entries_[operation].backend->name(), " does not know it"));
}

absl::Status Operations::Failed(mt_operation operation, int32_t code) const {
  return entries_[operation].backend->ToStatus(
      code, absl::StrCat("operation ", mt_operation_name(operation)));
}

std::vector<v1::ResolvedOperation> Operations::Resolved() const {
  std::vector<v1::ResolvedOperation> rows;
  for (int32_t operation = 1; operation < MT_OP_END; ++operation) {
    const Entry& entry = entries_[operation];
    if (entry.backend == nullptr) continue;
    v1::ResolvedOperation row;
    row.set_operation(mt_operation_name(operation));
    row.set_backend(entry.backend->name());
    row.set_kernel(entry.backend->abi().kernel_name(operation, entry.shapes.front().data()));
    rows.push_back(std::move(row));
  }
  return rows;
}

absl::StatusOr<void*> Operations::Allocate(size_t bytes) const {
  void* pointer = nullptr;
  MT_RETURN_IF_ERROR(backend().ToStatus(backend().abi().allocate(bytes, &pointer), "allocate"));
  return pointer;
}

void Operations::Free(void* pointer) const { backend().abi().free(pointer); }

}  // namespace mt
