#include "coordinator/api/call.h"

#include <gtest/gtest.h>

#include <future>

#include "mt/v1/jobs.pb.h"

namespace mt {
namespace {

// Ends in Next, and gRPC is done with it before Next returns, as its own thread can be.
class EndedStream : public LoopStream<v1::Job> {
 public:
  EndedStream(EventLoop* loop, bool* destroyed, bool* destroyed_in_next)
      : LoopStream(loop), destroyed_(destroyed), destroyed_in_next_(destroyed_in_next) {}
  ~EndedStream() override { *destroyed_ = true; }
  void Changed() { Poke(); }  // what a subscription calls, without a hold on the stream

 private:
  void Start() override {}
  void Next() override {
    if (!std::exchange(started_, true)) return;
    bool* const destroyed = destroyed_;
    bool* const destroyed_in_next = destroyed_in_next_;
    End(absl::OkStatus());
    OnDone();
    *destroyed_in_next = *destroyed;
  }
  bool* const destroyed_;
  bool* const destroyed_in_next_;
  bool started_ = false;
};

TEST(LoopStreamTest, OutlivesThePokeThatEndsIt) {
  const auto loop = NewThreadEventLoop("test");
  const auto on_loop = [&](auto body) {
    std::promise<void> done;
    loop->Post([&] {
      body();
      done.set_value();
    });
    done.get_future().wait();
  };
  bool destroyed = false, destroyed_in_next = false;
  EndedStream* stream = nullptr;
  {
    auto shared = std::make_shared<EndedStream>(loop.get(), &destroyed, &destroyed_in_next);
    stream = shared.get();
    LoopStream<v1::Job>::Run(std::move(shared));
  }
  on_loop([] {});
  on_loop([&] { stream->Changed(); });
  EXPECT_TRUE(destroyed);
  EXPECT_FALSE(destroyed_in_next);
}

}  // namespace
}  // namespace mt
