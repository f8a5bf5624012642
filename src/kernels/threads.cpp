#include "threads.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#ifndef _WIN32
#include <pthread.h>
#endif

#include "team.h"

namespace roundel {
namespace {

// A token's Linears follow each other within microseconds; waking a thread takes tens of them. So threads look for work
// for a while before they sleep.
constexpr int kSpins = 4000;

inline void relax() {
#if defined(__x86_64__) || defined(_M_X64)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Whoever is free takes the next.
struct Tasks {
  const int64_t count;
  const std::function<void(int64_t)>& work;
  std::atomic<int64_t> next{0};

  void take() {
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) work(i);
  }
};

class Pool {
 public:
  void run(int64_t count, int threads, const std::function<void(int64_t)>& work) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    const int helpers = static_cast<int>(std::min<int64_t>(threads, count)) - 1;
    if (helpers < 1 || !turn.owns_lock()) {
      for (int64_t i = 0; i < count; ++i) work(i);
      return;
    }
    while (static_cast<int>(threads_.size()) < helpers) {
      const int number = static_cast<int>(threads_.size());
      threads_.emplace_back([this, number, seen = round_.load()] { serve(number, seen); });
    }
    work_ = &work;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    helpers_ = helpers;
    busy_.store(static_cast<int>(threads_.size()), std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> hold(sleep_);
      round_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    take();
    while (busy_.load(std::memory_order_acquire) > 0) relax();
  }

 private:
  void take() {
    for (int64_t i = next_.fetch_add(1); i < count_; i = next_.fetch_add(1)) (*work_)(i);
  }

  void serve(int number, uint64_t seen) {
    for (;;) {
      for (int i = 0; i < kSpins && round_.load(std::memory_order_acquire) == seen; ++i) relax();
      if (round_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> hold(sleep_);
        wake_.wait(hold, [&] { return round_.load(std::memory_order_acquire) != seen; });
      }
      seen = round_.load(std::memory_order_acquire);
      if (number < helpers_) take();
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::mutex turn_, sleep_;
  std::condition_variable wake_;
  std::vector<std::thread> threads_;
  std::atomic<uint64_t> round_{0};
  std::atomic<int> busy_{0};
  std::atomic<int64_t> next_{0};
  const std::function<void(int64_t)>* work_ = nullptr;
  int64_t count_ = 0;
  int helpers_ = 0;
};

// Never destroyed: its threads wait in it when the process ends. A forked child has none of them and gets a new one.
Pool* pool = nullptr;

void renew() { pool = new Pool; }

Pool& the_pool() {
  static std::once_flag once;
  std::call_once(once, [] {
    renew();
#ifndef _WIN32
    pthread_atfork(nullptr, nullptr, renew);
#endif
  });
  return *pool;
}

}  // namespace

void parallel(int64_t count, int threads, const std::function<void(int64_t)>& work) {
  const RunTeam run_team = threads > 1 && count > 1 ? torch_team() : nullptr;
  if (run_team == nullptr) {
    the_pool().run(count, threads, work);
    return;
  }
  Tasks tasks{count, work};
  run_team([](void* all) { static_cast<Tasks*>(all)->take(); }, &tasks, std::min<int64_t>(threads, count), 0);
}

}  // namespace roundel
