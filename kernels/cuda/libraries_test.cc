#include "kernels/cuda/libraries.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "kernels/abi/mt_backend.h"
#include "kernels/host/host.h"

namespace mt::cuda {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;

const std::string kFakes = std::string(MT_BINARY_DIR) + "/test/fake_libraries/";

// Nothing but these folders.
LibrarySearch Only(std::vector<std::string> folders) { return {std::move(folders), false, {}}; }

class LibrariesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        std::filesystem::temp_directory_path() / ("libraries_test." + std::to_string(getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::filesystem::path folder_;
};

TEST_F(LibrariesTest, WhatIsMissingIsNamedWithItsVersionAndTheVariable) {
  CublasLt lt;
  EXPECT_EQ(LoadLibrary(Only({folder_}), &lt), MT_ERROR_UNSUPPORTED);
  EXPECT_THAT(host::ErrorMessage(),
              AllOf(HasSubstr("cuBLASLt 13.0.0 or newer (libcublasLt.so.13) is missing"),
                    HasSubstr("MT_CUDA_LIBRARY_PATH")));
  Cudnn cudnn;
  EXPECT_EQ(LoadLibrary(Only({folder_}), &cudnn), MT_ERROR_UNSUPPORTED);
  EXPECT_THAT(host::ErrorMessage(), HasSubstr("cuDNN 9.1.0 or newer (libcudnn.so.9) is missing"));
  Nccl nccl;
  EXPECT_EQ(LoadLibrary(Only({folder_}), &nccl), MT_ERROR_UNSUPPORTED);
  EXPECT_THAT(host::ErrorMessage(), HasSubstr("NCCL 2.19.0 or newer (libnccl.so.2) is missing"));
}

TEST_F(LibrariesTest, AnOldOneIsRefusedByItsVersion) {
  CublasLt lt;
  EXPECT_EQ(LoadLibrary(Only({kFakes + "old"}), &lt), MT_ERROR_UNSUPPORTED);
  EXPECT_THAT(host::ErrorMessage(), HasSubstr("old/libcublasLt.so.13 is version 12.8.4"));
  Cudnn cudnn;
  EXPECT_EQ(LoadLibrary(Only({kFakes + "old"}), &cudnn), MT_ERROR_UNSUPPORTED);
  EXPECT_THAT(host::ErrorMessage(), HasSubstr("old/libcudnn.so.9 is version 9.0.0"));
  Nccl nccl;
  EXPECT_EQ(LoadLibrary(Only({kFakes + "old"}), &nccl), MT_ERROR_UNSUPPORTED);
  EXPECT_THAT(host::ErrorMessage(), HasSubstr("old/libnccl.so.2 is version 2.18.5"));
}

TEST_F(LibrariesTest, AnIncompleteOneIsRefusedByTheFunctionThatItLacks) {
  CublasLt lt;
  EXPECT_EQ(LoadLibrary(Only({kFakes + "incomplete"}), &lt), MT_ERROR_UNSUPPORTED);
  EXPECT_THAT(host::ErrorMessage(),
              HasSubstr("incomplete/libcublasLt.so.13 has no cublasLtGetStatusName"));
  EXPECT_EQ(lt.cublasLtGetVersion, nullptr) << "a refused library leaves no functions behind";
}

TEST_F(LibrariesTest, WhatIsNoLibraryIsPassedOver) {
  std::ofstream(folder_ / "libnccl.so.2") << "not a library";
  Nccl nccl;
  EXPECT_EQ(LoadLibrary(Only({folder_, kFakes + "old"}), &nccl), MT_ERROR_UNSUPPORTED);
  EXPECT_THAT(host::ErrorMessage(), AllOf(HasSubstr((folder_ / "libnccl.so.2").string()),
                                          HasSubstr("is version 2.18.5")));
}

TEST_F(LibrariesTest, FoldersOfPackagesAreSearched) {
  EXPECT_THAT(FoldersOf("/site/nvidia"),
              AllOf(Contains("/site/nvidia"), Contains("/site/nvidia/cublas/lib"),
                    Contains("/site/nvidia/cudnn/lib"), Contains("/site/nvidia/nccl/lib"),
                    Contains("/site/nvidia/cu13/lib")));
  EXPECT_THAT(FoldersOf("/site"), Contains("/site/nvidia/cu13/lib"));
  EXPECT_THAT(FoldersOf("/opt/cuda"), Contains("/opt/cuda/lib64"));
}

TEST_F(LibrariesTest, TheVariableComesBeforeTheSystem) {
  ASSERT_EQ(setenv("MT_CUDA_LIBRARY_PATH", "/one::/two", 1), 0);
  const LibrarySearch search = DefaultSearch();
  unsetenv("MT_CUDA_LIBRARY_PATH");
  EXPECT_TRUE(search.system);
  EXPECT_THAT(search.folders, AllOf(Contains("/one"), Contains("/two/nvidia/nccl/lib")));
  EXPECT_THAT(search.last_folders, Contains("/usr/local/cuda/lib64"));
}

// Where NVIDIA's libraries are installed, with or without a GPU.
TEST_F(LibrariesTest, RealOnesAreTakenAfterThoseThatWillNotDo) {
  LibrarySearch search = DefaultSearch();
  Nccl probe;
  if (LoadLibrary(search, &probe) != MT_OK) GTEST_SKIP() << "skipped: " << host::ErrorMessage();
  // As a package lays it out, behind an old one.
  std::filesystem::create_directories(folder_ / "nvidia/nccl/lib");
  std::filesystem::create_symlink(probe.path, folder_ / "nvidia/nccl/lib/libnccl.so.2");
  search.folders = FoldersOf(folder_);
  search.folders.insert(search.folders.begin(), kFakes + "old");
  search.system = false;
  search.last_folders.clear();
  Nccl nccl;
  ASSERT_EQ(LoadLibrary(search, &nccl), MT_OK) << host::ErrorMessage();
  EXPECT_GE(nccl.version, 21900);
  EXPECT_NE(nccl.ncclCommInitRankConfig, nullptr);
  if (const CublasLt* lt = LoadCublasLt(); lt != nullptr) {
    EXPECT_GE(lt->version, 130000);
    EXPECT_EQ(LoadCublasLt(), lt) << "loaded once";
  }
  if (const Cudnn* cudnn = LoadCudnn(); cudnn != nullptr) {
    EXPECT_NE(cudnn->handle, nullptr);
  }
}

TEST_F(LibrariesTest, VersionsReadAsPeopleWriteThem) {
  EXPECT_EQ(VersionText(130100), "13.1.0");
  EXPECT_EQ(VersionText(91900), "9.19.0");
  EXPECT_EQ(VersionText(22809), "2.28.9");
}

}  // namespace
}  // namespace mt::cuda
