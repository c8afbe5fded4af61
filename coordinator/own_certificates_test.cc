#include "coordinator/own_certificates.h"

#include <gtest/gtest.h>

#include "common/check.h"
#include "common/testing/mem_env.h"
#include "common/testing/sim_event_loop.h"

namespace mt {
namespace {

class OwnCertificatesTest : public ::testing::Test {
 protected:
  OwnCertificatesTest() {
    auto ca = ClusterCa::LoadOrCreate(&env_, "/tls");
    MT_CHECK_OK(ca.status());
    ca_ = std::move(*ca);
    auto own = OwnCertificates::Create(&loop_, &env_, ca_.get(), "/tls", "me");
    MT_CHECK_OK(own.status());
    own_ = std::move(*own);
  }
  std::vector<std::string> Certificates() {
    std::vector<std::string> all;
    for (const char* name : {"coordinator", "viewer", "submitter", "operator"})
      all.push_back(ReadFile(&env_, absl::StrCat("/tls/", name, ".crt")).value());
    return all;
  }
  SimScheduler scheduler_;
  SimEventLoop loop_{&scheduler_};
  MemEnv env_;
  std::unique_ptr<ClusterCa> ca_;
  std::unique_ptr<OwnCertificates> own_;
};

TEST_F(OwnCertificatesTest, AllAreRenewedEveryDay) {
  std::vector<std::string> before = Certificates();
  EXPECT_EQ(own_->expiry(), CertificateExpiry(before[0]).value());
  for (int day = 1; day <= 3; ++day) {
    scheduler_.RunUntil(absl::Hours(24 * day) + absl::Minutes(1));
    const std::vector<std::string> now = Certificates();
    for (size_t i = 0; i < now.size(); ++i) EXPECT_NE(now[i], before[i]) << "certificate " << i;
    before = now;
  }
}

TEST_F(OwnCertificatesTest, AFailureIsTriedAgain) {
  const std::vector<std::string> before = Certificates();
  env_.SetCapacity(env_.UsedBytes());
  scheduler_.RunUntil(absl::Hours(25));
  EXPECT_EQ(Certificates(), before) << "the present ones stay";
  env_.SetCapacity(env_.UsedBytes() + (1 << 20));
  scheduler_.RunUntil(absl::Hours(49));
  EXPECT_NE(Certificates()[0], before[0]);
}

}  // namespace
}  // namespace mt
