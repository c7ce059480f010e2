// What a recorded step is made of: operations with the addresses and sizes they work on, and what runs them.
// Knows: the records that Python fills (ops/cpu/program.py mirrors them). Does not know: any formula.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace quire {

enum OpKind : int32_t {
  kEmbedding,
  kLinear,
  kRmsNorm,
  kLayerNorm,
  kRope,
  kActivation,
  kGatedActivation,
  kSoftcap,
  kAdd,
  kAttention,
  kRoute,
  kExperts,
  kGreedy,
  kDraw,
  kUniform,
  kReadTokens,
  kAppendTokens,
  kMaskTokens,
  kOpKinds,
};

enum WeightFormat : int64_t { kFloat32, kBfloat16, kBfloat16Dot, kInt8, kInt4 };

// One operation. `rows` counts rows per token of the step, so that a recording serves any number of tokens. What the
// numbered fields mean stands at each kernel.
struct Op {
  int32_t kind;
  int32_t rows;
  void* p[8];
  int64_t n[12];
  float f[4];
};

// The attention inputs of one step. R rows; tokens of a row are consecutive.
struct Plan {
  int64_t num_rows;
  int64_t page_size;
  int64_t table_stride;
  const int64_t* first_tokens;   // [R]
  const int64_t* query_lens;     // [R]
  const int64_t* context_lens;   // [R]
  const int32_t* page_tables;    // [R, table_stride]
  const int64_t* slots;          // [T]
};

// The phases of a run, one after the other. Threads take a phase's tasks one by one, and the phase is over when all its
// tasks are done, whoever did them: a thread that the system holds up keeps the others waiting only for the one task it
// may have in hand, and passes by the phases that ended without it.
//
// The tasks are shared out in ranges, and a thread that has no more of its own takes the last ones of another's. So
// neighbouring tasks mostly stay with one thread: two that write lines of memory side by side slow each other down, and
// what a thread wrote in one phase it finds in its cache in the next.
class Phases {
 public:
  static constexpr int64_t kNone = -1;

  // Before the first thread comes.
  void start(int threads);
  // The next of `total` tasks of a phase, below 2^20; kNone when all are taken or the phase is over.
  int64_t take(uint32_t phase, int64_t total, int thread);
  // One task of the phase is done; whoever took it says so.
  void finish() { done_.fetch_add(1, std::memory_order_acq_rel); }
  // Returns when the phase is over. What its tasks wrote is visible then.
  void wait(uint32_t phase, int64_t total);

  // Numbers that one phase leaves to the next, so that a thread that comes late may look at them.
  std::atomic<int64_t> notes[2];

 private:
  static constexpr int kMostRanges = 16;  // more threads than that share them: looking for tasks has to stay cheap

  // What is taken of a range: the number of the phase, then how many of the first and how many of the last tasks.
  struct alignas(64) Taken {
    std::atomic<uint64_t> word{0};
  };

  int64_t take_from(int range, uint32_t phase, int64_t total, bool is_own);
  void open(uint32_t phase);

  Taken taken_[kMostRanges];
  int threads_ = 1, ranges_ = 1;
  alignas(64) std::atomic<uint32_t> phase_{0};
  // The number of the phase above, how many of its tasks are done below.
  std::atomic<uint64_t> done_{0};
};

// Where a thread is in the phases.
struct Progress {
  uint32_t phase;
  bool has_task;
};

// What a kernel sees of the thread that runs it. Between taking a task and the next call a thread may read what earlier
// phases wrote; without a task it may be late, and that memory may be somebody else's by then.
struct Context {
  int thread, threads;
  int64_t tokens;
  const Plan* plan;
  Phases* phases;
  Progress* progress;
  char* shared;  // scratch of all threads, kLocalScratch bytes or what the op asked for
  char* local;   // scratch of this thread

  // The next of so many tasks that no thread has taken, or -1; the one before it is done.
  int64_t take(int64_t total) const {
    finish();
    int64_t task = phases->take(progress->phase, total, thread);
    progress->has_task = task >= 0;
    return task;
  }
  // All `total` tasks of this phase are done after; every thread calls it with the same number.
  void meet(int64_t total) const {
    finish();
    if (total == 0) return;
    phases->wait(progress->phase++, total);
  }

 private:
  void finish() const {
    if (progress->has_task) phases->finish();
    progress->has_task = false;
  }
};

// Bytes of scratch that each thread has for itself.
constexpr size_t kLocalScratch = 1 << 20;

// Runs all phases of an operation but the wait for its last one; returns how many tasks that has.
using Kernel = int64_t (*)(const Op&, const Context&);

// The kernels of one instruction set.
struct KernelTable {
  const char* name;
  Kernel kernels[kOpKinds];
  // Bytes of shared scratch that an operation needs for so many tokens.
  size_t (*shared_scratch)(const Op&, int64_t tokens);
  void (*pack)(const struct PackJob&, int64_t part, int64_t parts);
};

enum SourceType : int64_t { kSourceFloat32, kSourceBfloat16, kSourceFloat16 };

// Rows of a weight matrix on their way into panels.
struct PackJob {
  const void* source;     // [rows, k], rows `source_stride` elements apart, columns `column_stride` apart
  int64_t source_type;
  int64_t source_stride;
  int64_t column_stride;
  int64_t rows;
  int64_t k;
  void* packed;           // the whole layer's panels
  int64_t format;
  int64_t first_row;      // where the rows go
};

}  // namespace quire
