// What the processor can do at most: sums of products out of registers, and bytes read from memory or a cache.
//
// The loops are written as instructions, so that no compiler drops work whose result nobody reads. Threads begin
// together, and the last one to finish counts.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

enum Unit : int64_t { kFloat32Fma, kBfloat16Dot, kInt16Madd, kInt16Dot, kInt8Madd, kInt8Dot };

using Compute = void (*)(int64_t turns);
using Read = void (*)(const char* memory, int64_t bytes);

struct Loop {
  const char* level;   // what the names of its instruction sets (hatch_build.py) begin with
  Unit unit;
  int64_t operations;  // of one turn, two per product
  Compute run;
};

constexpr int64_t kLine = 512;  // bytes that a turn of a reading loop takes
constexpr int kChains = 12;     // sums that are under way at once: more than latency times multipliers

#if defined(__x86_64__)

#define QUIRE_CHAINS(f) f("0") f("1") f("2") f("3") f("4") f("5") f("6") f("7") f("8") f("9") f("10") f("11")
#define QUIRE_CLEAR(n) "vpxor %%xmm" n ", %%xmm" n ", %%xmm" n "\n"
#define QUIRE_ALL_REGISTERS \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", \
      "xmm14", "xmm15"

// The bits are numbers near 1 in float32 and in bfloat16.
#define QUIRE_COMPUTE(name, reg, step)                                                             \
  void name(int64_t turns) {                                                                       \
    int32_t bits = 0x3f803f80;                                                                     \
    asm volatile(QUIRE_CHAINS(QUIRE_CLEAR) "vpbroadcastd %1, %%" reg "13\nvpbroadcastd %1, %%" reg \
                 "14\nvpbroadcastd %1, %%" reg "15\n1:\n" QUIRE_CHAINS(step)                       \
                 "dec %0\njnz 1b\nvzeroupper\n"                                                    \
                 : "+r"(turns)                                                                     \
                 : "m"(bits)                                                                       \
                 : "cc", QUIRE_ALL_REGISTERS);                                                     \
  }

#define QUIRE_ONE(op, r, n) op " %%" r "14, %%" r "15, %%" r n "\n"
#define QUIRE_ADD(r, n) "vpaddd %%" r "12, %%" r n ", %%" r n "\n"
#define QUIRE_TWO(r, n) QUIRE_ONE("vpmaddwd", r, "12") QUIRE_ADD(r, n)
#define QUIRE_THREE(r, n) QUIRE_ONE("vpmaddubsw", r, "12") "vpmaddwd %%" r "12, %%" r "13, %%" r "12\n" QUIRE_ADD(r, n)

#define QUIRE_FMA512(n) QUIRE_ONE("vfmadd231ps", "zmm", n)
#define QUIRE_BF512(n) QUIRE_ONE("vdpbf16ps", "zmm", n)
#define QUIRE_I16_512(n) QUIRE_TWO("zmm", n)
#define QUIRE_DOT16_512(n) QUIRE_ONE("vpdpwssd", "zmm", n)
#define QUIRE_I8_512(n) QUIRE_THREE("zmm", n)
#define QUIRE_DOT8_512(n) QUIRE_ONE("vpdpbusd", "zmm", n)
#define QUIRE_FMA256(n) QUIRE_ONE("vfmadd231ps", "ymm", n)
#define QUIRE_I16_256(n) QUIRE_TWO("ymm", n)
#define QUIRE_I8_256(n) QUIRE_THREE("ymm", n)

QUIRE_COMPUTE(fma512, "zmm", QUIRE_FMA512)
QUIRE_COMPUTE(bf16_512, "zmm", QUIRE_BF512)
QUIRE_COMPUTE(madd16_512, "zmm", QUIRE_I16_512)
QUIRE_COMPUTE(dot16_512, "zmm", QUIRE_DOT16_512)
QUIRE_COMPUTE(madd8_512, "zmm", QUIRE_I8_512)
QUIRE_COMPUTE(dot8_512, "zmm", QUIRE_DOT8_512)
QUIRE_COMPUTE(fma256, "ymm", QUIRE_FMA256)
QUIRE_COMPUTE(madd16_256, "ymm", QUIRE_I16_256)
QUIRE_COMPUTE(madd8_256, "ymm", QUIRE_I8_256)

#define QUIRE_READ(name, lines)                                                  \
  void name(const char* p, int64_t bytes) {                                      \
    const char* end = p + bytes;                                                 \
    asm volatile("1:\n" lines "add $512, %0\ncmp %1, %0\njb 1b\nvzeroupper\n"    \
                 : "+r"(p)                                                       \
                 : "r"(end)                                                      \
                 : "cc", "memory", QUIRE_ALL_REGISTERS);                         \
  }
#define QUIRE_Z(at, n) "vmovups " at "(%0), %%zmm" n "\n"
#define QUIRE_Y(at, n) "vmovups " at "(%0), %%ymm" n "\n"

QUIRE_READ(read512, QUIRE_Z("0", "0") QUIRE_Z("64", "1") QUIRE_Z("128", "2") QUIRE_Z("192", "3") QUIRE_Z("256", "4")
                        QUIRE_Z("320", "5") QUIRE_Z("384", "6") QUIRE_Z("448", "7"))
QUIRE_READ(read256, QUIRE_Y("0", "0") QUIRE_Y("32", "1") QUIRE_Y("64", "2") QUIRE_Y("96", "3") QUIRE_Y("128", "4")
                        QUIRE_Y("160", "5") QUIRE_Y("192", "6") QUIRE_Y("224", "7") QUIRE_Y("256", "8")
                            QUIRE_Y("288", "9") QUIRE_Y("320", "10") QUIRE_Y("352", "11") QUIRE_Y("384", "12")
                                QUIRE_Y("416", "13") QUIRE_Y("448", "14") QUIRE_Y("480", "15"))

#endif

using Four = float __attribute__((vector_size(16)));

volatile float kept;  // what a loop without instructions of its own leaves, so that it is not dropped

void compute_portable(int64_t turns) {
  Four sums[kChains] = {}, factor = {0.5f, 0.5f, 0.5f, 0.5f}, one = {1.0f, 1.0f, 1.0f, 1.0f};
  for (int64_t i = 0; i < turns; ++i)
    for (Four& sum : sums) sum = sum * factor + one;
  float total = 0.0f;
  for (Four& sum : sums) total += sum[0] + sum[1] + sum[2] + sum[3];
  kept = total;
}

void read_portable(const char* memory, int64_t bytes) {
  Four sums[4] = {};
  for (int64_t at = 0; at < bytes; at += int64_t(sizeof sums)) {
    Four line[4];
    std::memcpy(line, memory + at, sizeof line);
    for (int i = 0; i < 4; ++i) sums[i] = sums[i] + line[i];
  }
  kept = sums[0][0] + sums[1][1] + sums[2][2] + sums[3][3];
}

const Loop kLoops[] = {
#if defined(__x86_64__)
    {"avx512", kFloat32Fma, kChains * 32, fma512},
    {"avx512", kInt16Madd, kChains * 64, madd16_512},
    {"avx512", kInt8Madd, kChains * 128, madd8_512},
    {"avx512vnni", kInt16Dot, kChains * 64, dot16_512},
    {"avx512vnni", kInt8Dot, kChains * 128, dot8_512},
    {"avx512bf16", kInt16Dot, kChains * 64, dot16_512},
    {"avx512bf16", kInt8Dot, kChains * 128, dot8_512},
    {"avx512bf16", kBfloat16Dot, kChains * 64, bf16_512},
    {"avx2", kFloat32Fma, kChains * 16, fma256},
    {"avx2", kInt16Madd, kChains * 32, madd16_256},
    {"avx2", kInt8Madd, kChains * 64, madd8_256},
#endif
    {"portable", kFloat32Fma, kChains * 8, compute_portable},
};

bool begins(const char* text, const char* start) { return !std::strncmp(text, start, std::strlen(start)); }

const Loop* loop_of(const char* level, int64_t unit) {
  for (const Loop& loop : kLoops)
    if (loop.unit == unit && begins(level, loop.level)) return &loop;
  return nullptr;
}

Read read_of(const char* level) {
#if defined(__x86_64__)
  if (begins(level, "avx512")) return read512;
  if (begins(level, "avx2")) return read256;
#endif
  (void)level;
  return read_portable;
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds from the common start until the last thread is done with its part; negative where threads are not to be had.
template <class Part>
double together(int64_t threads, Part part) {
  std::atomic<int64_t> waiting{0};
  std::atomic<bool> is_open{false}, is_off{false};
  auto work = [&](int64_t thread) {
    waiting.fetch_add(1);
    while (!is_open.load()) std::this_thread::yield();
    if (!is_off.load()) part(thread);
  };
  std::vector<std::thread> others;
  try {
    for (int64_t i = 1; i < threads; ++i) others.emplace_back(work, i);
  } catch (...) {
    is_off.store(true);
  }
  while (waiting.load() < int64_t(others.size())) std::this_thread::yield();
  double began = now();
  is_open.store(true);
  if (!is_off.load()) part(0);
  for (std::thread& other : others) other.join();
  return is_off.load() ? -1.0 : now() - began;
}

}  // namespace

#define QUIRE_API __attribute__((visibility("default")))

extern "C" {

// Operations of one turn of a unit's loop; 0 where the instruction set does not have it. This and all below: only for
// instruction sets that this machine can run.
QUIRE_API int64_t quire_ceiling_operations(const char* level, int64_t unit) {
  const Loop* loop = loop_of(level, unit);
  return loop ? loop->operations : 0;
}

// Seconds that so many threads take for `turns` turns each of a loop that is there; negative as above.
QUIRE_API double quire_ceiling_compute(const char* level, int64_t unit, int64_t threads, int64_t turns) {
  const Loop* loop = loop_of(level, unit);
  return together(threads, [&](int64_t) { loop->run(turns); });
}

// Seconds that so many threads take to read their share of `bytes` bytes `passes` times: whole lines of 512 bytes.
QUIRE_API double quire_ceiling_read(const char* level, const char* memory, int64_t bytes, int64_t threads,
                                    int64_t passes) {
  Read read = read_of(level);
  int64_t share = bytes / threads / kLine * kLine;
  return together(threads, [&](int64_t thread) {
    for (int64_t i = 0; i < passes; ++i) read(memory + thread * share, share);
  });
}
}
