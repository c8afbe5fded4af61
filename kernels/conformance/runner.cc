#include "kernels/conformance/runner.h"

#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>

#include "kernels/abi/philox.h"
#include "kernels/abi/small_floats.h"

namespace mt::conformance {
namespace {

constexpr size_t kGuard = 256;
constexpr char kGuardByte = 0x5a;

template <typename T>
void Put(T value, char* out) {
  std::memcpy(out, &value, sizeof value);
}
template <typename T>
T Get(const char* in) {
  T value;
  std::memcpy(&value, in, sizeof value);
  return value;
}

}  // namespace

void Encode(int32_t type, double value, char* out) {
  switch (type) {
    case MT_F64:
      return Put(value, out);
    case MT_F32:
      return Put(static_cast<float>(value), out);
    case MT_BF16:
      return Put(mt_bf16_from_double(value), out);
    case MT_F8_E4M3:
      return Put(mt_e4m3_from_float(static_cast<float>(value)), out);
    case MT_F8_E5M2:
      return Put(mt_e5m2_from_float(static_cast<float>(value)), out);
    case MT_I32:
      return Put(std::isnan(value) ? INT32_MIN : static_cast<int32_t>(value), out);
    default:
      return Put(std::isnan(value) ? uint8_t{0xff} : static_cast<uint8_t>(value), out);
  }
}

namespace {

double Decode(int32_t type, const char* in) {
  switch (type) {
    case MT_F64:
      return Get<double>(in);
    case MT_F32:
      return Get<float>(in);
    case MT_BF16:
      return mt_float_from_bf16(Get<uint16_t>(in));
    case MT_F8_E4M3:
      return mt_float_from_e4m3(Get<uint8_t>(in));
    case MT_F8_E5M2:
      return mt_float_from_e5m2(Get<uint8_t>(in));
    case MT_I32:
      return Get<int32_t>(in);
    default:
      return Get<uint8_t>(in);
  }
}

double RoundTo(int32_t type, double value) {
  char bytes[8];
  Encode(type, value, bytes);
  return Decode(type, bytes);
}

bool Same(double x, double y) { return x == y || (std::isnan(x) && std::isnan(y)); }

struct Tolerance {
  double absolute, relative;
};
// Of sums of terms that were rounded (runner.h, Compare).
constexpr double kBf16Unit = 1.0 / 256, kRoundedTerms = 6 / 1.7320508075688772;

Tolerance ToleranceOf(const Case& item, const Tensor& tensor, int32_t dtype) {
  if (dtype == MT_F64) return {1e-12, 1e-12};
  const bool fp8 = std::any_of(item.tensors.begin(), item.tensors.end(), [](const Tensor& t) {
    return t.element == Element::kE4M3 || t.element == Element::kE5M2;
  });
  const bool small = dtype == MT_BF16 && (tensor.element == Element::kData || tensor.rounded);
  if (fp8 || small) return {1e-5, 1e-2};
  return {1e-6, 5e-6};
}

// Root mean square of what is finite.
double SizeOf(const std::vector<double>& values) {
  double square = 0;
  int64_t finite = 0;
  for (const double x : values) {
    if (!std::isfinite(x)) continue;
    square += x * x;
    ++finite;
  }
  return finite > 0 ? std::sqrt(square / static_cast<double>(finite)) : 0;
}

template <typename Args>
bool SetFields(std::vector<char>& arguments, void* workspace, size_t bytes) {
  auto* args = reinterpret_cast<Args*>(arguments.data());
  args->workspace = workspace;
  args->workspace_bytes = bytes;
  return true;
}

}  // namespace

const mt_backend* LoadLibrary(const std::string& path, std::string* error, bool* declined) {
  if (declined != nullptr) *declined = false;
  // As worker/backend: three threads that spin on a machine that is busy with other tests take minutes instead of seconds.
  if (std::getenv("OMP_WAIT_POLICY") == nullptr) setenv("GOMP_SPINCOUNT", "10000", /*overwrite=*/0);
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    *error = dlerror();
    return nullptr;
  }
  const auto entry = reinterpret_cast<mt_backend_entry>(dlsym(library, MT_BACKEND_ENTRY_SYMBOL));
  const mt_backend* backend = entry != nullptr ? entry() : nullptr;
  if (backend == nullptr || backend->abi_major != MT_BACKEND_ABI_MAJOR ||
      backend->struct_size < sizeof(mt_backend)) {
    *error = path + ": no entry of this ABI";
    return nullptr;
  }
  mt_device_info info = {};
  info.struct_size = sizeof info;
  if (backend->probe(&info) <= 0) {
    if (declined != nullptr) *declined = true;
    *error = info.detail[0] != '\0' ? info.detail : path + " declines";
    return nullptr;
  }
  return backend;
}

uint64_t SeedFromEnvironment() {
  constexpr uint64_t kSeed = 20240517;
  const char* given = std::getenv("MT_CONFORMANCE_SEED");
  if (given == nullptr) return kSeed;
  return std::strcmp(given, "random") == 0 ? std::random_device{}()
                                           : std::strtoull(given, nullptr, 10);
}

const char* TypeName(int32_t dtype) {
  return dtype == MT_F64 ? "float64" : dtype == MT_BF16 ? "bfloat16" : "float32";
}

Values MakeValues(const Case& item, int32_t dtype, uint64_t seed) {
  Values values;
  for (size_t t = 0; t < item.tensors.size(); ++t) {
    const Tensor& tensor = item.tensors[t];
    if (tensor.alias >= 0) {
      values.push_back(values[static_cast<size_t>(tensor.alias)]);
      continue;
    }
    int32_t type = TypeOf(tensor.element, dtype);
    if (dtype == MT_F64 && type == MT_F64 && tensor.element != Element::kDouble) type = MT_F32;
    std::vector<double> data(static_cast<size_t>(tensor.count),
                             std::numeric_limits<double>::quiet_NaN());
    const bool given = tensor.role == Role::kInput || tensor.role == Role::kUpdate;
    double normals[2] = {};
    for (int64_t i = 0; given && i < tensor.count; ++i) {
      if (i % 2 == 0)
        mt_normal_pair(seed, t, static_cast<uint64_t>(i) / 2, &normals[0], &normals[1]);
      const double normal = normals[i % 2];
      data[static_cast<size_t>(i)] = RoundTo(
          type, tensor.value ? tensor.value(normal, i) : tensor.mean + tensor.spread * normal);
    }
    values.push_back(std::move(data));
  }
  return values;
}

bool SetWorkspace(int32_t operation, std::vector<char>& arguments, void* workspace, size_t bytes) {
  switch (operation) {
    case MT_OP_SQUARED_SUM:
    case MT_OP_SUM:
      return SetFields<mt_squared_sum_args>(arguments, workspace, bytes);
    case MT_OP_COLUMN_SUM:
      return SetFields<mt_column_sum_args>(arguments, workspace, bytes);
    case MT_OP_MATMUL:
      return SetFields<mt_matmul_args>(arguments, workspace, bytes);
    case MT_OP_EMBEDDING_FORWARD:
    case MT_OP_EMBEDDING_BACKWARD:
      return SetFields<mt_embedding_args>(arguments, workspace, bytes);
    case MT_OP_RMSNORM_FORWARD:
    case MT_OP_RMSNORM_BACKWARD:
      return SetFields<mt_rmsnorm_args>(arguments, workspace, bytes);
    case MT_OP_LAYERNORM_FORWARD:
    case MT_OP_LAYERNORM_BACKWARD:
      return SetFields<mt_layernorm_args>(arguments, workspace, bytes);
    case MT_OP_QK_NORM_ROPE_FORWARD:
    case MT_OP_QK_NORM_ROPE_BACKWARD:
      return SetFields<mt_qk_norm_rope_args>(arguments, workspace, bytes);
    case MT_OP_ATTENTION_FORWARD:
    case MT_OP_ATTENTION_BACKWARD:
      return SetFields<mt_attention_args>(arguments, workspace, bytes);
    case MT_OP_MOE_ROUTE_FORWARD:
    case MT_OP_MOE_ROUTE_BACKWARD:
      return SetFields<mt_moe_route_args>(arguments, workspace, bytes);
    case MT_OP_MOE_SORT:
      return SetFields<mt_moe_sort_args>(arguments, workspace, bytes);
    case MT_OP_GROUPED_MATMUL:
      return SetFields<mt_grouped_matmul_args>(arguments, workspace, bytes);
    case MT_OP_GROUPED_COLUMN_SUM:
      return SetFields<mt_grouped_column_sum_args>(arguments, workspace, bytes);
    default:
      return false;
  }
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
    const int32_t type = TypeOf(tensor.element, dtype);
    const size_t size = static_cast<size_t>(SizeOf(type));
    Block& block = blocks_[t];
    block.start = kGuard + static_cast<size_t>(tensor.misaligned) * size;
    block.bytes = block.start + static_cast<size_t>(tensor.count) * size + kGuard;
    std::vector<char> host(block.bytes, kGuardByte);
    for (size_t i = 0; i < values[t].size(); ++i)
      Encode(type, values[t][i], host.data() + block.start + i * size);
    if (backend->allocate(block.bytes, &block.device) != MT_OK) return;
    if (backend->copy_to_device(block.device, host.data(), host.size(), nullptr) != MT_OK ||
        backend->stream_synchronize(nullptr) != MT_OK)
      return;
    pointers.push_back(static_cast<char*>(block.device) + block.start);
  }
  arguments_ = item.arguments(dtype, pointers.data());
  if (backend->supports(item.operation, arguments_.data()) != 1) return;
  const int64_t bytes = backend->workspace_bytes(item.operation, arguments_.data());
  if (bytes < 0) return;
  if (bytes > 0) {
    workspace_bytes_ = static_cast<size_t>(bytes);
    // NaN in every type; behind it a guard band.
    std::vector<char> poison(workspace_bytes_ + kGuard, static_cast<char>(0xff));
    std::fill(poison.end() - kGuard, poison.end(), kGuardByte);
    if (backend->allocate(poison.size(), &workspace_) != MT_OK ||
        backend->copy_to_device(workspace_, poison.data(), poison.size(), nullptr) != MT_OK ||
        backend->stream_synchronize(nullptr) != MT_OK ||
        !SetWorkspace(item.operation, arguments_, workspace_, workspace_bytes_))
      return;
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
  return code != MT_OK ? code : backend_->stream_synchronize(nullptr);
}

std::vector<char> Problem::Fetch(const Block& block) {
  std::vector<char> bytes(block.bytes);
  if (backend_->copy_to_host(bytes.data(), block.device, bytes.size(), nullptr) != MT_OK ||
      backend_->stream_synchronize(nullptr) != MT_OK)
    failure_ = std::string("copy to host: ") + backend_->error_message();
  return bytes;
}

Values Problem::Read() {
  Values values;
  for (size_t t = 0; t < case_.tensors.size(); ++t) {
    const Tensor& tensor = case_.tensors[t];
    if (tensor.alias >= 0) {
      values.push_back(values[static_cast<size_t>(tensor.alias)]);
      continue;
    }
    const int32_t type = TypeOf(tensor.element, dtype_);
    const std::vector<char> bytes = Fetch(blocks_[t]);
    std::vector<double> out(static_cast<size_t>(tensor.count));
    for (size_t i = 0; i < out.size(); ++i)
      out[i] =
          Decode(type, bytes.data() + blocks_[t].start + i * static_cast<size_t>(SizeOf(type)));
    values.push_back(std::move(out));
  }
  return values;
}

std::string Problem::CheckGuards() {
  const auto intact = [](char byte) { return byte == kGuardByte; };
  for (size_t t = 0; t < blocks_.size(); ++t) {
    if (blocks_[t].device == nullptr) continue;
    const std::vector<char> bytes = Fetch(blocks_[t]);
    if (!std::all_of(bytes.begin(), bytes.begin() + static_cast<int64_t>(blocks_[t].start), intact))
      return case_.tensors[t].name + ": written before its start";
    if (!std::all_of(bytes.end() - kGuard, bytes.end(), intact))
      return case_.tensors[t].name + ": written past its end";
  }
  if (workspace_ != nullptr) {
    const std::vector<char> bytes = Fetch({workspace_, workspace_bytes_ + kGuard, 0});
    if (!std::all_of(bytes.end() - kGuard, bytes.end(), intact))
      return "workspace: written past its end";
  }
  return failure_;
}

std::string Compare(const Case& item, int32_t dtype, const Values& before, const Values& actual,
                    const Values& expected) {
  for (size_t t = 0; t < item.tensors.size(); ++t) {
    const Tensor& tensor = item.tensors[t];
    if (tensor.role == Role::kUnspecified) continue;
    const int32_t type = TypeOf(tensor.element, dtype);
    const auto [absolute, relative] = ToleranceOf(item, tensor, dtype);
    const double size = tensor.long_sum ? std::max(SizeOf(expected[t]),
                                                   std::sqrt(static_cast<double>(tensor.terms)))
                                        : 0;
    const std::vector<double> norms =
        tensor.term_norms ? tensor.term_norms(before) : std::vector<double>();
    double worst = 0;
    size_t worst_index = 0;
    for (size_t i = 0; i < expected[t].size(); ++i) {
      const double x = actual[t][i], y = expected[t][i];
      double excess;
      if (tensor.role == Role::kInput) {
        excess = Same(x, before[t][i]) ? 0 : HUGE_VAL;  // changed an input
      } else if (tensor.exact) {
        excess = Same(x, RoundTo(type, y)) ? 0 : HUGE_VAL;
      } else if (!std::isfinite(y)) {
        excess = Same(x, y) ? 0 : HUGE_VAL;  // NaN: padding that nobody may touch
      } else if (!norms.empty() && type == MT_BF16) {
        excess =
            std::fabs(x - y) / (absolute + kBf16Unit * (std::fabs(y) + kRoundedTerms * norms[i]));
      } else {
        const double by = std::max({std::fabs(y), size, norms.empty() ? 0 : norms[i]});
        excess = std::fabs(x - y) / (tensor.slack * (absolute + relative * by));
      }
      if (std::isnan(excess)) excess = HUGE_VAL;
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
  for (size_t i = 0; item.original >= 0 && i < actual[static_cast<size_t>(item.original)].size();
       ++i) {
    const Tensor& copy = item.tensors[static_cast<size_t>(item.rounded_copy)];
    const double original = actual[static_cast<size_t>(item.original)][i];
    if (!Same(actual[static_cast<size_t>(item.rounded_copy)][i],
              RoundTo(TypeOf(copy.element, dtype), original)))
      return copy.name + "[" + std::to_string(i) + "] is not " + std::to_string(original) +
             " rounded once";
  }
  return "";
}

}  // namespace mt::conformance
