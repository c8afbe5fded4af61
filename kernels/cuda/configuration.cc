#include "kernels/cuda/configuration.h"

#include "kernels/host/host.h"

namespace mt::cuda {

int32_t SetConfiguration(const char* key, const char* value, Configuration* configuration) {
  if (key == nullptr || value == nullptr)
    return host::Fail(MT_ERROR_INVALID, 0, "configure: key or value is null");
  const std::string name = key, text = value;
  if (name == "attention") {
    if (text != "auto" && text != "cudnn" && text != "flash")
      return host::Fail(MT_ERROR_INVALID, 0, "configure: attention = '%s'; auto, cudnn or flash",
                        value);
    configuration->attention = text;
  } else if (name == "gemm_cache") {
    configuration->gemm_cache = text;
  } else if (name == "tf32") {
    if (text != "0" && text != "1")
      return host::Fail(MT_ERROR_INVALID, 0, "configure: tf32 = '%s'; 0 or 1", value);
    configuration->tf32 = text == "1";
  } else {
    return host::Fail(MT_ERROR_UNSUPPORTED, 0, "configure: '%s' is not an option of this backend",
                      key);
  }
  return MT_OK;
}

}  // namespace mt::cuda
