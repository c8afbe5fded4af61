#include "common/endpoint_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace mt {
namespace {

using testing::HasSubstr;

TEST(EndpointFile, WhatIsWrittenIsRead) {
  const EndpointFile written{.address = "127.0.0.1:7070",
                             .ca = "/a/ca.pem",
                             .certificate = "/a/c.pem",
                             .key = "/a/k.pem",
                             .metrics = "http://127.0.0.1:9090/metrics",
                             .pid = 42,
                             .cluster_id = "c1"};
  const auto read = ParseEndpointFile(FormatEndpointFile(written), "endpoint.json");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->address, written.address);
  EXPECT_EQ(read->key, written.key);
  EXPECT_EQ(read->metrics, written.metrics);
  EXPECT_EQ(read->pid, 42);
  EXPECT_FALSE(read->insecure);
}

TEST(EndpointFile, AFileWithoutCertificatesMustSayInsecure) {
  EXPECT_TRUE(ParseEndpointFile(R"({"address": "h:1", "insecure": true, "later": [1]})", "f").ok());
  EXPECT_THAT(ParseEndpointFile(R"({"address": "h:1"})", "f").status().message(),
              HasSubstr("or `insecure`"));
}

TEST(EndpointFile, NonsenseIsRefusedByName) {
  for (const char* text :
       {"", "[]", "{", "{}", R"({"address": 3})", R"({"address":"h:1","insecure":"yes"})"}) {
    const auto read = ParseEndpointFile(text, "/x/e.json");
    EXPECT_EQ(read.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(read.status().message(), HasSubstr("/x/e.json")) << text;
  }
}

}  // namespace
}  // namespace mt
