// Errors are absl::Status whose message names the thing, the value and what to do next; codes cross gRPC unchanged.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace mt {

// Returns `status` with `context: ` before its message; OK stays OK.
inline absl::Status Annotate(const absl::Status& status, absl::string_view context) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(context, ": ", status.message()));
}

}  // namespace mt

#define MT_CONCAT_INNER(a, b) a##b
#define MT_CONCAT(a, b) MT_CONCAT_INNER(a, b)

#define MT_RETURN_IF_ERROR(expression)                                               \
  do {                                                                               \
    if (absl::Status mt_status_ = (expression); !mt_status_.ok()) return mt_status_; \
  } while (false)

#define MT_ASSIGN_OR_RETURN(declaration, expression) \
  MT_ASSIGN_OR_RETURN_IMPL(MT_CONCAT(mt_statusor_, __LINE__), declaration, expression)
#define MT_ASSIGN_OR_RETURN_IMPL(statusor, declaration, expression) \
  auto statusor = (expression);                                     \
  if (!statusor.ok()) return std::move(statusor).status();          \
  declaration = std::move(statusor).value()
