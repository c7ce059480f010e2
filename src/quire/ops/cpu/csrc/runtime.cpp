// The thread pool, the choice of an instruction set, and the C interface that Python calls.
//
// One call runs a whole list of operations: threads enter it once and take the tasks of one phase after the other. A
// thread that the system holds up is waited for only where it has a task in hand, so that on busy cores the others go on.
// Between calls threads look for work for a moment and then sleep: an idle engine costs nothing.
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "op.h"
#include "packed.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#define QUIRE_PAUSE() _mm_pause()
#elif defined(__aarch64__)
#define QUIRE_PAUSE() asm volatile("yield")
#else
#define QUIRE_PAUSE()
#endif

namespace quire {

namespace portable {
extern const KernelTable table;
}
#ifdef QUIRE_HAS_AVX2
namespace avx2 {
extern const KernelTable table;
}
#endif
#ifdef QUIRE_HAS_AVX512
namespace avx512 {
extern const KernelTable table;
}
#endif
#ifdef QUIRE_HAS_AVX512VNNI
namespace avx512vnni {
extern const KernelTable table;
}
#endif
#ifdef QUIRE_HAS_AVX512BF16
namespace avx512bf16 {
extern const KernelTable table;
}
#endif

namespace {

// Of a range's word: two counts of tasks, and the number of the phase above them.
constexpr int kCountBits = 20, kPhaseShift = 2 * kCountBits;
constexpr uint64_t kCountMask = (uint64_t(1) << kCountBits) - 1;
// Turns of a waiting loop before the core is offered to others: a few microseconds.
constexpr int kTurnsBeforeYield = 4000;
// Yields between calls before a thread goes to sleep: some tens of microseconds when nobody else wants the core.
constexpr int kYieldsBeforeSleep = 100;

#ifdef QUIRE_HAS_AVX512
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// Those this processor can run, best first.
std::vector<const KernelTable*> usable_tables() {
  std::vector<const KernelTable*> found;
#ifdef QUIRE_HAS_AVX512BF16
  if (has_avx512() && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16"))
    found.push_back(&avx512bf16::table);
#endif
#ifdef QUIRE_HAS_AVX512VNNI
  if (has_avx512() && __builtin_cpu_supports("avx512vnni")) found.push_back(&avx512vnni::table);
#endif
#ifdef QUIRE_HAS_AVX512
  if (has_avx512()) found.push_back(&avx512::table);
#endif
#ifdef QUIRE_HAS_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    found.push_back(&avx2::table);
#endif
  found.push_back(&portable::table);
  return found;
}

struct FreeMemory {
  void operator()(char* p) const { std::free(p); }
};
using Memory = std::unique_ptr<char, FreeMemory>;

Memory allocate(size_t bytes) {
  char* p = static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
  if (!p) throw std::bad_alloc();
  return Memory(p);
}

}  // namespace

void Phases::start(int threads) {
  threads_ = threads;
  ranges_ = threads < kMostRanges ? threads : kMostRanges;
  done_.store(0, std::memory_order_relaxed);
  open(0);
}

void Phases::open(uint32_t phase) {
  // Nobody takes of a phase before it is open, and who is late in the one before finds nothing left.
  for (int i = 0; i < ranges_; ++i)
    taken_[i].word.store(uint64_t(phase) << kPhaseShift, std::memory_order_relaxed);
  phase_.store(phase, std::memory_order_release);
}

int64_t Phases::take(uint32_t phase, int64_t total, int thread) {
  int own = thread * ranges_ / threads_;
  for (int i = 0, range = own; i < ranges_; ++i, range = range + 1 < ranges_ ? range + 1 : 0) {
    int64_t task = take_from(range, phase, total, range == own);
    if (task != kNone) return task;
  }
  return kNone;
}

int64_t Phases::take_from(int range, uint32_t phase, int64_t total, bool is_own) {
  std::atomic<uint64_t>& taken = taken_[range].word;
  const int64_t from = total * range / ranges_, to = total * (range + 1) / ranges_;
  uint64_t word = taken.load(std::memory_order_acquire);
  for (;;) {
    int64_t first = int64_t(word >> kCountBits & kCountMask), last = int64_t(word & kCountMask);
    if (word >> kPhaseShift != (uint64_t(phase) << kPhaseShift) >> kPhaseShift || first + last >= to - from) return kNone;
    uint64_t next = word + (is_own ? uint64_t(1) << kCountBits : 1);
    if (taken.compare_exchange_weak(word, next, std::memory_order_acq_rel, std::memory_order_acquire))
      return is_own ? from + first : to - 1 - last;
  }
}

void Phases::wait(uint32_t phase, int64_t total) {
  const uint64_t before = uint64_t(phase) << 32, after = uint64_t(phase + 1) << 32;
  for (int turn = 0; phase_.load(std::memory_order_acquire) == phase; ++turn) {
    // One of the threads that see the last task done opens the next phase.
    uint64_t all = before | uint64_t(total);
    if (done_.load(std::memory_order_acquire) == all &&
        done_.compare_exchange_strong(all, after, std::memory_order_acq_rel))
      return open(phase + 1);
    QUIRE_PAUSE();
    // Whoever has the missing task may be waiting for this very core.
    if (turn > kTurnsBeforeYield) std::this_thread::yield();
  }
}

class Engine {
 public:
  Engine(int threads, const KernelTable* table) : table_(table), threads_(threads) {
    for (int i = 0; i < threads; ++i) locals_.push_back(allocate(kLocalScratch));
    shared_size_ = kLocalScratch;
    shared_ = allocate(shared_size_);
    try {
      for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { serve(i); });
    } catch (...) {
      stop();
      throw;
    }
  }

  ~Engine() { stop(); }

  void run(const Op* ops, int64_t count, int64_t tokens, const Plan* plan) {
    if (count == 0) return;
    std::lock_guard<std::mutex> turn(one_caller_);
    size_t need = kLocalScratch;
    for (int64_t i = 0; i < count; ++i) {
      size_t bytes = table_->shared_scratch(ops[i], tokens);
      need = bytes > need ? bytes : need;
    }
    if (need > shared_size_) {
      shared_.reset();
      shared_size_ = 0;
      shared_ = allocate(need);
      shared_size_ = need;
    }
    job_ = {ops, count, tokens, plan, nullptr};
    everyone();
  }

  void pack(const PackJob& job) {
    std::lock_guard<std::mutex> turn(one_caller_);
    job_ = {nullptr, 0, 0, nullptr, &job};
    everyone();
  }

  const KernelTable* table() const { return table_; }

 private:
  struct Work {
    const Op* ops;
    int64_t count, tokens;
    const Plan* plan;
    const PackJob* pack;
  };

  void stop() {
    stopping_.store(true);
    state_.fetch_add(uint64_t(1) << 32, std::memory_order_seq_cst);
    wake();
    for (std::thread& worker : workers_) worker.join();
  }

  void everyone() {
    phases_.start(threads_);
    // From here on workers may come in; those that sleep are woken, and missed by nobody if they come late or never.
    uint64_t generation = (state_.load(std::memory_order_relaxed) >> 32) + 1;
    state_.store(generation << 32 | kOpen, std::memory_order_seq_cst);
    wake();
    part(0);
    // No more may come in, and those that are in must go: what they look at is the caller's.
    state_.fetch_and(~kOpen, std::memory_order_acq_rel);
    for (int turn = 0; uint32_t(state_.load(std::memory_order_acquire)) != 0; ++turn) {
      QUIRE_PAUSE();
      if (turn > kTurnsBeforeYield) std::this_thread::yield();
    }
  }

  void wake() {
    // In one order with the sleeper's: it counts itself, then looks. One of the two sees the other.
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      condition_.notify_all();
    }
  }

  // Through all phases of the job, with or without finding something to do.
  void part(int thread) {
    Progress progress{};
    Context context{thread, threads_,  job_.tokens,   job_.plan, &phases_,
                    &progress, shared_.get(), locals_[size_t(thread)].get()};
    if (job_.pack) {
      for (int64_t i = context.take(threads_); i >= 0; i = context.take(threads_))
        table_->pack(*job_.pack, i, threads_);
      context.meet(threads_);
    }
    for (int64_t i = 0; i < job_.count; ++i)
      context.meet(table_->kernels[job_.ops[i].kind](job_.ops[i], context));
  }

  void serve(int thread) {
    uint32_t seen = 0;
    for (;;) {
      seen = next_generation(seen);
      if (stopping_.load()) return;
      if (!enter(seen)) continue;
      part(thread);
      state_.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  // Whether the job of this generation is still going on; it then waits for this thread to leave.
  bool enter(uint32_t generation) {
    uint64_t state = state_.load(std::memory_order_acquire);
    do {
      if (uint32_t(state >> 32) != generation || !(state & kOpen)) return false;
    } while (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel, std::memory_order_acquire));
    return true;
  }

  uint32_t generation() const { return uint32_t(state_.load(std::memory_order_seq_cst) >> 32); }

  uint32_t next_generation(uint32_t seen) {
    for (int yields = 0; yields < kYieldsBeforeSleep; ++yields) {
      for (int turn = 0; turn < 200; ++turn) {
        uint32_t now = generation();
        if (now != seen) return now;
        QUIRE_PAUSE();
      }
      std::this_thread::yield();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    condition_.wait(lock, [&] { return generation() != seen; });
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    return generation();
  }

  // Of state_: whether a job is going on; below, how many workers are in it; above, the number of the job.
  static constexpr uint64_t kOpen = 1u << 31;

  const KernelTable* table_;
  const int threads_;
  Phases phases_;
  std::atomic<uint64_t> state_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stopping_{false};
  std::mutex one_caller_;  // callers from several threads take turns
  std::mutex mutex_;
  std::condition_variable condition_;
  Work job_{};
  size_t shared_size_ = 0;
  Memory shared_;
  std::vector<Memory> locals_;
  std::vector<std::thread> workers_;
};

}  // namespace quire

// ---- what Python calls; the caller keeps all memory alive

#define QUIRE_API __attribute__((visibility("default")))

extern "C" {

QUIRE_API int64_t quire_op_bytes() { return int64_t(sizeof(quire::Op)); }

// The names of the instruction sets this machine can run, best first, separated by spaces.
QUIRE_API int64_t quire_instruction_sets(char* out, int64_t size) {
  int64_t at = 0;
  for (const quire::KernelTable* table : quire::usable_tables()) {
    int64_t length = int64_t(std::strlen(table->name));
    if (at + length + 2 > size) break;
    if (at) out[at++] = ' ';
    std::memcpy(out + at, table->name, size_t(length));
    at += length;
  }
  out[at] = 0;
  return at;
}

// Null when memory or threads are not to be had, or the instruction set is not usable here; empty means the best.
QUIRE_API void* quire_engine_new(int64_t threads, const char* name) {
  for (const quire::KernelTable* table : quire::usable_tables()) {
    if (*name && std::strcmp(name, table->name)) continue;
    try {
      return new quire::Engine(int(threads), table);
    } catch (...) {
      return nullptr;
    }
  }
  return nullptr;
}

QUIRE_API void quire_engine_free(void* engine) { delete static_cast<quire::Engine*>(engine); }

// 0, or 1 when scratch memory is not to be had.
QUIRE_API int64_t quire_run(void* engine, const quire::Op* ops, int64_t count, int64_t tokens, const quire::Plan* plan) {
  try {
    static_cast<quire::Engine*>(engine)->run(ops, count, tokens, plan);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

QUIRE_API void quire_pack(void* engine, const quire::PackJob* job) { static_cast<quire::Engine*>(engine)->pack(*job); }

QUIRE_API int64_t quire_panel_bytes(int64_t format, int64_t k) { return quire::panel_bytes(format, k); }
}
