// What becomes of the rows of x before they meet packed weights: tiles of a few rows whose values lie side by side, in
// the precision of the product. Knows: rounding and order. Does not know: weights, threads.
//
// float32, bfloat16  values [k][rows of the tile] float
// bfloat16_dot       values [k / 2][rows] pairs of bfloat16
// int8, int4         with pairs: values [k / 2][rows] pairs of int16; one scale per row; int4: starts [group][rows]
//                    with bytes: values [k / 4][rows] four int8; scales and starts [group][rows]
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "packed.h"
#include "vec.h"

namespace quire {
namespace QUIRE_ISA {

// One product: y [rows, n] = x [rows, k] times panels, plus bias.
struct Job {
  const float* x;
  float* y;
  const char* weights;
  const float* bias;
  int64_t rows, n, k, format, x_stride, y_stride;
};

// Most rows of a tile: its sums stay in registers, with whole numbers beside them for integers.
constexpr int most_rows(bool integer) { return kHasManyRegisters ? (integer ? 4 : 8) : 6; }

struct Tiles {
  char* values;
  float* scales;
  int32_t* starts;  // what a group's sum begins with: it takes away what the offset of the weights adds up to
  int64_t padded;
  int64_t groups;
  int64_t count;
};

// Rows [from, from + rows).
struct Rows {
  int64_t from, rows;
};

// As even as can be.
inline Rows rows_of(const Job& job, const Tiles& t, int64_t tile) {
  int64_t base = job.rows / t.count, larger = job.rows % t.count;
  return {tile * base + std::min(tile, larger), base + (tile < larger ? 1 : 0)};
}

inline int64_t value_bytes(int64_t format) {
  if (is_integer(format)) return kHasByteDots ? 1 : 2;
  return format == kBfloat16Dot ? 2 : 4;
}
inline int64_t scales_per_row(int64_t format, int64_t groups) {
  return is_integer(format) ? (kHasByteDots ? groups : 1) : 0;
}
inline int64_t starts_per_row(int64_t format, int64_t groups) {
  return format == kInt4 || (kHasByteDots && format == kInt8) ? groups : 0;
}

inline Tiles place_tiles(char* memory, const Job& job) {
  Tiles t{};
  int64_t most = most_rows(is_integer(job.format));
  t.count = (job.rows + most - 1) / most;
  t.padded = padded_k(job.format, job.k);
  t.groups = is_integer(job.format) ? t.padded / kGroup : 0;
  t.values = memory;
  t.scales = reinterpret_cast<float*>(memory + job.rows * t.padded * value_bytes(job.format));
  t.starts = reinterpret_cast<int32_t*>(t.scales + job.rows * scales_per_row(job.format, t.groups));
  return t;
}

inline size_t tiles_bytes(const Job& job) {
  Tiles t = place_tiles(nullptr, job);
  int64_t words = scales_per_row(job.format, t.groups) + starts_per_row(job.format, t.groups);
  return size_t(job.rows * (t.padded * value_bytes(job.format) + words * 4)) + kLine;
}

// Where a tile's values of k begin.
template <class T>
T* values_of(const Job& job, const Tiles& t, Rows rows, int64_t k) {
  return reinterpret_cast<T*>(t.values + (rows.from * t.padded + k * rows.rows) * value_bytes(job.format));
}

inline void tile_of_floats(const Job& job, const Tiles& t, Rows rows) {
  float* out = values_of<float>(job, t, rows, 0);
  for (int64_t r = 0; r < rows.rows; ++r) {
    const float* x = job.x + (rows.from + r) * job.x_stride;
    for (int64_t i = 0; i < job.k; ++i) out[i * rows.rows + r] = x[i];
  }
}

// Words of a row go `rows` apart, so that those of a tile's rows lie side by side.
template <int N>
inline void spread(int32_t* out, const void* words, int64_t rows) {
  int32_t w[N];
  std::memcpy(w, words, sizeof w);
  for (int j = 0; j < N; ++j) out[j * rows] = w[j];
}

#if defined(__AVX512F__)
inline void tile_of_bf16(const Job& job, const Tiles& t, Rows rows) {
  const float* x = job.x + rows.from * job.x_stride;
  int32_t* out = values_of<int32_t>(job, t, rows, 0);
  int count = int(rows.rows);
  int64_t i = 0;
  W8 words[8] = {};
  for (; i + kLanes <= job.k; i += kLanes, out += kLanes / 2 * count) {
    for (int r = 0; r < count; ++r) words[r] = bf16_words(load(x + r * job.x_stride + i));
    store_columns(out, words, count, kLanes / 2);
  }
  if (i == t.padded) return;
  for (int r = 0; r < count; ++r) words[r] = bf16_words(load_part(x + r * job.x_stride + i, job.k - i));
  store_columns(out, words, count, int(t.padded - i) / 2);
}
#else
inline void tile_of_bf16(const Job& job, const Tiles& t, Rows rows) {
  for (int64_t r = 0; r < rows.rows; ++r) {
    const float* x = job.x + (rows.from + r) * job.x_stride;
    int32_t* out = values_of<int32_t>(job, t, rows, 0) + r;
    uint16_t bits[kLanes];
    int64_t i = 0;
    for (; i + kLanes <= job.k; i += kLanes) {
      store_bf16(bits, load(x + i));
      spread<kLanes / 2>(out + i / 2 * rows.rows, bits, rows.rows);
    }
    if (i < t.padded) {
      store_bf16(bits, load_part(x + i, job.k - i));
      int32_t w[kLanes / 2];
      std::memcpy(w, bits, sizeof w);
      for (int64_t j = 0; i + 2 * j < t.padded; ++j) out[(i / 2 + j) * rows.rows] = w[j];
    }
  }
}
#endif

// 0 where every value is finite, else NaN: a row with one that is not becomes NaN, as it does in floating point.
inline float nan_of(V16 differences) { return sum_of(differences) == 0.0f ? 0.0f : NAN; }

// 1 / step, or 0 for what is too small to divide by.
inline float inverse_of(float most, float steps) { return steps / most < INFINITY ? steps / most : 0.0f; }

inline void add_to_start(const Tiles& t, Rows rows, int64_t r, int64_t i, const int16_t* q) {
  int32_t sum = 0;
  for (int64_t j = 0; j < kLanes; ++j) sum += q[j];
  int32_t* start = t.starts + rows.from * t.groups + i / kGroup * rows.rows + r;
  *start = (i % kGroup ? *start : 0) - 8 * sum;
}

// Fifteen bits and a sign per value, one scale per row: products with eight-bit weights are exact in int32.
inline void tile_of_pairs(const Job& job, const Tiles& t, Rows rows) {
  for (int64_t r = 0; r < rows.rows; ++r) {
    const float* x = job.x + (rows.from + r) * job.x_stride;
    V16 largest = zero(), differences = zero();
    for (int64_t i = 0; i < job.k; i += kLanes) {
      V16 value = load_part(x + i, job.k - i);
      largest = max(abs(value), largest);
      differences = differences + (value - value);
    }
    float most = largest_of(largest), unusual = nan_of(differences);
    float inverse = unusual == 0.0f ? inverse_of(most, 32767.0f) : 0.0f;
    t.scales[rows.from + r] = most / 32767.0f + unusual;
    int32_t* out = values_of<int32_t>(job, t, rows, 0) + r;
    for (int64_t i = 0; i < t.padded; i += kLanes) {
      int16_t q[kLanes];
      store_i16(q, inverse > 0 ? to_int(load_part(x + i, job.k - i) * splat(inverse)) : izero());
      spread<kLanes / 2>(out + i / 2 * rows.rows, q, rows.rows);
      if (job.format == kInt4) add_to_start(t, rows, r, i, q);
    }
  }
}

#if defined(__AVX512VNNI__)
// Seven bits and a sign per value, one scale per group: as fine as the weights, so that a large value in one group
// costs the others nothing.
inline void tile_of_bytes(const Job& job, const Tiles& t, Rows rows) {
  const int32_t offset = job.format == kInt8 ? -128 : -8;
  for (int64_t r = 0; r < rows.rows; ++r) {
    const float* x = job.x + (rows.from + r) * job.x_stride;
    int32_t *out = values_of<int32_t>(job, t, rows, 0) + r, *starts = t.starts + rows.from * t.groups + r;
    float* scales = t.scales + rows.from * t.groups + r;
    V16 differences = zero();
    for (int64_t g = 0; g < t.groups; ++g) {
      int64_t i = g * kGroup;
      bool whole = i + kGroup <= job.k;
      V16 a = whole ? load(x + i) : load_part(x + i, job.k - i);
      V16 b = whole ? load(x + i + kLanes) : load_part(x + i + kLanes, job.k - i - kLanes);
      differences = differences + ((a - a) + (b - b));
      float most = largest_of(max(abs(a), abs(b)));
      V16 inverse = splat(inverse_of(most, 127.0f));
      I16 q = to_int(a * inverse), p = to_int(b * inverse);
      int8_t bytes[kGroup];
      store_i8(bytes, q);
      store_i8(bytes + kLanes, p);
      spread<kGroup / 4>(out + i / 4 * rows.rows, bytes, rows.rows);
      scales[g * rows.rows] = most / 127.0f;
      starts[g * rows.rows] = offset * sum_of(q + p);
    }
    if (nan_of(differences) == 0.0f) continue;
    for (int64_t g = 0; g < t.groups; ++g) scales[g * rows.rows] = NAN;
  }
}
#else
inline void tile_of_bytes(const Job&, const Tiles&, Rows) {}
#endif

inline void make_tile(const Job& job, const Tiles& t, int64_t tile) {
  Rows rows = rows_of(job, t, tile);
  if (is_integer(job.format))
    kHasByteDots ? tile_of_bytes(job, t, rows) : tile_of_pairs(job, t, rows);
  else
    job.format == kBfloat16Dot ? tile_of_bf16(job, t, rows) : tile_of_floats(job, t, rows);
}

}  // namespace QUIRE_ISA
}  // namespace quire
