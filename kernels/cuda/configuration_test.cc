#include "kernels/cuda/configuration.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/abi/mt_backend.h"
#include "kernels/host/host.h"

namespace mt::cuda {
namespace {

using ::testing::HasSubstr;

TEST(ConfigurationTest, DefaultsAreSafe) {
  const Configuration configuration;
  EXPECT_EQ(configuration.attention, "auto");
  EXPECT_EQ(configuration.gemm_cache, "");
  EXPECT_FALSE(configuration.tf32) << "F32 means float32";
}

TEST(ConfigurationTest, KnownKeysAreTaken) {
  Configuration configuration;
  EXPECT_EQ(SetConfiguration("attention", "flash", &configuration), MT_OK);
  EXPECT_EQ(SetConfiguration("gemm_cache", "/a/b", &configuration), MT_OK);
  EXPECT_EQ(SetConfiguration("tf32", "1", &configuration), MT_OK);
  EXPECT_EQ(configuration, (Configuration{"flash", "/a/b", true}));
  EXPECT_EQ(SetConfiguration("tf32", "0", &configuration), MT_OK);
  EXPECT_FALSE(configuration.tf32);
}

TEST(ConfigurationTest, WrongValuesChangeNothingAndNameWhatIsAllowed) {
  Configuration configuration;
  EXPECT_EQ(SetConfiguration("attention", "fast", &configuration), MT_ERROR_INVALID);
  EXPECT_THAT(host::ErrorMessage(), HasSubstr("attention = 'fast'; auto, cudnn or flash"));
  EXPECT_EQ(SetConfiguration("tf32", "yes", &configuration), MT_ERROR_INVALID);
  EXPECT_THAT(host::ErrorMessage(), HasSubstr("0 or 1"));
  EXPECT_EQ(SetConfiguration("tf32", nullptr, &configuration), MT_ERROR_INVALID);
  EXPECT_EQ(configuration, Configuration());
}

TEST(ConfigurationTest, UnknownKeysAreUnsupported) {
  Configuration configuration;
  EXPECT_EQ(SetConfiguration("colour", "red", &configuration), MT_ERROR_UNSUPPORTED);
  EXPECT_THAT(host::ErrorMessage(), HasSubstr("'colour'"));
}

}  // namespace
}  // namespace mt::cuda
