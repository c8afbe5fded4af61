// NVIDIA's libraries, loaded while the program runs: the plug-in itself needs none of them, so it loads, and says what is
// missing, on machines that have no GPU and no CUDA.
//
// Each library is a table of typed functions under their own names, lt.cublasLtMatmul(...). It is looked for, in this order,
//   1. beside the plug-in,
//   2. in the folders of MT_CUDA_LIBRARY_PATH (colon-separated); a folder may also be a prefix (…/lib, …/lib64) or hold
//      packages side by side (…/cublas/lib, …/cudnn/lib, …/nccl/lib, …/cu13/lib, or all of those under …/nvidia),
//   3. where the system's loader looks (LD_LIBRARY_PATH, ld.so.cache),
//   4. in /usr/local/cuda's folders,
// and the first one that is new enough and complete is taken. Libraries stay loaded until the process ends. Thread-safe.
#pragma once

#include <cublasLt.h>
#include <cudnn_backend.h>
#include <cudnn_graph.h>
#include <nccl.h>

#include <string>
#include <vector>

namespace mt::cuda {

#define MT_CUBLASLT_FUNCTIONS(F)           \
  F(cublasLtGetVersion)                    \
  F(cublasLtGetStatusName)                 \
  F(cublasLtCreate)                        \
  F(cublasLtDestroy)                       \
  F(cublasLtMatmul)                        \
  F(cublasLtMatmulAlgoGetHeuristic)        \
  F(cublasLtMatmulAlgoCheck)               \
  F(cublasLtMatmulAlgoConfigGetAttribute)  \
  F(cublasLtMatmulAlgoCapGetAttribute)     \
  F(cublasLtMatmulDescInit_internal)       \
  F(cublasLtMatmulDescSetAttribute)        \
  F(cublasLtMatmulDescGetAttribute)        \
  F(cublasLtMatrixLayoutInit_internal)     \
  F(cublasLtMatrixLayoutGetAttribute)      \
  F(cublasLtMatmulPreferenceInit_internal) \
  F(cublasLtMatmulPreferenceSetAttribute)

// cuDNN's graph API.
#define MT_CUDNN_FUNCTIONS(F)      \
  F(cudnnGetVersion)               \
  F(cudnnGetErrorString)           \
  F(cudnnGetLastErrorString)       \
  F(cudnnCreate)                   \
  F(cudnnDestroy)                  \
  F(cudnnSetStream)                \
  F(cudnnGetStream)                \
  F(cudnnBackendCreateDescriptor)  \
  F(cudnnBackendDestroyDescriptor) \
  F(cudnnBackendInitialize)        \
  F(cudnnBackendFinalize)          \
  F(cudnnBackendSetAttribute)      \
  F(cudnnBackendGetAttribute)      \
  F(cudnnBackendExecute)

#define MT_NCCL_FUNCTIONS(F) \
  F(ncclGetVersion)          \
  F(ncclGetErrorString)      \
  F(ncclGetLastError)        \
  F(ncclGetUniqueId)         \
  F(ncclCommInitRankConfig)  \
  F(ncclCommFinalize)        \
  F(ncclCommDestroy)         \
  F(ncclCommAbort)           \
  F(ncclCommGetAsyncError)   \
  F(ncclAllReduce)           \
  F(ncclReduceScatter)       \
  F(ncclAllGather)           \
  F(ncclBroadcast)           \
  F(ncclSend)                \
  F(ncclRecv)                \
  F(ncclGroupStart)          \
  F(ncclGroupEnd)

#define MT_DECLARE_FUNCTION(name) decltype(&::name) name = nullptr;
struct CublasLt {
  std::string path;  // of the file that was loaded
  int version = 0;   // major * 10000 + minor * 100 + patch, as for the other two
  MT_CUBLASLT_FUNCTIONS(MT_DECLARE_FUNCTION)
};
struct Cudnn {
  std::string path;
  int version = 0;
  void* handle = nullptr;  // as dlopen gave it
  MT_CUDNN_FUNCTIONS(MT_DECLARE_FUNCTION)
};
struct Nccl {
  std::string path;
  int version = 0;
  MT_NCCL_FUNCTIONS(MT_DECLARE_FUNCTION)
};
#undef MT_DECLARE_FUNCTION

// Null if there is none that will do; host::ErrorMessage then names the library, the least version, and what was found where.
// A failure is not remembered.
const CublasLt* LoadCublasLt();  // 13.0 at least
const Cudnn* LoadCudnn();        // 9.1 at least
const Nccl* LoadNccl();          // 2.19 at least: ncclCommInitRankConfig without blocking

// Where libraries are looked for; the loaders above use DefaultSearch().
struct LibrarySearch {
  std::vector<std::string> folders;  // before the system's loader
  bool system = true;
  std::vector<std::string> last_folders;  // after it
};
LibrarySearch DefaultSearch();
// The folders that one entry of MT_CUDA_LIBRARY_PATH stands for.
std::vector<std::string> FoldersOf(const std::string& entry);

// The same with a search of one's own; fills in `*library` and returns MT_OK or MT_ERROR_UNSUPPORTED.
int32_t LoadLibrary(const LibrarySearch& search, CublasLt* library);
int32_t LoadLibrary(const LibrarySearch& search, Cudnn* library);
int32_t LoadLibrary(const LibrarySearch& search, Nccl* library);

// "13.1.0"
std::string VersionText(int version);

}  // namespace mt::cuda
