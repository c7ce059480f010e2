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
  kOpKinds,
};

enum WeightFormat : int64_t { kFloat32, kBfloat16, kInt8, kInt4 };

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

// Threads of a region wait here for each other; the last one to come resets the work counter.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  void wait(std::atomic<int64_t>* counter);

 private:
  const int threads_;
  std::atomic<int> arrived_{0};
  std::atomic<uint32_t> phase_{0};
};

// What a kernel sees of the thread that runs it.
struct Context {
  int thread;
  int threads;
  int64_t tokens;
  const Plan* plan;
  Barrier* barrier;
  std::atomic<int64_t>* counter;
  char* shared;        // scratch of all threads, kSharedScratch bytes or what the op asked for
  char* local;         // scratch of this thread

  // All threads of the region come here; what was written before is visible after.
  void meet() const { barrier->wait(counter); }
  // The next number that no thread has taken since the last meeting.
  int64_t take() const { return counter->fetch_add(1, std::memory_order_relaxed); }
};

// Bytes of scratch that each thread has for itself.
constexpr size_t kLocalScratch = 1 << 20;

using Kernel = void (*)(const Op&, const Context&);

// The kernels of one instruction set.
struct KernelTable {
  const char* name;
  Kernel kernels[kOpKinds];
  // Bytes of shared scratch that an operation needs for so many tokens.
  size_t (*shared_scratch)(const Op&, int64_t tokens);
  void (*pack)(const struct PackJob&, int thread, int threads);
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
