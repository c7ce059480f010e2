// Operations on each row by itself: norms, rotary positions, activations, table lookups, the largest logit.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels.h"
#include "packed.h"
#include "vec.h"

namespace quire {
namespace QUIRE_ISA {
namespace {

const float* input(const Op& op, int at) { return static_cast<const float*>(op.p[at]); }
float* output(const Op& op, int at) { return static_cast<float*>(op.p[at]); }

// Rows come in groups (the heads of a token): row r begins at base + r / group * stride + r % group * inner.
struct Rows {
  int64_t group, stride, inner;
  int64_t at(int64_t row) const { return row / group * stride + row % group * inner; }
};

// Calls work(i, count) for lines of n numbers; all but the last are known to be whole.
template <class Work>
void each_line(int64_t n, Work work) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) work(i, int64_t(kLanes));
  if (i < n) work(i, n - i);
}

// The sum of term(i, count) over the lines of n numbers, in four chains: one would wait for every addition.
template <class Term>
float sum_of_lines(int64_t n, Term term) {
  V16 sums[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int j = 0; j < 4; ++j) sums[j] = sums[j] + term(i + j * kLanes, int64_t(kLanes));
  for (int j = 0; i < n; i += kLanes, ++j) sums[j] = sums[j] + term(i, n - i);
  return sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

enum Kind : int64_t { kSilu, kRelu, kGelu, kGeluTanh, kGeluQuick };

// erf by Abramowitz and Stegun 7.1.26 is too coarse for float32; libm's is exact and only a few old models need it.
V16 gelu(V16 x) {
  float lanes[kLanes];
  store(lanes, x);
  for (float& v : lanes) v = 0.5f * v * (1.0f + std::erf(v * 0.70710678118654752f));
  return load(lanes);
}

V16 sigmoid(V16 x) { return splat(1.0f) / (splat(1.0f) + exp(zero() - x)); }

// Calls `with` with the function of that kind.
template <class With>
void with_activation(int64_t kind, With with) {
  switch (kind) {
    case kSilu:
      return with([](V16 x) { return x * sigmoid(x); });
    case kRelu:
      return with([](V16 x) { return max(zero(), x); });
    case kGelu:
      return with([](V16 x) { return gelu(x); });
    case kGeluTanh:
      return with([](V16 x) {
        V16 inner = splat(0.79788456080286536f) * fma(splat(0.044715f) * x * x, x, x);
        return splat(0.5f) * x * (splat(1.0f) + tanh(inner));
      });
    default:
      return with([](V16 x) { return x * sigmoid(splat(1.702f) * x); });
  }
}

// The weight of a panel's column at k, of `size` k values.
float packed_value(const char* panel, int64_t format, int64_t size, int64_t column, int64_t k) {
  auto as_bf16 = [](const char* from, int64_t at) { return bf16_to_float(reinterpret_cast<const uint16_t*>(from)[at]); };
  if (format == kFloat32) return reinterpret_cast<const float*>(panel)[k * kPanel + column];
  if (format == kBfloat16) return as_bf16(panel, k * kPanel + bf16_lane(column));
  if (format == kBfloat16Dot) return as_bf16(panel, (k / 2 * kPanel + column) * 2 + k % 2);
  const char* scales = panel + line_bytes(format, padded_k(format, size));
  float scale = as_bf16(scales, k / kGroup * kPanel + column);
  if (format == kInt8) {
    constexpr int64_t side = kHasByteDots ? 4 : 2;
    int8_t q = int8_t(panel[(k / side * kPanel + column) * side + k % side]);
    return float(int8_t(q ^ (kHasByteDots ? -128 : 0))) * scale;
  }
  uint32_t word;
  std::memcpy(&word, panel + k / 8 * kLine + column * 4, 4);
  int64_t i = k % 8, nibble = kHasByteDots ? i % 4 * 2 + i / 4 : i % 2 * 4 + i / 2;
  return float(int(word >> (4 * nibble) & 15) - 8) * scale;
}

}  // namespace

// p ids int64, table, out; n size E, format, out row stride, first row (OPT's offset); f scale.
int64_t embedding(const Op& op, const Context& c) {
  const int64_t* ids = static_cast<const int64_t*>(op.p[0]);
  int64_t size = op.n[0], format = op.n[1];
  V16 scale = splat(op.f[0]);
  return each_row(c, c.tokens * op.rows, [&](int64_t t) {
    int64_t row = ids[t] + op.n[3];
    float* out = output(op, 2) + t * op.n[2];
    if (format < 0) {  // a plain table of rows
      const float* from = input(op, 1) + row * size;
      each_line(size, [&](int64_t i, int64_t count) { store_part(out + i, load_part(from + i, count) * scale, count); });
      return;
    }
    const char* panel = static_cast<const char*>(op.p[1]) + row / kPanel * panel_bytes(format, size);
    for (int64_t i = 0; i < size; ++i) out[i] = packed_value(panel, format, size, row % kPanel, i) * op.f[0];
  });
}

// p x, residual or null, weight, out, sum out or null; n size, group, x stride, x inner, out stride, out inner,
// plus_one; f eps. With a residual: s = x + residual is stored too and normalised.
int64_t rms_norm(const Op& op, const Context& c) {
  int64_t size = op.n[0];
  Rows from{op.n[1], op.n[2], op.n[3]}, to{op.n[1], op.n[4], op.n[5]};
  const float* weight = input(op, 2);
  V16 one = splat(op.n[6] ? 1.0f : 0.0f);
  return each_row(c, c.tokens * op.rows, [&](int64_t row) {
    const float* x = input(op, 0) + from.at(row);
    float* out = output(op, 3) + to.at(row);
    if (op.p[1]) {
      const float* residual = input(op, 1) + row * size;
      float* sum = output(op, 4) + row * size;
      each_line(size, [&](int64_t i, int64_t count) {
        store_part(sum + i, load_part(x + i, count) + load_part(residual + i, count), count);
      });
      x = sum;
    }
    float squares = sum_of_lines(size, [&](int64_t i, int64_t count) {
      V16 v = load_part(x + i, count);
      return v * v;
    });
    V16 factor = splat(1.0f / std::sqrt(squares / float(size) + op.f[0]));
    each_line(size, [&](int64_t i, int64_t count) {
      store_part(out + i, load_part(x + i, count) * factor * (load_part(weight + i, count) + one), count);
    });
  });
}

// p x, weight or null, bias or null, out; n size, group, x stride, x inner, out stride, out inner; f eps.
int64_t layer_norm(const Op& op, const Context& c) {
  int64_t size = op.n[0];
  Rows from{op.n[1], op.n[2], op.n[3]}, to{op.n[1], op.n[4], op.n[5]};
  return each_row(c, c.tokens * op.rows, [&](int64_t row) {
    const float* x = input(op, 0) + from.at(row);
    float* out = output(op, 3) + to.at(row);
    float mean = sum_of_lines(size, [&](int64_t i, int64_t count) { return load_part(x + i, count); }) / float(size);
    float squares = sum_of_lines(size, [&](int64_t i, int64_t count) {
      V16 away = load_part(x + i, count) - splat(mean);
      if (count < kLanes) {  // lanes past the last number are as far from the mean as 0 is, and do not count
        float lanes[kLanes] = {};
        store_part(lanes, away, count);
        away = load(lanes);
      }
      return away * away;
    });
    V16 factor = splat(1.0f / std::sqrt(squares / float(size) + op.f[0]));
    each_line(size, [&](int64_t i, int64_t count) {
      V16 y = (load_part(x + i, count) - splat(mean)) * factor;
      if (op.p[1]) y = y * load_part(input(op, 1) + i, count);
      if (op.p[2]) y = y + load_part(input(op, 2) + i, count);
      store_part(out + i, y, count);
    });
  });
}

// p x, cos, sin, out; n heads, head size, pairs N, x stride, out stride, interleaved; one row per token.
// A pair (a, b) becomes (a cos - b sin, b cos + a sin).
int64_t rope(const Op& op, const Context& c) {
  int64_t heads = op.n[0], size = op.n[1], pairs = op.n[2];
  return each_row(c, c.tokens * op.rows, [&](int64_t t) {
    const float *cos = input(op, 1) + t * pairs, *sin = input(op, 2) + t * pairs;
    for (int64_t h = 0; h < heads; ++h) {
      const float* x = input(op, 0) + t * op.n[3] + h * size;
      float* out = output(op, 3) + t * op.n[4] + h * size;
      if (op.n[5]) {
        for (int64_t i = 0; i < pairs; ++i) {
          float a = x[2 * i], b = x[2 * i + 1];
          out[2 * i] = a * cos[i] - b * sin[i];
          out[2 * i + 1] = b * cos[i] + a * sin[i];
        }
      } else {
        each_line(pairs, [&](int64_t i, int64_t left) {
          V16 a = load_part(x + i, left), b = load_part(x + pairs + i, left);
          V16 co = load_part(cos + i, left), si = load_part(sin + i, left);
          store_part(out + i, a * co - b * si, left);
          store_part(out + pairs + i, b * co + a * si, left);
        });
      }
      for (int64_t i = 2 * pairs; i < size; ++i) out[i] = x[i];
    }
  });
}

// p x, out; n size, kind, x stride, out stride.
int64_t activation(const Op& op, const Context& c) {
  return each_row(c, c.tokens * op.rows, [&](int64_t row) {
    const float* x = input(op, 0) + row * op.n[2];
    float* out = output(op, 1) + row * op.n[3];
    with_activation(op.n[1], [&](auto activated) {
      each_line(op.n[0], [&](int64_t i, int64_t count) {
        store_part(out + i, activated(load_part(x + i, count)), count);
      });
    });
  });
}

// p x = gate | up, out; n size F, kind, x stride, out stride.
int64_t gated_activation(const Op& op, const Context& c) {
  return each_row(c, c.tokens * op.rows, [&](int64_t row) {
    const float *gate = input(op, 0) + row * op.n[2], *up = gate + op.n[0];
    float* out = output(op, 1) + row * op.n[3];
    with_activation(op.n[1], [&](auto activated) {
      each_line(op.n[0], [&](int64_t i, int64_t count) {
        store_part(out + i, activated(load_part(gate + i, count)) * load_part(up + i, count), count);
      });
    });
  });
}

// p x, out; n size; f cap: cap tanh(x / cap).
int64_t softcap(const Op& op, const Context& c) {
  int64_t size = op.n[0];
  V16 cap = splat(op.f[0]);
  return each_row(c, c.tokens * op.rows, [&](int64_t row) {
    const float* x = input(op, 0) + row * size;
    float* out = output(op, 1) + row * size;
    each_line(size, [&](int64_t i, int64_t count) {
      store_part(out + i, cap * tanh(load_part(x + i, count) / cap), count);
    });
  });
}

// p x, y, out; n size.
int64_t add(const Op& op, const Context& c) {
  int64_t size = op.n[0];
  return each_row(c, c.tokens * op.rows, [&](int64_t row) {
    const float *x = input(op, 0) + row * size, *y = input(op, 1) + row * size;
    float* out = output(op, 2) + row * size;
    each_line(size, [&](int64_t i, int64_t count) {
      store_part(out + i, load_part(x + i, count) + load_part(y + i, count), count);
    });
  });
}

// p logits, ids out int64, values out; n V, row stride. The lowest id of equal ones; a NaN anywhere makes the value NaN.
int64_t greedy(const Op& op, const Context& c) {
  return each_row(c, c.tokens * op.rows, [&](int64_t row) {
    const float* x = input(op, 0) + row * op.n[1];
    float best = -std::numeric_limits<float>::infinity();
    const V16 lowest = splat(std::numeric_limits<float>::lowest());
    bool has_nan = false;
    int64_t at = 0, size = op.n[0], start = 0;
    for (; start < size; start += 256) {
      int64_t stop = start + 256 < size ? start + 256 : size;
      V16 largest = splat(-std::numeric_limits<float>::infinity()), sum = zero();
      int64_t i = start;
      for (; i + kLanes <= stop; i += kLanes) {
        V16 v = load(x + i);
        largest = max(v, largest);
        V16 w = max(lowest, v);  // masked tokens are minus infinity and nothing odd; NaN stays, as the second of two
        sum = sum + (w - w);  // NaN where w is NaN or infinite
      }
      float found = max_of(largest);
      bool odd = !(sum_of(sum) == 0.0f);
      for (; i < stop; ++i) {
        found = x[i] > found ? x[i] : found;
        odd = odd || !(x[i] - x[i] == 0.0f);
      }
      if (odd)
        for (int64_t j = start; j < stop; ++j) {
          has_nan = has_nan || x[j] != x[j];
          found = x[j] > found ? x[j] : found;
        }
      if (!(found > best)) continue;
      best = found;
      for (int64_t j = start; j < stop; ++j)
        if (x[j] == best) {
          at = j;
          break;
        }
    }
    static_cast<int64_t*>(op.p[1])[row] = at;
    output(op, 2)[row] = has_nan ? std::numeric_limits<float>::quiet_NaN() : best;
  });
}

// Sets tokens of x [count] that mask does not keep (bit j % 32 of word j / 32) to minus infinity; says whether any stays.
static bool mask_block(float* x, const uint32_t* mask, int64_t count) {
  uint32_t any = 0;
  for (int64_t start = 0; start < count; start += 32) {
    uint32_t bits = mask[start / 32];
    any |= bits;
    if (bits == ~uint32_t(0)) continue;
    float* part = x + start;
    int64_t size = count - start < 32 ? count - start : 32;
    for (int64_t j = 0; j < size; ++j)
      part[j] = bits >> j & 1 ? part[j] : -std::numeric_limits<float>::infinity();
  }
  return any != 0;
}

// p logits, lines int64, masks uint32, ids int64, largest; n V, row stride, words of a mask. Bit v % 32 of word v / 32
// keeps token v. A finite largest logit says that the line has no NaN, so the ones that are left need no look for it.
int64_t mask_tokens(const Op& op, const Context& c) {
  return each_row(c, c.tokens * op.rows, [&](int64_t i) {
    int64_t line = static_cast<const int64_t*>(op.p[1])[i], at = 0;
    float *x = output(op, 0) + line * op.n[1], *largest = output(op, 4) + line;
    const uint32_t* mask = static_cast<const uint32_t*>(op.p[2]) + i * op.n[2];
    float best = -std::numeric_limits<float>::infinity();
    for (int64_t start = 0; start < op.n[0]; start += 256) {
      int64_t count = op.n[0] - start < 256 ? op.n[0] - start : 256, j = 0;
      float* block = x + start;
      if (!mask_block(block, mask + start / 32, count)) continue;
      V16 most = splat(-std::numeric_limits<float>::infinity());
      for (; j + kLanes <= count; j += kLanes) most = max(load(block + j), most);
      float found = max_of(most);
      for (; j < count; ++j) found = block[j] > found ? block[j] : found;
      if (!(found > best)) continue;
      best = found;
      at = start + (std::find(block, block + count, found) - block);
    }
    if (*largest - *largest != 0.0f) return;
    *largest = best;
    static_cast<int64_t*>(op.p[3])[line] = at;
  });
}

}  // namespace QUIRE_ISA
}  // namespace quire
