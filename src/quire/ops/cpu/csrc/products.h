// Sums of a tile of R rows and P panels over a span of k, in registers: the inner loops of every linear layer.
// Knows: one loop per weight format. Does not know: how the work is cut up.
//
// Every output is one chain of additions over k in order, whatever R and P, so a row's bits do not depend on its batch.
#pragma once

#include <type_traits>

#include "inputs.h"
#include "kernels.h"

namespace quire {
namespace QUIRE_ISA {

// k values [from, to) of a pass over the weights; passes before it left their sums in y.
struct Span {
  int64_t from, to;
  bool first, last;
};

// Weights that will be needed next, from `panel` and `k` on: `tiles` tiles together fetch a span of them, this one the
// part `tile`. Memory then works while the multipliers do.
struct Ahead {
  int64_t panel, k, tile, tiles;
};

// Each tile is a function of its own: together they would not find enough registers.
#define QUIRE_ALONE __attribute__((noinline))

// Panels that a tile of so many rows takes at once. Few rows take several: one panel's chain of additions would leave
// the multipliers waiting. Integers need a register for the group's whole number beside each sum.
constexpr int panels_at_once(int rows, bool integer) {
  int sums = kHasManyRegisters ? (integer ? 12 : 24) : (integer ? 2 : 6);
  int panels = sums / rows;
  return panels < 1 ? 1 : panels > 4 ? 4 : panels;
}

// A tile's part of y: where row r of panel p lies, and how its sums come and go.
template <int R, int P>
struct Target {
  const Job& job;
  float* y;
  int64_t column;

  Target(const Job& j, Rows rows, int64_t panel)
      : job(j), y(j.y + rows.from * j.y_stride + panel * kPanel), column(panel * kPanel) {}
  // What the span before left, or 0.
  V16 begin(int r, int p, Span span) const {
    return span.first ? zero() : load_part(y + r * job.y_stride + p * kPanel, job.n - column - p * kPanel);
  }
  void end(V16 sum, int r, int p, Span span) const {
    int64_t left = job.n - column - p * kPanel;
    if (span.last && job.bias) sum = sum + load_part(job.bias + column + p * kPanel, left);
    store_part(y + r * job.y_stride + p * kPanel, sum, left);
  }
};

// The weights of P panels from `k` on.
template <int P>
struct Panels {
  const char* at[P];

  Panels(const Job& job, int64_t panel, int64_t k) {
    int64_t bytes = panel_bytes(job.format, job.k);
    for (int p = 0; p < P; ++p) at[p] = job.weights + (panel + p) * bytes + line_bytes(job.format, k);
  }
  template <class T>
  const T* line(int p, int64_t i, int64_t size) const {
    return reinterpret_cast<const T*>(at[p]) + i * size;
  }
};

// Fetches the next weights step by step, a tile's part of `unit` bytes of each panel at a time.
template <int P>
class Fetcher {
 public:
  Fetcher(const Job& job, Span span, Ahead ahead, int64_t unit)
      : from_(job, ahead.panel, ahead.k), step_(unit / ahead.tiles) {
    for (int p = 0; p < P; ++p) from_.at[p] += line_bytes(job.format, span.to - span.from) / ahead.tiles * ahead.tile;
  }
  void step() {
    for (int p = 0; p < P; ++p) {
      for (int64_t i = 0; i < step_; i += kLine) fetch(from_.at[p] + i);
      from_.at[p] += step_;
    }
  }

 private:
  Panels<P> from_;
  const int64_t step_;
};
// Where nothing is to be fetched.
struct Idle {
  Idle(const Job&, Span, const Idle&, int64_t) {}
  Idle() {}
  void step() {}
};
template <int P, class Next>
using FetcherFor = std::conditional_t<std::is_same_v<Next, Idle>, Idle, Fetcher<P>>;

struct Float32Line {
  using Type = float;
  static V16 get(const float* p) { return load(p); }
};
struct Bfloat16Line {
  using Type = uint16_t;
  static V16 get(const uint16_t* p) { return load_bf16_pairs(p); }
};

template <class Line>
struct FloatProduct {
  static constexpr bool kInteger = false;

  template <int R, int P, class Next>
  QUIRE_ALONE static void tile(const Job& job, const Tiles& t, Rows rows, int64_t panel, Span span, Next ahead) {
    Panels<P> w(job, panel, span.from);
    const float* x = t.values ? values_of<float>(job, t, rows, span.from) : job.x;
    Target<R, P> target(job, rows, panel);
    V16 sums[R][P];
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < P; ++p) sums[r][p] = target.begin(r, p, span);
    FetcherFor<P, Next> next(job, span, ahead, line_bytes(job.format, 1));
    for (int64_t i = 0; i < span.to - span.from; ++i, x += R) {
      next.step();
      if constexpr (kHasManyRegisters) {
        V16 lines[P];
        for (int p = 0; p < P; ++p) lines[p] = Line::get(w.template line<typename Line::Type>(p, i, kPanel));
        for (int r = 0; r < R; ++r) {
          V16 value = splat(x[r]);
          for (int p = 0; p < P; ++p) sums[r][p] = fma(value, lines[p], sums[r][p]);
        }
      } else {
        for (int p = 0; p < P; ++p) {
          V16 line = Line::get(w.template line<typename Line::Type>(p, i, kPanel));
          for (int r = 0; r < R; ++r) sums[r][p] = fma(splat(x[r]), line, sums[r][p]);
        }
      }
    }
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < P; ++p) target.end(sums[r][p], r, p, span);
  }
};

struct Bf16DotProduct {
  static constexpr bool kInteger = false;

  template <int R, int P, class Next>
  QUIRE_ALONE static void tile(const Job& job, const Tiles& t, Rows rows, int64_t panel, Span span, Next ahead) {
    Panels<P> w(job, panel, span.from);
    const int32_t* x = values_of<int32_t>(job, t, rows, span.from);
    Target<R, P> target(job, rows, panel);
    V16 sums[R][P];
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < P; ++p) sums[r][p] = target.begin(r, p, span);
    FetcherFor<P, Next> next(job, span, ahead, kLine);
    for (int64_t i = 0; i < (span.to - span.from) / 2; ++i, x += R) {
      next.step();
      P32 lines[P];
      for (int p = 0; p < P; ++p) lines[p] = load_bf16_line(w.template line<uint16_t>(p, i, 2 * kPanel));
      for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) sums[r][p] = dot_bf16(sums[r][p], lines[p], x[r]);
    }
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < P; ++p) target.end(sums[r][p], r, p, span);
  }
};

// What one group of integer weights adds to the whole numbers of a tile; the pointers of `w` are at the group.
struct Int8Pairs {
  template <int R, int P>
  static void add(I16 (&whole)[R][P], const char* const (&w)[P], const int32_t* x) {
    for (int p = 0; p < P; ++p)
      for (int64_t i = 0; i < kGroup / 2; ++i) {
        P32 line = load_pairs_i8(reinterpret_cast<const int8_t*>(w[p]) + i * 2 * kPanel);
        for (int r = 0; r < R; ++r) whole[r][p] = add_pairs(whole[r][p], line, x[i * R + r]);
      }
  }
};

struct Int4Pairs {
  template <int R, int P>
  static void add(I16 (&whole)[R][P], const char* const (&w)[P], const int32_t* x) {
    for (int p = 0; p < P; ++p)
      for (int64_t i = 0; i < kGroup / 8; ++i) {
        const uint8_t* words = reinterpret_cast<const uint8_t*>(w[p]) + i * kLine;
        add_nibbles<R, P, 0>(whole, p, words, x + i * 4 * R);
        add_nibbles<R, P, 1>(whole, p, words, x + i * 4 * R);
        add_nibbles<R, P, 2>(whole, p, words, x + i * 4 * R);
        add_nibbles<R, P, 3>(whole, p, words, x + i * 4 * R);
      }
  }
  // Pair I of the four in a line of nibbles.
  template <int R, int P, int I>
  static void add_nibbles(I16 (&whole)[R][P], int p, const uint8_t* words, const int32_t* pairs) {
    if (R > 3) forget_loads();
    P32 line = load_pairs_u4(words, I);
    for (int r = 0; r < R; ++r) whole[r][p] = add_pairs(whole[r][p], line, pairs[I * R + r]);
  }
};

#if defined(__AVX512VNNI__)
template <int R, int P>
inline void add_bytes(I16 (&whole)[R][P], const Q64 (&lines)[P], const int32_t* x) {
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) whole[r][p] = dot_bytes(whole[r][p], lines[p], x[r]);
}

struct Int8Bytes {
  template <int R, int P>
  static void add(I16 (&whole)[R][P], const char* const (&w)[P], const int32_t* x) {
    for (int64_t i = 0; i < kGroup / 4; ++i) {
      Q64 lines[P];
      for (int p = 0; p < P; ++p) lines[p] = load_bytes(w[p] + i * kLine);
      add_bytes<R, P>(whole, lines, x + i * R);
    }
  }
};

struct Int4Bytes {
  template <int R, int P>
  static void add(I16 (&whole)[R][P], const char* const (&w)[P], const int32_t* x) {
    for (int64_t i = 0; i < kGroup / 8; ++i) {
      Q64 low[P], high[P];
      for (int p = 0; p < P; ++p) {
        Q64 both = load_bytes(w[p] + i * kLine);
        low[p] = low_nibbles(both);
        high[p] = high_nibbles(both);
      }
      add_bytes<R, P>(whole, low, x + 2 * i * R);
      add_bytes<R, P>(whole, high, x + (2 * i + 1) * R);
    }
  }
};
using Int8Group = Int8Bytes;
using Int4Group = Int4Bytes;
#else
using Int8Group = Int8Pairs;
using Int4Group = Int4Pairs;
#endif

template <class Group, bool HasStarts>
struct IntegerProduct {
  static constexpr bool kInteger = true;

  template <int R, int P, class Next>
  QUIRE_ALONE static void tile(const Job& job, const Tiles& t, Rows rows, int64_t panel, Span span, Next ahead) {
    const int64_t step = line_bytes(job.format, kGroup), words = kGroup * value_bytes(job.format) / 4;
    Panels<P> w(job, panel, span.from), all(job, panel, t.padded);  // scales lie behind the last line
    const int32_t* x = values_of<int32_t>(job, t, rows, span.from);
    Target<R, P> target(job, rows, panel);
    V16 sums[R][P];
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < P; ++p) sums[r][p] = target.begin(r, p, span);
    FetcherFor<P, Next> next(job, span, ahead, step);
    for (int64_t g = span.from / kGroup; g < span.to / kGroup; ++g, x += words * R) {
      next.step();
      const int64_t at = rows.from * t.groups + g * R;
      I16 whole[R][P];
      for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) whole[r][p] = HasStarts ? isplat(t.starts[at + r]) : izero();
      Group::template add<R, P>(whole, w.at, x);
      V16 scales[P];
      for (int p = 0; p < P; ++p) {
        scales[p] = load_bf16(all.template line<uint16_t>(p, g, kPanel));
        w.at[p] += step;
      }
      for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) {
          V16 scale = kHasByteDots ? scales[p] * splat(t.scales[at + r]) : scales[p];
          sums[r][p] = fma(to_float(whole[r][p]), scale, sums[r][p]);
        }
    }
    for (int r = 0; r < R; ++r) {
      V16 scale = splat(!kHasByteDots && span.last ? t.scales[rows.from + r] : 1.0f);
      for (int p = 0; p < P; ++p) target.end(sums[r][p] * scale, r, p, span);
    }
  }
};

// Some panels, as many at a time as there are registers for.
template <class Product, int R, int P, class Next>
void panels_of(const Job& job, const Tiles& t, Rows rows, Share panels, Span span, Next ahead) {
  int64_t panel = panels.from;
  for (; panel + P <= panels.to; panel += P) Product::template tile<R, P>(job, t, rows, panel, span, ahead);
  if constexpr (P > 1)
    if (panel < panels.to) panels_of<Product, R, P - 1>(job, t, rows, {panel, panels.to}, span, ahead);
}

template <class Product, class Next, int R = most_rows(Product::kInteger)>
void rows_and_panels(const Job& job, const Tiles& t, Rows rows, Share panels, Span span, Next ahead) {
  if (rows.rows == R)
    return panels_of<Product, R, panels_at_once(R, Product::kInteger)>(job, t, rows, panels, span, ahead);
  if constexpr (R > 1) rows_and_panels<Product, Next, R - 1>(job, t, rows, panels, span, ahead);
}

// One tile of rows with some panels; `ahead` is an Ahead or Idle.
template <class Next>
void multiply_tile(const Job& job, const Tiles& t, int64_t tile, Share panels, Span span, Next ahead) {
  Rows rows = rows_of(job, t, tile);
  switch (job.format) {
    case kFloat32:
      return rows_and_panels<FloatProduct<Float32Line>>(job, t, rows, panels, span, ahead);
    case kBfloat16:
      return rows_and_panels<FloatProduct<Bfloat16Line>>(job, t, rows, panels, span, ahead);
    case kBfloat16Dot:
      return rows_and_panels<Bf16DotProduct>(job, t, rows, panels, span, ahead);
    case kInt8:
      return rows_and_panels<IntegerProduct<Int8Group, kHasByteDots>>(job, t, rows, panels, span, ahead);
    default:
      return rows_and_panels<IntegerProduct<Int4Group, true>>(job, t, rows, panels, span, ahead);
  }
}

}  // namespace QUIRE_ISA
}  // namespace quire
