// Attention over pages of bfloat16 by dot products of pairs, twice as fast as in float32: queries and weights are rounded
// to bfloat16 too, sums are float32. For processors that have the instruction and head sizes that are whole lines.
//
// Pages of a layer: K [P, K, D / 2, S, 2], a line is two numbers of sixteen keys, and V [P, K, S / 2, D, 2], a line is
// sixteen numbers of two keys.
#pragma once

#include "attention.h"

#if defined(__AVX512BF16__)
namespace quire {
namespace QUIRE_ISA {
namespace paged {

struct Dots {
  static constexpr int kLines = kBlock / kLanes;  // lines that a step of rows takes at once

  static void write(char* keys, char* values, int64_t at, int64_t size, int64_t head, const float* k, const float* v) {
    uint32_t* key = reinterpret_cast<uint32_t*>(keys) + at;
    uint16_t* value = reinterpret_cast<uint16_t*>(values) + at / 2 * head * 2 + at % 2;
    uint16_t k_bits[kLanes], v_bits[kLanes];
    for (int64_t d = 0; d < head; d += kLanes) {
      store_bf16(k_bits, load(k + d));
      store_bf16(v_bits, load(v + d));
      for (int64_t i = 0; i < kLanes; i += 2) std::memcpy(key + (d + i) / 2 * size, k_bits + i, 4);
      for (int64_t i = 0; i < kLanes; ++i) value[2 * (d + i)] = v_bits[i];
    }
  }

  // Pairs of the rows that share registers lie side by side.
  static void set_query(const Job& job, Tile& t, int r, const float* q) {
    int first_row = r / kStep * kStep, side = std::min(kStep, t.rows - first_row);
    int32_t* place = reinterpret_cast<int32_t*>(t.q) + first_row * (job.head / 2) + (r - first_row);
    uint16_t bits[kLanes];
    for (int64_t d = 0; d < job.head; d += kLanes) {
      store_bf16(bits, load(q + d) * splat(job.scale));
      for (int64_t i = 0; i < kLanes; i += 2) std::memcpy(place + (d + i) / 2 * side, bits + i, 4);
    }
  }

  // scores[row][key] = q . k for some rows and L lines of keys; line l's pair i of d is at keys[l] + i * stride.
  template <int L>
  struct ScoreStep {
    Tile& t;
    int64_t pairs, stride;
    const uint16_t* const* keys;

    template <int R>
    void run(int first) const {
      const int32_t* q = reinterpret_cast<const int32_t*>(t.q) + first * pairs;
      V16 sums[R][L];
      for (int r = 0; r < R; ++r)
        for (int l = 0; l < L; ++l) sums[r][l] = zero();
      for (int64_t i = 0; i < pairs; ++i, q += R) {
        P32 lines[L];
        for (int l = 0; l < L; ++l) lines[l] = load_bf16_line(keys[l] + i * stride);
        for (int r = 0; r < R; ++r)
          for (int l = 0; l < L; ++l) sums[r][l] = dot_bf16(sums[r][l], lines[l], q[r]);
      }
      for (int r = 0; r < R; ++r)
        for (int l = 0; l < L; ++l) store(t.scores + (first + r) * kBlock + l * kLanes, sums[r][l]);
    }
  };

  template <int L = kLines>
  static void score(Tile& t, int lines, int64_t pairs, int64_t stride, const uint16_t* const* keys) {
    if (lines == L) return each_step(t.rows, ScoreStep<L>{t, pairs, stride, keys});
    if constexpr (L > 1) score<L - 1>(t, lines, pairs, stride, keys);
  }

  // Lines of pages smaller than a line, put together; zeros where no key is.
  static const uint16_t* gathered(const Pages& pages, Tile& t, Block block, int l, int64_t pairs) {
    uint32_t* lines = reinterpret_cast<uint32_t*>(t.keys) + l * pairs * kLanes;
    for (int64_t i = 0; i < kLanes; ++i) {
      int64_t key = l * kLanes + i, position = block.start + key;
      const char* page = key < block.known ? pages.at(pages.keys, position) + position % pages.size * 4 : nullptr;
      for (int64_t pair = 0; pair < pairs; ++pair) {
        uint32_t word = 0;
        if (page) std::memcpy(&word, page + pair * pages.size * 4, 4);
        lines[pair * kLanes + i] = word;
      }
    }
    return reinterpret_cast<const uint16_t*>(lines);
  }

  static void scores(const Job& job, const Pages& pages, Tile& t, Block block) {
    const uint16_t* keys[kLines];
    int64_t pairs = job.head / 2, size = pages.size;
    int lines = int((block.known + kLanes - 1) / kLanes);
    for (int l = 0; l < lines; ++l) {
      int64_t position = block.start + l * kLanes;
      keys[l] = size >= kLanes ? reinterpret_cast<const uint16_t*>(pages.at(pages.keys, position)) + position % size * 2
                               : gathered(pages, t, block, l, pairs);
    }
    score(t, lines, pairs, 2 * std::max<int64_t>(size, kLanes), keys);
    for (int64_t i = lines * kLanes; i < kBlock; i += kLanes)  // no page need be there
      for (int r = 0; r < t.rows; ++r) store(t.scores + r * kBlock + i, splat(kNothing));
  }

  // e^x for x <= 0 to about 2^-18, which rounding to bfloat16 hides; 0 far below; NaN stays NaN.
  static V16 coarse_exp(V16 x) {
    V16 y = max(splat(-200.0f), x) * splat(1.44269504f), n = round_even(y), r = y - n;
    // 2^r on [-1/2, 1/2], a polynomial fitted for the least largest relative error.
    V16 p = fma(splat(0.00958277f), r, splat(0.05590623f));
    p = fma(p, r, splat(0.24024099f));
    p = fma(p, r, splat(0.69312422f));
    return scale_by_power(fma(p, r, splat(1.0f)), n);
  }

  static void soften(const Job& job, Tile& t, int64_t start) {
    paged::soften(job, t, start, coarse_exp,
                  [&](int r, int64_t i, V16 p) { store_bf16(t.weights + r * kBlock + i, p); });
  }

  // Two keys of which only some may be read: the others count as 0.
  static P32 masked(P32 line, bool first, bool second) {
    int mask = (first ? 0xffff : 0) | (second ? int(0xffff0000u) : 0);
    return {_mm512_and_si512(line.v, _mm512_set1_epi32(mask))};
  }

  // sums[row][d..] = sums * change + weights[row] . v over the block's keys in order, for L lines of d.
  template <int L>
  struct ValueStep {
    Tile& t;
    Block block;
    int64_t head, d;
    const uint16_t* const* pairs;  // of keys

    template <int R>
    void run(int first) const {
      float* sums = t.sums + first * head + d;
      V16 acc[R][L];
      for (int r = 0; r < R; ++r)
        for (int l = 0; l < L; ++l) acc[r][l] = load(sums + r * head + l * kLanes) * splat(t.change[first + r]);
      const uint16_t* w = t.weights + first * kBlock;
      auto add = [&](int64_t pair, bool even, bool odd) {
        P32 lines[L];
        for (int l = 0; l < L; ++l) {
          lines[l] = load_bf16_line(pairs[pair] + 2 * (d + l * kLanes));
          if (!even || !odd) lines[l] = masked(lines[l], even, odd);
        }
        for (int r = 0; r < R; ++r) {
          int32_t weight;
          std::memcpy(&weight, w + r * kBlock + 2 * pair, 4);
          for (int l = 0; l < L; ++l) acc[r][l] = dot_bf16(acc[r][l], lines[l], weight);
        }
      };
      int64_t from = block.skipped / 2, to = block.known / 2;
      if (block.skipped % 2) add(from++, false, block.known > block.skipped);
      for (int64_t pair = from; pair < to; ++pair) add(pair, true, true);
      if (block.known % 2 && from <= to) add(to, true, false);
      for (int r = 0; r < R; ++r)
        for (int l = 0; l < L; ++l) store(sums + r * head + l * kLanes, acc[r][l]);
    }
  };

  static void values(const Job& job, const Pages& pages, Tile& t, Block block) {
    const uint16_t* pairs[kBlock / 2];
    int64_t head = job.head, d = 0;
    for (int64_t i = block.skipped / 2; 2 * i < block.known; ++i) {
      int64_t position = block.start + 2 * i;
      const char* page = pages.at(pages.values, position);
      pairs[i] = reinterpret_cast<const uint16_t*>(page) + position % pages.size * head;
    }
    for (; d + 4 * kLanes <= head; d += 4 * kLanes) each_step(t.rows, ValueStep<4>{t, block, head, d, pairs});
    for (; d < head; d += kLanes) each_step(t.rows, ValueStep<1>{t, block, head, d, pairs});
  }
};

}  // namespace paged
}  // namespace QUIRE_ISA
}  // namespace quire
#endif
