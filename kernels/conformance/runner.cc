#include "kernels/conformance/runner.h"

#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

#include "kernels/abi/philox.h"

namespace mt::conformance {
namespace {

constexpr size_t kGuard = 256;
constexpr char kGuardByte = 0x5a;

int64_t ElementBytes(const Tensor& tensor, int32_t dtype) {
  if (tensor.element == Element::kInt32) return 4;
  return tensor.element == Element::kDouble || dtype == MT_F64 ? 8 : 4;
}

void Store(const std::vector<double>& values, Element element, int64_t bytes, char* out) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (element == Element::kInt32) {
      reinterpret_cast<int32_t*>(out)[i] = static_cast<int32_t>(values[i]);
    } else if (bytes == 8) {
      reinterpret_cast<double*>(out)[i] = values[i];
    } else {
      reinterpret_cast<float*>(out)[i] = static_cast<float>(values[i]);
    }
  }
}

// The arguments end in (workspace, workspace_bytes) for the operations that have one.
template <typename Args>
void SetWorkspace(std::vector<char>& arguments, void* workspace, int64_t bytes) {
  auto* args = reinterpret_cast<Args*>(arguments.data());
  args->workspace = workspace;
  args->workspace_bytes = static_cast<size_t>(bytes);
}

}  // namespace

const mt_backend* LoadLibrary(const std::string& path, std::string* error) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    *error = dlerror();
    return nullptr;
  }
  const auto entry = reinterpret_cast<mt_backend_entry>(dlsym(library, MT_BACKEND_ENTRY_SYMBOL));
  const mt_backend* backend = entry != nullptr ? entry() : nullptr;
  if (backend == nullptr || backend->abi_major != MT_BACKEND_ABI_MAJOR) {
    *error = path + ": no entry of ABI " + std::to_string(MT_BACKEND_ABI_MAJOR);
    return nullptr;
  }
  mt_device_info info = {};
  info.struct_size = sizeof info;
  if (backend->probe(&info) <= 0) {
    *error = path + ": " + info.detail;
    return nullptr;
  }
  return backend;
}

Values MakeValues(const Case& item, uint64_t seed) {
  Values values;
  for (size_t t = 0; t < item.tensors.size(); ++t) {
    const Tensor& tensor = item.tensors[t];
    if (tensor.alias >= 0) {
      values.push_back(values[static_cast<size_t>(tensor.alias)]);
      continue;
    }
    std::vector<double> data(static_cast<size_t>(tensor.count),
                             std::numeric_limits<double>::quiet_NaN());
    for (int64_t i = 0; tensor.role != Role::kOutput && i < tensor.count; ++i) {
      const double normal = mt_normal(seed, t, static_cast<uint64_t>(i));
      data[static_cast<size_t>(i)] =
          static_cast<float>(tensor.value ? tensor.value(normal, i) : normal);
    }
    values.push_back(std::move(data));
  }
  return values;
}

Problem::Problem(const mt_backend* backend, const Case& item, int32_t dtype, const Values& values)
    : backend_(backend), case_(item), dtype_(dtype), blocks_(item.tensors.size()) {
  std::vector<void*> pointers;
  for (size_t t = 0; t < item.tensors.size(); ++t) {
    const Tensor& tensor = item.tensors[t];
    if (tensor.alias >= 0) {
      pointers.push_back(pointers[static_cast<size_t>(tensor.alias)]);
      continue;
    }
    const int64_t element_bytes = ElementBytes(tensor, dtype);
    Block& block = blocks_[t];
    block.host.assign(static_cast<size_t>(tensor.count * element_bytes) + 2 * kGuard, kGuardByte);
    Store(values[t], tensor.element, element_bytes, block.host.data() + kGuard);
    if (backend->allocate(block.host.size(), &block.device) != MT_OK) return;
    backend->copy_to_device(block.device, block.host.data(), block.host.size(), nullptr);
    pointers.push_back(static_cast<char*>(block.device) + kGuard);
  }
  arguments_ = item.arguments(dtype, pointers.data());
  if (backend->supports(item.operation, arguments_.data()) != 1) return;
  const int64_t bytes = backend->workspace_bytes(item.operation, arguments_.data());
  if (bytes < 0) return;
  if (bytes > 0) {
    if (backend->allocate(static_cast<size_t>(bytes), &workspace_) != MT_OK) return;
    const std::vector<char> poison(static_cast<size_t>(bytes),
                                   static_cast<char>(0xff));  // NaN in every type
    backend->copy_to_device(workspace_, poison.data(), poison.size(), nullptr);
    switch (item.operation) {
      case MT_OP_SQUARED_SUM:
        SetWorkspace<mt_squared_sum_args>(arguments_, workspace_, bytes);
        break;
      case MT_OP_MATMUL:
        SetWorkspace<mt_matmul_args>(arguments_, workspace_, bytes);
        break;
      case MT_OP_EMBEDDING_FORWARD:
      case MT_OP_EMBEDDING_BACKWARD:
        SetWorkspace<mt_embedding_args>(arguments_, workspace_, bytes);
        break;
      case MT_OP_RMSNORM_FORWARD:
      case MT_OP_RMSNORM_BACKWARD:
        SetWorkspace<mt_rmsnorm_args>(arguments_, workspace_, bytes);
        break;
      case MT_OP_ATTENTION_FORWARD:
      case MT_OP_ATTENTION_BACKWARD:
        SetWorkspace<mt_attention_args>(arguments_, workspace_, bytes);
        break;
      default:
        return;  // asks for a workspace that its struct cannot carry
    }
  }
  supported_ = true;
}

Problem::~Problem() {
  for (const Block& block : blocks_) {
    if (block.device != nullptr) backend_->free(block.device);
  }
  if (workspace_ != nullptr) backend_->free(workspace_);
}

int32_t Problem::Run() {
  const int32_t code = backend_->run(case_.operation, arguments_.data(), nullptr);
  if (code == MT_OK) backend_->stream_synchronize(nullptr);
  return code;
}

Values Problem::Read() const {
  Values values;
  for (size_t t = 0; t < case_.tensors.size(); ++t) {
    const Tensor& tensor = case_.tensors[t];
    if (tensor.alias >= 0) {
      values.push_back(values[static_cast<size_t>(tensor.alias)]);
      continue;
    }
    std::vector<char> bytes(blocks_[t].host.size());
    backend_->copy_to_host(bytes.data(), blocks_[t].device, bytes.size(), nullptr);
    const char* data = bytes.data() + kGuard;
    std::vector<double> out(static_cast<size_t>(tensor.count));
    for (size_t i = 0; i < out.size(); ++i) {
      if (tensor.element == Element::kInt32) {
        out[i] = reinterpret_cast<const int32_t*>(data)[i];
      } else {
        out[i] = ElementBytes(tensor, dtype_) == 8
                     ? reinterpret_cast<const double*>(data)[i]
                     : static_cast<double>(reinterpret_cast<const float*>(data)[i]);
      }
    }
    values.push_back(std::move(out));
  }
  return values;
}

std::string Problem::CheckGuards() const {
  for (size_t t = 0; t < blocks_.size(); ++t) {
    if (blocks_[t].device == nullptr) continue;
    std::vector<char> bytes(blocks_[t].host.size());
    backend_->copy_to_host(bytes.data(), blocks_[t].device, bytes.size(), nullptr);
    const auto intact = [](char byte) { return byte == kGuardByte; };
    if (!std::all_of(bytes.begin(), bytes.begin() + kGuard, intact))
      return case_.tensors[t].name + ": written before its start";
    if (!std::all_of(bytes.end() - kGuard, bytes.end(), intact))
      return case_.tensors[t].name + ": written past its end";
  }
  return "";
}

std::string Compare(const Case& item, int32_t dtype, const Values& before, const Values& actual,
                    const Values& expected) {
  const double absolute = dtype == MT_F64 ? 1e-12 : 1e-6, relative = dtype == MT_F64 ? 1e-12 : 5e-6;
  for (size_t t = 0; t < item.tensors.size(); ++t) {
    const Tensor& tensor = item.tensors[t];
    double square = 0;
    int64_t finite = 0;
    for (const double x : expected[t]) {
      if (!std::isfinite(x)) continue;
      square += x * x;
      ++finite;
    }
    const double size =
        tensor.long_sum && finite > 0 ? std::sqrt(square / static_cast<double>(finite)) : 0;
    double worst = 0;
    size_t worst_index = 0;
    for (size_t i = 0; i < expected[t].size(); ++i) {
      const double x = actual[t][i], y = expected[t][i];
      double excess;
      if (tensor.role == Role::kInput) {
        excess = x == before[t][i] ? 0 : HUGE_VAL;  // changed an input
      } else if (std::isnan(y) || std::isinf(y)) {
        excess = (std::isnan(y) && std::isnan(x)) || x == y
                     ? 0
                     : HUGE_VAL;  // NaN: padding that nobody may touch
      } else {
        excess = std::fabs(x - y) / (absolute + relative * std::max(std::fabs(y), size));
        if (std::isnan(excess)) excess = HUGE_VAL;
      }
      if (excess > worst) {
        worst = excess;
        worst_index = i;
      }
    }
    if (worst > 1) {
      char text[200];
      std::snprintf(text, sizeof text, "%s[%zu] = %.9g, expected %.9g: %.3g times the tolerance",
                    tensor.name.c_str(), worst_index, actual[t][worst_index],
                    expected[t][worst_index], worst);
      return text;
    }
  }
  return "";
}

}  // namespace mt::conformance
