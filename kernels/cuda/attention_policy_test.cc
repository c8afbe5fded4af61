#include "kernels/cuda/attention_policy.h"

#include <gtest/gtest.h>

namespace mt::cuda {
namespace {

mt_attention_args Plain() {
  return {.dtype = MT_BF16,
          .sequence = 1024,
          .batch = 2,
          .heads = 8,
          .kv_heads = 2,
          .head_dim = 128,
          .scale = 0.1,
          .causal = 1};
}
CudnnUse With(void (*change)(mt_attention_args& args)) {
  mt_attention_args args = Plain();
  change(args);
  return UseOfCudnn(args);
}

TEST(AttentionPolicyTest, PlainLongSequencesOfBf16AreCudnnsByItself) {
  EXPECT_EQ(UseOfCudnn(Plain()), CudnnUse::kByItself);
  EXPECT_EQ(With([](auto& a) { a.causal = 0; }), CudnnUse::kByItself);
  EXPECT_EQ(With([](auto& a) { a.sequence = 256; }), CudnnUse::kByItself);
  EXPECT_EQ(With([](auto& a) { a.sequence = 255; }), CudnnUse::kIfAsked);
  EXPECT_EQ(With([](auto& a) { a.dtype = MT_F32; }), CudnnUse::kNever);
  EXPECT_EQ(With([](auto& a) { a.batch = 0; }), CudnnUse::kNever);
}

TEST(AttentionPolicyTest, FieldsThatSayWhatIsThereAnywayChangeNothing) {
  EXPECT_EQ(With([](auto& a) {
              a.v_head_dim = 128;
              a.key_sequence = 1024;
              a.window = 1024;
            }),
            CudnnUse::kByItself);
}

TEST(AttentionPolicyTest, WindowsAndValueHeadsOnlyIfAsked) {
  EXPECT_EQ(With([](auto& a) { a.window = 1023; }), CudnnUse::kIfAsked);
  EXPECT_EQ(With([](auto& a) {
              a.head_dim = 192;
              a.v_head_dim = 128;
            }),
            CudnnUse::kIfAsked);
}

TEST(AttentionPolicyTest, SinksDocumentsAndOlderKeysNeverWhateverElse) {
  static const float sinks[8] = {};
  static const int32_t starts[2048] = {};
  EXPECT_EQ(With([](auto& a) { a.document_start = starts; }), CudnnUse::kNever);
  EXPECT_EQ(With([](auto& a) { a.sinks = sinks; }), CudnnUse::kNever);
  EXPECT_EQ(With([](auto& a) { a.key_sequence = 2048; }), CudnnUse::kNever);
  EXPECT_EQ(With([](auto& a) {
              a.window = 64;
              a.sinks = sinks;
            }),
            CudnnUse::kNever);
}

}  // namespace
}  // namespace mt::cuda
