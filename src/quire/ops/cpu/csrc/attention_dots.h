// Attention over pages of bfloat16 by dot products of pairs, twice as fast as in float32: queries and weights are rounded
// to bfloat16 too, sums are float32. For processors that have the instruction and heads that are whole lines.
//
// Pages of a layer: K [P, K, D / 2, S, 2], a line is two numbers of sixteen keys, then V [P, K, S / 2, D, 2], a line is
// sixteen numbers of two keys.
#pragma once

#include "attention_tile.h"

#if defined(__AVX512BF16__)
namespace quire {
namespace QUIRE_ISA {

struct PairPage {
  using Type = uint16_t;
  static constexpr int64_t kNumbersAcross = 2;
  static constexpr bool kScaled = false;
};

// K and V of one head of the token `at` into their pages.
inline void write_heads(PairPage, const float* k, const float* v, int64_t head, char* keys, char* values, int64_t size,
                        int64_t at) {
  uint16_t k_bits[kLanes], *value = reinterpret_cast<uint16_t*>(values) + at / 2 * head * 2 + at % 2;
  for (int64_t d = 0; d < head; d += kLanes) {
    store_words(k_bits, bf16_words(load(k + d)));
    for (int64_t i = 0; i < kLanes; i += 2) std::memcpy(keys + 4 * (at + (d + i) / 2 * size), k_bits + i, 4);
    store_every_other(value + 2 * d, bf16_words(load(v + d)));
  }
}

// The rows' queries: pairs of the rows that share registers lie side by side.
inline void place_queries(PairPage, const Job& job, const float* const* q, Tile& t) {
  static_assert(kRegisterRows <= 8, "rows that share registers are transposed at once");
  int32_t* place = reinterpret_cast<int32_t*>(t.q);
  V16 scale = splat(job.scale);
  for (int r = 0; r < t.rows; r += kRegisterRows) {
    int side = std::min(kRegisterRows, t.rows - r);
    W8 words[8] = {};
    for (int64_t d = 0; d < t.head; d += kLanes, place += kLanes / 2 * side) {
      for (int i = 0; i < side; ++i) words[i] = bf16_words(load(q[r + i] + d) * scale);
      store_columns(place, words, side, kLanes / 2);
    }
  }
}

// scores[row][key] = q . k for R rows and L lines of keys; line l's pair i of d is at keys[l] + i * stride.
template <int R, int L, class Next>
void score_pairs(const int32_t* q, int64_t pairs, const uint16_t* const* keys, int64_t stride, float* scores,
                 Next& next) {
  // Unrolled for the reason that score_tile gives.
  V16 sums[R][L];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int l = 0; l < L; ++l) sums[r][l] = zero();
  for (int64_t i = 0; i < pairs; ++i, q += R) {
    next.key();
    P32 lines[L];
#pragma GCC unroll 8
    for (int l = 0; l < L; ++l) lines[l] = load_bf16_line(keys[l] + i * stride);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int l = 0; l < L; ++l) sums[r][l] = dot_bf16(sums[r][l], lines[l], q[r]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int l = 0; l < L; ++l) store(scores + r * kBlock + l * kLanes, sums[r][l]);
}

template <class Next, int L = kBlockLines>
void score_pair_lines(Tile& t, int lines, const uint16_t* const* keys, int64_t stride, Next& next) {
  if (lines != L) {
    if constexpr (L > 1) score_pair_lines<Next, L - 1>(t, lines, keys, stride, next);
    return;
  }
  for (int r = 0; r < t.rows; r += kRegisterRows)
    as_constant(t.rows - r, [&](auto rows) {
      const int32_t* q = reinterpret_cast<const int32_t*>(t.q) + r * (t.head / 2);
      score_pairs<rows.value, L>(q, t.head / 2, keys, stride, t.scores + r * kBlock, next);
    });
}

// A line of keys of pages smaller than a line, put together; zeros where no key is.
inline const uint16_t* gathered_pairs(const RowPages<PairPage>& pages, int64_t start, int64_t known, int line, Tile& t) {
  int64_t pairs = t.head / 2;
  uint32_t* words = reinterpret_cast<uint32_t*>(t.keys) + line * pairs * kLanes;
  for (int64_t i = 0; i < kLanes; ++i) {
    int64_t key = line * kLanes + i, position = start + key;
    const uint16_t* page = key < known ? pages.at(position / pages.size) + position % pages.size * 2 : nullptr;
    for (int64_t pair = 0; pair < pairs; ++pair) {
      uint32_t word = 0;
      if (page) std::memcpy(&word, page + pair * pages.size * 2, 4);
      words[pair * kLanes + i] = word;
    }
  }
  return reinterpret_cast<const uint16_t*>(words);
}

template <class Next>
void score_pairs_of(const RowPages<PairPage>& pages, int64_t start, int64_t known, Next& next, Tile& t) {
  const uint16_t* keys[kBlockLines];
  int lines = int((known + kLanes - 1) / kLanes);
  for (int l = 0; l < lines; ++l) {
    int64_t position = start + l * kLanes;
    keys[l] = pages.size >= kLanes ? pages.at(position / pages.size) + position % pages.size * 2
                                   : gathered_pairs(pages, start, known, l, t);
  }
  score_pair_lines(t, lines, keys, 2 * std::max<int64_t>(pages.size, kLanes), next);
}

// Weights in bfloat16, by an exponential that is as good as they are.
struct PairWeights {
  static constexpr float kLog2OfE = 1.44269504f;
  static V16 base_of(V16 top) { return top * splat(-kLog2OfE); }
  // e^(score - top) for score <= top to about 2^-18; 0 far below; NaN stays NaN. The product with log2(e) is not rounded
  // before the base is taken off, and what the base itself was rounded by is the same for all keys of the block.
  static V16 weight_of(V16 score, V16 base) {
    V16 y = max(splat(-300.0f), fma(score, splat(kLog2OfE), base)), n = round_even(y), r = y - n;
    // 2^r on [-1/2, 1/2], a polynomial fitted for the least largest relative error.
    V16 p = fma(splat(0.00958277f), r, splat(0.05590623f));
    p = fma(p, r, splat(0.24024099f));
    p = fma(p, r, splat(0.69312422f));
    return scale_by_power(fma(p, r, splat(1.0f)), n);
  }
  static void put(Tile& t, int r, int64_t key, V16 weights, V16 following) {
    store_bf16_line(t.weights + r * kBlock + key, weights, following);
  }
};

// Two keys of which only some may be read: the others count as 0.
inline P32 masked_pair(P32 line, bool first, bool second) {
  int mask = (first ? 0xffff : 0) | (second ? int(0xffff0000u) : 0);
  return {_mm512_and_si512(line.v, _mm512_set1_epi32(mask))};
}

// Keys [from, known) of a block, whose pair i lies at at[i].
struct ValuePairs {
  const uint16_t* at[kBlock / 2];
  int64_t from, known;
};

// sums[row][d..] = sums * change + weights[row] . v over the keys in order, for R rows and L lines of d.
template <int R, int L, class Next>
void add_value_pairs(const Tile& t, const ValuePairs& values, int first, int64_t d, float* sums, Next& next) {
  V16 acc[R][L];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int l = 0; l < L; ++l) acc[r][l] = load(sums + r * t.wide + l * kLanes) * splat(t.change[first + r]);
  const uint16_t* weights = t.weights + first * kBlock;
  auto add = [&](int64_t pair, bool even, bool odd) {
    next.value();
    P32 lines[L];
#pragma GCC unroll 8
    for (int l = 0; l < L; ++l) {
      lines[l] = load_bf16_line(values.at[pair] + 2 * (d + l * kLanes));
      if (!even || !odd) lines[l] = masked_pair(lines[l], even, odd);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      int32_t weight;
      std::memcpy(&weight, weights + r * kBlock + 2 * pair, 4);
#pragma GCC unroll 8
      for (int l = 0; l < L; ++l) acc[r][l] = dot_bf16(acc[r][l], lines[l], weight);
    }
  };
  int64_t pair = values.from / 2, whole = values.known / 2;
  if (values.from % 2) add(pair++, false, true);
  for (; pair < whole; ++pair) add(pair, true, true);
  if (values.known % 2 && pair == whole) add(pair, true, false);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int l = 0; l < L; ++l) store(sums + r * t.wide + l * kLanes, acc[r][l]);
}

template <class Next>
void weigh_pairs(const RowPages<PairPage>& pages, int64_t start, int64_t from, int64_t known, Next& next, Tile& t) {
  ValuePairs values{{}, from, known};
  for (int64_t i = from / 2; 2 * i < known;) {
    int64_t position = start + 2 * i, offset = position % pages.size;
    const uint16_t* at = pages.at(position / pages.size) + offset * t.head;
    int64_t stop = std::min(known, 2 * i + pages.size - offset);  // pages hold whole pairs
    for (; 2 * i < stop; ++i, at += 2 * t.head) values.at[i] = at;
  }
  for (int r = 0; r < t.rows; r += kRegisterRows)
    as_constant(t.rows - r, [&](auto rows) {
      float* sums = t.sums + r * t.wide;
      int64_t d = 0;
      for (; d + 4 * kLanes <= t.head; d += 4 * kLanes) add_value_pairs<rows.value, 4>(t, values, r, d, sums + d, next);
      for (; d < t.head; d += kLanes) add_value_pairs<rows.value, 1>(t, values, r, d, sums + d, next);
    });
}

}  // namespace QUIRE_ISA
}  // namespace quire
#endif
