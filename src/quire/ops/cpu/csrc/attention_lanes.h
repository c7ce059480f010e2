// Attention over pages of float32 or bfloat16 in float32 arithmetic: keys of sixteen positions are a line, and values of
// sixteen numbers of one position.
//
// Pages of a layer: K [P, K, D, S], transposed within the page, and V [P, K, S, D].
#pragma once

#include "attention.h"

namespace quire {
namespace QUIRE_ISA {
namespace paged {

struct Float32Page {
  using Type = float;
  static V16 get(const float* p) { return load(p); }
  static float one(float x) { return x; }
  static float from(float x) { return x; }
};
struct Bfloat16Page {
  using Type = uint16_t;
  static V16 get(const uint16_t* p) { return load_bf16(p); }
  static float one(uint16_t x) { return bf16_to_float(x); }
  static uint16_t from(float x) { return float_to_bf16(x); }
};

template <class Page>
struct Lanes {
  using T = typename Page::Type;

  static const T* at(const Pages& pages, const char* from, int64_t position) {
    return reinterpret_cast<const T*>(pages.at(from, position));
  }

  // K and V of one head of one token into its place `at` of a page.
  static void write(char* keys, char* values, int64_t at, int64_t size, int64_t head, const float* k, const float* v) {
    T *key = reinterpret_cast<T*>(keys) + at, *value = reinterpret_cast<T*>(values) + at * head;
    for (int64_t d = 0; d < head; ++d) {
      key[d * size] = Page::from(k[d]);
      value[d] = Page::from(v[d]);
    }
  }

  // Rows that share registers lie side by side: one address serves them all.
  static void set_query(const Job& job, Tile& t, int r, const float* q) {
    int first_row = r / kStep * kStep, side = std::min(kStep, t.rows - first_row);
    float* place = t.q + first_row * job.head + (r - first_row);
    for (int64_t d = 0; d < job.head; ++d) place[d * side] = q[d] * job.scale;
  }

  // scores[row][key] = q . k for some rows and sixteen keys, chained over d in order; line d of keys is keys + d stride.
  template <class Load>
  struct ScoreStep {
    Tile& t;
    int64_t head, line;
    Load keys_at;

    template <int R>
    void run(int first) const {
      const float* q = t.q + first * head;
      V16 sums[R];
      for (int r = 0; r < R; ++r) sums[r] = zero();
      for (int64_t d = 0; d < head; ++d) {
        V16 keys = keys_at(d);
        for (int r = 0; r < R; ++r) sums[r] = fma(splat(q[d * R + r]), keys, sums[r]);
      }
      for (int r = 0; r < R; ++r) store(t.scores + (first + r) * kBlock + line, sums[r]);
    }
  };
  template <class Load>
  static void score(Tile& t, int64_t head, int64_t line, Load keys_at) {
    each_step(t.rows, ScoreStep<Load>{t, head, line, keys_at});
  }

  static void scores(const Job& job, const Pages& pages, Tile& t, Block block) {
    int64_t head = job.head, size = pages.size;
    for (int64_t line = 0; line < kBlock; line += kLanes) {
      int64_t position = block.start + line;
      if (line >= block.known) {  // no page need be there
        for (int r = 0; r < t.rows; ++r) std::fill_n(t.scores + r * kBlock + line, kLanes, kNothing);
      } else if (size >= kLanes) {
        const T* page = at(pages, pages.keys, position) + position % size;
        score(t, head, line, [=](int64_t d) { return Page::get(page + d * size); });
      } else {
        for (int64_t i = 0; i < kLanes; ++i) {
          bool is_known = line + i < block.known;
          const T* page = is_known ? at(pages, pages.keys, position + i) + (position + i) % size : nullptr;
          for (int64_t d = 0; d < head; ++d) t.keys[d * kLanes + i] = page ? Page::one(page[d * size]) : 0.0f;
        }
        const float* gathered = t.keys;
        score(t, head, line, [=](int64_t d) { return load(gathered + d * kLanes); });
      }
    }
  }

  static void soften(const Job& job, Tile& t, int64_t start) {
    paged::soften(job, t, start, [](V16 x) { return exp(x); },
                  [&](int r, int64_t i, V16 p) { store(t.scores + r * kBlock + i, p); });
  }

  // sums[row][d..] = sums * change + weights[row] . v over keys [from, to) in order, for sixteen d.
  template <class Load>
  struct ValueStep {
    Tile& t;
    int64_t from, to, head, d;
    Load value_at;

    template <int R>
    void run(int first) const {
      // The sums stay in registers only if every loop over rows is unrolled; the compiler is told so.
      float* sums = t.sums + first * head;
      V16 acc[R];
      bool whole = d + kLanes <= head;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
        acc[r] = (whole ? load(sums + r * head + d) : load_part(sums + r * head + d, head - d)) *
                 splat(t.change[first + r]);
      const float* p = t.scores + first * kBlock + from;
      for (int64_t key = from; key < to; ++key, ++p) {
        V16 line = value_at(key, d);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) acc[r] = fma(splat(p[r * kBlock]), line, acc[r]);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        if (whole)
          store(sums + r * head + d, acc[r]);
        else
          store_part(sums + r * head + d, acc[r], head - d);
      }
    }
  };
  template <class Load>
  static void add_values(Tile& t, Block block, int64_t head, Load value_at) {
    for (int64_t d = 0; d < head; d += kLanes)
      each_step(t.rows, ValueStep<Load>{t, block.skipped, block.known, head, d, value_at});
  }

  // What lies before the window is not read, though its weight would be 0.
  static void values(const Job& job, const Pages& pages, Tile& t, Block block) {
    int64_t head = job.head, size = pages.size;
    const T* rows[kBlock];
    for (int64_t i = block.skipped; i < block.known; ++i)
      rows[i] = at(pages, pages.values, block.start + i) + (block.start + i) % size * head;
    if (head % kLanes == 0)
      return add_values(t, block, head, [&](int64_t key, int64_t d) { return Page::get(rows[key] + d); });
    add_values(t, block, head, [&](int64_t key, int64_t d) {
      float line[kLanes] = {};
      for (int64_t i = 0; i < std::min<int64_t>(kLanes, head - d); ++i) line[i] = Page::one(rows[key][d + i]);
      return load(line);
    });
  }
};

}  // namespace paged
}  // namespace QUIRE_ISA
}  // namespace quire
