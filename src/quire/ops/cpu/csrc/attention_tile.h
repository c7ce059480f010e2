// The arithmetic of one attention tile: some rows of queries against blocks of 64 keys.
// Knows: registers, scores, softmax, sums. Does not know: requests, threads, what a page is.
//
// A row is a query of one head. Every sum runs over d or over keys in one chain and in order, so how many rows or lines
// share registers changes no bit. Softmax is online (Milakov & Gimelshein, 2018) within a partition of keys; partitions
// are merged in order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "attention_pages.h"

namespace quire {
namespace QUIRE_ISA {

constexpr int64_t kBlock = 64;
constexpr int kBlockLines = kBlock / kLanes;
constexpr int kTileRows = 48;
constexpr int kRegisterRows = 6;  // most rows that share what is loaded
constexpr int64_t kMaxHead = 256;
constexpr float kNothing = -std::numeric_limits<float>::infinity();
static_assert(kTileRows % kLanes == 0 && kTileRows % kRegisterRows == 0, "whole lines and whole register tiles");

// Lines that so many rows take at once: their sums, the lines and one number of each row must fit the registers, and
// eight chains are needed to fill two multipliers that take four cycles.
// Numbers that must be widened take registers of their own.
template <class Page>
constexpr int lines_at_once([[maybe_unused]] int rows) {
#if defined(__AVX512F__)
  return 4;
#else
  return rows == 1 ? 4 : rows == 2 || (rows == 3 && sizeof(typename Page::Type) == 4) ? 2 : 1;
#endif
}

// Scratch of one tile. Rows of q that share registers lie side by side; sums and results have `wide` numbers a row.
struct Tile {
  alignas(64) float q[kTileRows * kMaxHead];       // scaled
  float sums[kTileRows * kMaxHead];    // of the partition
  float result[kTileRows * kMaxHead];  // of the partitions so far
  float scores[kTileRows * kBlock];
  uint16_t weights[kTileRows * kBlock];  // of pages of pairs, in bfloat16
  float key_scales[kBlock], value_scales[kBlock];  // of a block in int8 pages
  float keys[kBlock * kMaxHead], values[kBlock * kMaxHead];  // of a block, where pages cannot be read as they are
  float totals[kTileRows * kLanes];  // of the partition, by lane
  float top[kTileRows], total[kTileRows], change[kTileRows], all_top[kTileRows], all_total[kTileRows];
  int64_t position[kTileRows];  // of the last key a row sees, ascending
  float slope[kTileRows];
  int rows;
  int64_t head, wide;  // wide: head in whole lines
};

// Calls `with` with the number of rows, at most kRegisterRows, as a constant. By reference: a copy is read in one piece
// right after it was written in several, for which the processor waits.
template <class Function>
void as_constant(int rows, const Function& with) {
  switch (rows) {
    case 1: return with(std::integral_constant<int, 1>());
    case 2: return with(std::integral_constant<int, 2>());
    case 3: return with(std::integral_constant<int, 3>());
    case 4: return with(std::integral_constant<int, 4>());
    case 5: return with(std::integral_constant<int, 5>());
    default: return with(std::integral_constant<int, kRegisterRows>());
  }
}

// Sixteen keys each: the number at d of line i is at at[i] + d * stride. All four can be read.
template <class Page>
struct KeyLines {
  const typename Page::Type* at[kBlockLines];
  int64_t stride;
};

// scores[row][key] = q . k for R rows and L lines of keys.
template <class Page, int R, int L, class Next>
void score_tile(const float* q, int64_t head, const KeyLines<Page>& keys, int first, float* scores, Next& next) {
  // The sums stay in registers only if every loop over them is unrolled; the compiler is told so.
  V16 sums[R][L];
  const typename Page::Type* at[L];
#pragma GCC unroll 8
  for (int l = 0; l < L; ++l) {
    at[l] = keys.at[first + l];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sums[r][l] = zero();
  }
  int64_t stride = keys.stride;
  for (int64_t d = 0; d < head; ++d, q += R) {
    next.key();
    V16 lines[L];
#pragma GCC unroll 8
    for (int l = 0; l < L; ++l) lines[l] = Page::get(at[l] + d * stride);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      V16 x = splat(q[r]);
#pragma GCC unroll 8
      for (int l = 0; l < L; ++l) sums[r][l] = fma(x, lines[l], sums[r][l]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int l = 0; l < L; ++l) store(scores + r * kBlock + (first + l) * kLanes, sums[r][l]);
}

// Scores of all rows against the first `count` lines; of three the fourth is computed too.
template <class Page, class Next>
void score_block(Tile& t, const KeyLines<Page>& keys, int count, Next& next) {
  for (int r = 0; r < t.rows; r += kRegisterRows) {
    as_constant(t.rows - r, [&](auto rows) {
      constexpr int R = rows.value, most = lines_at_once<Page>(R);
      const float* q = t.q + r * t.head;
      float* scores = t.scores + r * kBlock;
      int line = 0;
      if constexpr (most == 4)
        for (; line + 2 < count; line += 4) score_tile<Page, R, 4>(q, t.head, keys, line, scores, next);
      if constexpr (most >= 2)
        for (; line + 1 < count; line += 2) score_tile<Page, R, 2>(q, t.head, keys, line, scores, next);
      for (; line < count; ++line) score_tile<Page, R, 1>(q, t.head, keys, line, scores, next);
    });
  }
}

// sums[row][d..] = sums * change + weight[row] . v over `count` keys, for R rows and L lines of d.
template <class Page, int R, int L, class Next>
void value_tile(const float* weights, const float* change, const typename Page::Type* const* values, int64_t count,
                int64_t d, float* sums, int64_t wide, Next& next) {
  V16 acc[R][L];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int l = 0; l < L; ++l) acc[r][l] = load(sums + r * wide + d + l * kLanes) * splat(change[r]);
  for (int64_t key = 0; key < count; ++key, ++weights) {
    next.value();
    const typename Page::Type* value = values[key] + d;
    V16 lines[L];
#pragma GCC unroll 8
    for (int l = 0; l < L; ++l) lines[l] = Page::get(value + l * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      V16 x = splat(weights[r * kBlock]);
#pragma GCC unroll 8
      for (int l = 0; l < L; ++l) acc[r][l] = fma(x, lines[l], acc[r][l]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int l = 0; l < L; ++l) store(sums + r * wide + d + l * kLanes, acc[r][l]);
}

// Adds the values of a block's keys [from, to), each `wide` numbers, by the weights that softmax_block left.
template <class Page, class Next>
void add_values(Tile& t, const typename Page::Type* const* values, int64_t from, int64_t to, Next& next) {
  for (int r = 0; r < t.rows; r += kRegisterRows) {
    as_constant(t.rows - r, [&](auto rows) {
      constexpr int R = rows.value, most = lines_at_once<Page>(R);
      const float *weights = t.scores + r * kBlock + from, *change = t.change + r;
      float* sums = t.sums + r * t.wide;
      int64_t count = to - from, d = 0;
      const typename Page::Type* const* first = values + from;
      if constexpr (most == 4)
        for (; d + 4 * kLanes <= t.wide; d += 4 * kLanes)
          value_tile<Page, R, 4>(weights, change, first, count, d, sums, t.wide, next);
      if constexpr (most >= 2)
        for (; d + 2 * kLanes <= t.wide; d += 2 * kLanes)
          value_tile<Page, R, 2>(weights, change, first, count, d, sums, t.wide, next);
      for (; d < t.wide; d += kLanes) value_tile<Page, R, 1>(weights, change, first, count, d, sums, t.wide, next);
    });
  }
}

// Multiplies every row's scores by the scales of the block's keys or values.
inline void scale_scores(Tile& t, const float* scales) {
  for (int64_t i = 0; i < kBlock; i += kLanes)
    for (int r = 0; r < t.rows; ++r) {
      float* place = t.scores + r * kBlock + i;
      store(place, load(place) * load(scales + i));
    }
}

inline V16 rounded_bf16(V16 x) {
  uint16_t bits[kLanes];
  store_bf16(bits, x);
  return load_bf16(bits);
}

inline V16 counted_from(float first) {
  static const float kCount[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return splat(first) + load(kCount);
}

// What ALiBi adds to a line of scores.
inline V16 alibi_line(const Job& job, float slope, V16 position) {
  if (!job.alibi_first) return splat(slope) * position;
  return rounded_bf16(rounded_bf16(splat(slope)) * rounded_bf16(position)) * splat(job.scale);
}

// Cap and bias of a block of scores that begins at position `start`, and nothing where a row must not look.
inline void adjust_scores(const Job& job, Tile& t, int64_t start) {
  int64_t lowest = t.position[0], highest = t.position[t.rows - 1];
  bool whole = start + kBlock - 1 <= lowest && (!job.window || start > highest - job.window);
  if (whole && job.softcap <= 0 && !job.slopes) return;
  V16 cap = splat(job.softcap), nothing = splat(kNothing);
  for (int r = 0; r < t.rows; ++r) {
    // Keys a row sees, counted from the block's first; clamped, so that a float holds them.
    int64_t last = std::min(t.position[r] - start, kBlock);
    int64_t first = job.window ? t.position[r] - job.window + 1 - start : 0;
    V16 first_line = splat(float(std::clamp<int64_t>(first, 0, kBlock)));
    V16 last_line = splat(float(std::max<int64_t>(last, -1)));
    for (int64_t i = 0; i < kBlock; i += kLanes) {
      float* place = t.scores + r * kBlock + i;
      V16 s = load(place), key = counted_from(float(i));
      if (job.softcap > 0) s = cap * tanh(s / cap);
      if (job.slopes) s = s + alibi_line(job, t.slope[r], counted_from(float(start + i)));
      if (!whole) s = where_greater(key, last_line, nothing, where_greater(first_line, key, nothing, s));
      store(place, s);
    }
  }
}

// Weights in the place of their scores.
struct FloatWeights {
  // The top of a row as weight_of takes it off.
  static V16 base_of(V16 top) { return top; }
  static V16 weight_of(V16 score, V16 base) { return exp(score - base); }
  static void put(Tile& t, int r, int64_t key, V16 weights, V16 following) {
    float* place = t.scores + r * kBlock + key;
    store(place, weights);
    store(place + kLanes, following);
  }
};

// Turns the scores of a block that begins at position `start` into weights e^(score - top).
template <class Weights>
void softmax_block(const Job& job, Tile& t, int64_t start) {
  adjust_scores(job, t, start);
  float base[kTileRows] = {};
  for (int r = 0; r < t.rows; ++r) {
    const float* s = t.scores + r * kBlock;
    base[r] = largest_of(max(max(load(s), load(s + 16)), max(load(s + 32), load(s + 48))));
  }
  V16 nothing = splat(kNothing);
  for (int r = 0; r < t.rows; r += kLanes) {
    V16 before = load(t.top + r), found = load(base + r), top = where_greater(found, before, found, before);
    store(t.top + r, top);
    // Nothing visible so far: every e^ below must be 0, and -inf - -inf would not be.
    store(base + r, Weights::base_of(where_greater(top, nothing, top, zero())));
    store(t.change + r, exp(where_greater(before, nothing, before - top, nothing)));
  }
  for (int r = 0; r < t.rows; ++r) {
    const float* s = t.scores + r * kBlock;
    float* totals = t.totals + r * kLanes;
    V16 of = splat(base[r]);
    V16 a = Weights::weight_of(load(s), of), b = Weights::weight_of(load(s + 16), of);
    V16 c = Weights::weight_of(load(s + 32), of), d = Weights::weight_of(load(s + 48), of);
    Weights::put(t, r, 0, a, b);
    Weights::put(t, r, 32, c, d);
    store(totals, load(totals) * splat(t.change[r]) + ((a + b) + (c + d)));
  }
}

inline void start_tile(Tile& t) {
  std::fill_n(t.result, t.rows * t.wide, 0.0f);
  std::fill_n(t.all_top, kTileRows, kNothing);
  std::fill_n(t.all_total, kTileRows, 0.0f);
}

inline void start_partition(Tile& t) {
  std::fill_n(t.sums, t.rows * t.wide, 0.0f);
  std::fill_n(t.totals, t.rows * kLanes, 0.0f);
  std::fill_n(t.top, kTileRows, kNothing);
  std::fill_n(t.change, kTileRows, 0.0f);
}

inline void end_partition(Tile& t) {
  for (int r = 0; r < t.rows; ++r) t.total[r] = sum_of(load(t.totals + r * kLanes));
}

// What a partition came to: per row the weighted sum of values, the largest score and the sum of weights.
struct Partial {
  const float *sums, *top, *total;
};

// Adds a partition to the result; partitions come in order.
inline void merge(Tile& t, Partial part) {
  float before[kTileRows] = {}, now[kTileRows] = {};
  for (int r = 0; r < t.rows; ++r) {
    float top = part.top[r] > t.all_top[r] ? part.top[r] : t.all_top[r];
    before[r] = t.all_top[r] == kNothing ? kNothing : t.all_top[r] - top;
    now[r] = part.top[r] == kNothing ? kNothing : part.top[r] - top;
    t.all_top[r] = top;
  }
  for (int r = 0; r < t.rows; r += kLanes) {
    store(before + r, exp(load(before + r)));
    store(now + r, exp(load(now + r)));
  }
  for (int r = 0; r < t.rows; ++r) {
    t.all_total[r] = t.all_total[r] * before[r] + part.total[r] * now[r];
    V16 a = splat(before[r]), b = splat(now[r]);
    for (int64_t d = r * t.wide; d < (r + 1) * t.wide; d += kLanes)
      store(t.result + d, load(t.result + d) * a + load(part.sums + d) * b);
  }
}

}  // namespace QUIRE_ISA
}  // namespace quire
