// For tests: a group of real processes, forked from the test, that meet in shared memory.
#pragma once

#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <ctime>
#include <functional>
#include <string>
#include <vector>

#include "worker/comm/communicator.h"

namespace mt {

// A rendezvous for processes forked after it was made, and for threads.
class SharedRendezvous : public Rendezvous {
 public:
  SharedRendezvous() {
    table_ = static_cast<Table*>(
        mmap(nullptr, sizeof(Table), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    pthread_mutexattr_t mutex;
    pthread_mutexattr_init(&mutex);
    pthread_mutexattr_setpshared(&mutex, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&mutex, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&table_->mutex, &mutex);
    pthread_condattr_t changed;
    pthread_condattr_init(&changed);
    pthread_condattr_setpshared(&changed, PTHREAD_PROCESS_SHARED);
    pthread_cond_init(&table_->changed, &changed);
  }
  ~SharedRendezvous() override { munmap(table_, sizeof(Table)); }

  absl::Status Put(const std::string& key, const std::string& value) override {
    Lock();
    const bool fits = table_->count < kEntries && key.size() < sizeof(Entry::key) &&
                      value.size() <= sizeof(Entry::value);
    if (fits) {
      Entry& entry = table_->entries[table_->count++];
      std::memcpy(entry.key, key.c_str(), key.size() + 1);
      std::memcpy(entry.value, value.data(), value.size());
      entry.value_size = value.size();
    }
    pthread_cond_broadcast(&table_->changed);
    pthread_mutex_unlock(&table_->mutex);
    return fits ? absl::OkStatus() : absl::ResourceExhaustedError(key);
  }
  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) override {
    const timespec deadline = absl::ToTimespec(absl::Now() + timeout);
    Lock();
    while (true) {
      for (size_t i = 0; i < table_->count; ++i) {
        if (key != table_->entries[i].key) continue;
        std::string value(table_->entries[i].value, table_->entries[i].value_size);
        pthread_mutex_unlock(&table_->mutex);
        return value;
      }
      if (pthread_cond_timedwait(&table_->changed, &table_->mutex, &deadline) == ETIMEDOUT) {
        pthread_mutex_unlock(&table_->mutex);
        return absl::DeadlineExceededError(absl::StrCat("rendezvous key ", key, " did not come"));
      }
    }
  }

 private:
  static constexpr size_t kEntries = 256;
  struct Entry {
    char key[128];
    char value[1024];
    size_t value_size;
  };
  struct Table {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    size_t count;
    Entry entries[kEntries];
  };
  void Lock() {
    if (pthread_mutex_lock(&table_->mutex) == EOWNERDEAD) pthread_mutex_consistent(&table_->mutex);
  }
  Table* table_;
};

// Members as forked processes; each reports a status as text through its own pipe.
class ProcessGroup {
 public:
  using Body = std::function<absl::Status(int rank, Rendezvous* rendezvous)>;
  ProcessGroup(int size, const Body& body) {
    for (int rank = 0; rank < size; ++rank) {
      int ends[2];
      if (pipe(ends) != 0) std::abort();
      const pid_t pid = fork();
      if (pid == 0) {
        close(ends[0]);
        for (const Process& other : processes_) close(other.pipe);
        const absl::Status status = body(rank, &rendezvous_);
        const std::string text =
            absl::StrCat(static_cast<int>(status.code()), " ", BlamedRank(status).value_or(-1), " ",
                         status.message());
        (void)!write(ends[1], text.data(), text.size());
        _exit(0);
      }
      close(ends[1]);
      processes_.push_back({pid, ends[0]});
    }
  }
  ~ProcessGroup() {
    for (const Process& process : processes_) {
      kill(process.pid, SIGKILL);
      waitpid(process.pid, nullptr, 0);
      close(process.pipe);
    }
  }
  void Kill(int rank, int signal) { kill(processes_[rank].pid, signal); }

  struct Result {
    absl::StatusCode code = absl::StatusCode::kUnknown;
    int blamed = -1;
    std::string message;
  };
  // Waits until the member has said how it ended, or has ended without.
  Result Wait(int rank) {
    std::string text;
    char buffer[512];
    for (ssize_t count; (count = read(processes_[rank].pipe, buffer, sizeof(buffer))) > 0;)
      text.append(buffer, count);
    siginfo_t end = {};
    waitid(P_PID, processes_[rank].pid, &end, WEXITED | WNOWAIT);
    Result result{absl::StatusCode::kUnknown, -1, absl::StrCat("ended by signal ", end.si_status)};
    int code = 0, at = 0;
    if (sscanf(text.c_str(), "%d %d %n", &code, &result.blamed, &at) == 2) {
      result.code = static_cast<absl::StatusCode>(code);
      result.message = text.substr(at);
    }
    return result;
  }
  void ExpectAllOk() {
    for (size_t i = 0; i < processes_.size(); ++i) {
      const Result result = Wait(static_cast<int>(i));
      EXPECT_EQ(result.code, absl::StatusCode::kOk) << "member " << i << ": " << result.message;
    }
  }

 private:
  struct Process {
    pid_t pid;
    int pipe;
  };
  SharedRendezvous rendezvous_;
  std::vector<Process> processes_;
};

}  // namespace mt
