#include "client/interrupt.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>

#include "common/exit_codes.h"

namespace mt::client {
namespace {

// The only things a signal handler touches.
std::atomic<int> wake_fd{-1};
std::atomic<int> seen{0};

void OnSignal(int) {
  if (seen.fetch_add(1) > 0) _exit(kExitInterrupted);
  const int fd = wake_fd.load();
  const char byte = 'i';
  if (fd >= 0 && write(fd, &byte, 1) < 0) return;  // a full pipe has woken it already
}

}  // namespace

// A thread reads the handler's pipe and cancels the open calls, which a handler itself must not.
struct Interrupt::State {
  int pipe[2] = {-1, -1};
  std::thread thread;
  std::mutex mutex;
  std::condition_variable changed;
  bool interrupted = false;
  std::set<grpc::ClientContext*> contexts;
  struct sigaction before_int, before_term;
};

Interrupt::Interrupt() : state_(new State) {
  if (pipe2(state_->pipe, O_CLOEXEC) != 0) state_->pipe[0] = state_->pipe[1] = -1;
  seen = 0;
  wake_fd = state_->pipe[1];
  struct sigaction action = {};
  action.sa_handler = OnSignal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  sigaction(SIGINT, &action, &state_->before_int);
  sigaction(SIGTERM, &action, &state_->before_term);
  state_->thread = std::thread([this] {
    char byte = 0;
    while (read(state_->pipe[0], &byte, 1) == 1 && byte == 'i') {
      Trigger();
    }
  });
}

Interrupt::~Interrupt() {
  sigaction(SIGINT, &state_->before_int, nullptr);
  sigaction(SIGTERM, &state_->before_term, nullptr);
  wake_fd = -1;
  const char byte = 'q';
  (void)!write(state_->pipe[1], &byte, 1);
  state_->thread.join();
  close(state_->pipe[0]);
  close(state_->pipe[1]);
  delete state_;
}

bool Interrupt::Seen() const {
  std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->interrupted;
}

void Interrupt::Trigger() {
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->interrupted = true;
  for (grpc::ClientContext* context : state_->contexts) context->TryCancel();
  state_->changed.notify_all();
}

bool Interrupt::Sleep(std::chrono::milliseconds span) const {
  std::unique_lock<std::mutex> lock(state_->mutex);
  return state_->changed.wait_for(lock, span, [this] { return state_->interrupted; });
}

Interrupt::Scope::Scope(Interrupt* interrupt, grpc::ClientContext* context)
    : interrupt_(interrupt), context_(context) {
  std::lock_guard<std::mutex> lock(interrupt_->state_->mutex);
  interrupt_->state_->contexts.insert(context);
  if (interrupt_->state_->interrupted) context->TryCancel();
}

Interrupt::Scope::~Scope() {
  std::lock_guard<std::mutex> lock(interrupt_->state_->mutex);
  interrupt_->state_->contexts.erase(context_);
}

}  // namespace mt::client
