// What the parts of paged attention share: a layer's pages, a tile of queries and how its softmax goes on from block to
// block. Knows: no layout of pages.
//
// Keys come in blocks of 64 positions and partitions of 512, both counted from position 0: a query's sums are the same
// in whatever tile, batch or chunk it comes. Softmax is online (Milakov & Gimelshein, 2018); partitions are merged in
// order.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels.h"
#include "vec.h"

namespace quire {
namespace QUIRE_ISA {
namespace paged {

constexpr int64_t kBlock = 64;
constexpr int64_t kPartition = 512;
constexpr int kQueryRows = 24;
constexpr int kStep = 6;  // query rows that share a line of keys or values in registers
constexpr int64_t kMaxHead = 256;
constexpr float kNothing = -std::numeric_limits<float>::infinity();

struct Job {
  const float *q, *k, *v;
  void* kv;
  float* out;
  const float* slopes;
  int64_t heads, kv_heads, head, q_stride, k_stride, v_stride, pages;
  bool is_bf16;
  int64_t window;
  bool alibi_first;
  float scale, softcap;
};

// The pages of one row and kv head.
struct Pages {
  const char *keys, *values;  // of the layer
  const int32_t* table;
  int64_t size, bytes, stride, kv_head;  // tokens and bytes of a head's part of a page; heads of a page

  Pages(const Job& job, const Plan& plan, int64_t row, int64_t head, int64_t item)
      : keys(static_cast<const char*>(job.kv)),
        table(plan.page_tables + row * plan.table_stride),
        size(plan.page_size),
        bytes(plan.page_size * job.head * item),
        stride(job.kv_heads),
        kv_head(head) {
    values = keys + job.pages * stride * bytes;
  }
  // Where the page of a position begins.
  const char* at(const char* from, int64_t position) const {
    return from + (int64_t(table[position / size]) * stride + kv_head) * bytes;
  }
};

// The keys of a block: `known` of them are in pages, and nobody in the tile sees the first `skipped`, which may not be.
struct Block {
  int64_t start, known, skipped;
};

// Scratch of one tile. q and weights are laid out by those who read them.
struct Tile {
  alignas(64) float q[kQueryRows * kMaxHead];  // scaled
  float sums[kQueryRows * kMaxHead];           // of the partition
  float result[kQueryRows * kMaxHead];         // of the partitions so far
  float scores[kQueryRows * kBlock];
  uint16_t weights[kQueryRows * kBlock];  // of scores, in bfloat16
  float keys[kBlock * kMaxHead];          // of pages smaller than a line
  float totals[kQueryRows * kLanes];      // of weights, lane by lane
  float top[32], total[32], all_top[32], all_total[32], change[32];
  int64_t position[kQueryRows];
  float slope[kQueryRows];
  int rows;
};
static_assert(sizeof(Tile) <= kLocalScratch, "a tile must fit a thread's scratch");

// Calls step.run<R>(first row) for the tile's rows, kStep at a time.
template <class Step, int R = kStep - 1>
void rest_of_rows(const Step& step, int first, int left) {
  if (left == R) return step.template run<R>(first);
  if constexpr (R > 1) rest_of_rows<Step, R - 1>(step, first, left);
}
template <class Step>
void each_step(int rows, const Step& step) {
  int r = 0;
  for (; r + kStep <= rows; r += kStep) step.template run<kStep>(r);
  if (r < rows) rest_of_rows(step, r, rows - r);
}

inline float rounded_bf16(float x) { return bf16_to_float(float_to_bf16(x)); }

// Cap and bias of the scores of row r, and kNothing where it sees no key.
inline void finish_scores(const Job& job, Tile& t, int r, int64_t start) {
  float* s = t.scores + r * kBlock;
  int64_t last = t.position[r] - start, first = job.window ? t.position[r] - job.window + 1 - start : 0;
  if (job.softcap > 0)
    for (int64_t i = 0; i < kBlock; i += kLanes)
      store(s + i, splat(job.softcap) * tanh(load(s + i) / splat(job.softcap)));
  if (job.slopes)
    for (int64_t i = 0; i < kBlock; ++i) {
      float position = float(start + i);
      s[i] += job.alibi_first ? rounded_bf16(rounded_bf16(t.slope[r]) * rounded_bf16(position)) * job.scale
                              : t.slope[r] * position;
    }
  for (int64_t i = std::max<int64_t>(last + 1, 0); i < kBlock; ++i) s[i] = kNothing;
  for (int64_t i = 0; i < std::min(first, kBlock); ++i) s[i] = kNothing;
}

// The scores of a block are there: t.change becomes what the sums so far are worth now, and each row's weights
// e^(score - top) go to put(row, lane, weights), sixteen at a time.
template <class Exp, class Put>
void soften(const Job& job, Tile& t, int64_t start, Exp exp_of, Put put) {
  float difference[32] = {}, new_top[kQueryRows];
  for (int r = 0; r < t.rows; ++r) {
    finish_scores(job, t, r, start);
    const float* s = t.scores + r * kBlock;
    float top = largest_of(max(max(load(s), load(s + 16)), max(load(s + 32), load(s + 48))));
    new_top[r] = top > t.top[r] ? top : t.top[r];
    difference[r] = t.top[r] == kNothing ? kNothing : t.top[r] - new_top[r];
  }
  store(t.change, exp(load(difference)));
  store(t.change + kLanes, exp(load(difference + kLanes)));
  for (int r = 0; r < t.rows; ++r) {
    const float* s = t.scores + r * kBlock;
    // Nothing visible so far: every e^ below must be 0, and -inf - -inf would not be.
    V16 top = splat(new_top[r] == kNothing ? 0.0f : new_top[r]), sum = zero();
    for (int64_t i = 0; i < kBlock; i += kLanes) {
      V16 p = exp_of(load(s + i) - top);
      put(r, i, p);
      sum = sum + p;
    }
    float* total = t.totals + r * kLanes;
    store(total, fma(load(total), splat(t.change[r]), sum));
    t.top[r] = new_top[r];
  }
}

inline void start_partition(Tile& t, int64_t head) {
  std::fill(t.sums, t.sums + t.rows * head, 0.0f);
  std::fill(t.totals, t.totals + t.rows * kLanes, 0.0f);
  std::fill(t.top, t.top + 32, kNothing);
}

inline void merge_partition(Tile& t, int64_t head) {
  float before[32] = {}, now[32] = {};
  for (int r = 0; r < t.rows; ++r) {
    float top = t.top[r] > t.all_top[r] ? t.top[r] : t.all_top[r];
    before[r] = t.all_top[r] == kNothing ? kNothing : t.all_top[r] - top;
    now[r] = t.top[r] == kNothing ? kNothing : t.top[r] - top;
    t.all_top[r] = top;
  }
  for (int i = 0; i < 32; i += kLanes) {
    store(before + i, exp(load(before + i)));
    store(now + i, exp(load(now + i)));
  }
  for (int r = 0; r < t.rows; ++r) {
    t.all_total[r] = t.all_total[r] * before[r] + sum_of(load(t.totals + r * kLanes)) * now[r];
    V16 a = splat(before[r]), b = splat(now[r]);
    for (int64_t d = 0; d < head; d += kLanes) {
      float* result = t.result + r * head + d;
      store_part(result, load_part(result, head - d) * a + load_part(t.sums + r * head + d, head - d) * b, head - d);
    }
  }
}

}  // namespace paged
}  // namespace QUIRE_ISA
}  // namespace quire
