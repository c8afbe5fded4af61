#include "common/event_loop.h"

#include <gtest/gtest.h>

#include <vector>

#include "absl/synchronization/notification.h"

namespace mt {
namespace {

TEST(EventLoopTest, TasksRunInOrderAndTimersByTime) {
  std::vector<int> order;
  absl::Notification done;
  {
    auto loop = NewThreadEventLoop("test");
    loop->Post([&] {
      loop->After(absl::Milliseconds(20), [&] { order.push_back(3), done.Notify(); });
      loop->After(absl::Milliseconds(1), [&] { order.push_back(2); });
      loop->Post([&] { order.push_back(1); });
      order.push_back(0);
    });
    done.WaitForNotification();
  }
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3}));
}

TEST(EventLoopTest, ACancelledTimerNeverRuns) {
  bool ran = false;
  absl::Notification done;
  auto loop = NewThreadEventLoop("test");
  loop->Post([&] {
    const auto timer = loop->After(absl::Milliseconds(1), [&] { ran = true; });
    loop->Cancel(timer);
    loop->After(absl::Milliseconds(5), [&] { done.Notify(); });
  });
  done.WaitForNotification();
  EXPECT_FALSE(ran);
}

TEST(EventLoopTest, DestructionRunsWhatWasPosted) {
  int count = 0;
  {
    auto loop = NewThreadEventLoop("test");
    for (int i = 0; i < 100; ++i) loop->Post([&] { ++count; });
  }
  EXPECT_EQ(count, 100);
}

}  // namespace
}  // namespace mt
