// y[T, N] = x[T, K] * W^T + bias for weights in panels.
//
// Every output is one chain of additions over k (or over groups of k) in order, whatever the number of rows, the size
// of a tile or the number of threads: a row's bits never depend on its batch.
//
// Op: p x, y, weights, bias or null; rows per token; n N, K, format, row stride of x, row stride of y.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels.h"
#include "packed.h"
#include "vec.h"

namespace quire {
namespace QUIRE_ISA {
namespace {

constexpr int kTile = 6;               // rows whose sums fit the registers of AVX2 beside a line of weights
constexpr int64_t kBlock = 640;        // most k values per pass over several tiles
constexpr int64_t kPanelsPerTask = 4;  // of many rows
constexpr int64_t kTilesPerTask = 24;  // what a pass reads of so many tiles stays in L2
constexpr int64_t kBytesPerTask = 128 << 10;  // of few rows, at least
constexpr int64_t kCheapTiles = 16384;        // values that a thread prepares sooner than it meets another

struct Job {
  const float* x;
  float* y;
  const char* weights;
  const float* bias;
  int64_t rows, n, k, format, x_stride, y_stride;
};

Job job_of(const Op& op, int64_t tokens) {
  return {static_cast<const float*>(op.p[0]), static_cast<float*>(op.p[1]), static_cast<const char*>(op.p[2]),
          static_cast<const float*>(op.p[3]), tokens * op.rows,             op.n[0],
          op.n[1],                            op.n[2],                      op.n[3],
          op.n[4]};
}

bool is_integer(int64_t format) { return format == kInt8 || format == kInt4; }
int64_t group_of(int64_t format) { return format == kInt8 ? kInt8Group : kInt4Group; }

// ---- x in tiles of at most kTile rows, sizes as even as can be, values of a tile's rows side by side

// float32, bfloat16   values [k][rows of the tile] float
// int8, int4          values [k / 2][rows] pairs of int16; one scale per row; int4: starts [group][rows]
struct Tiles {
  char* values;
  float* scales;
  int32_t* starts;  // -8 times the sum of a group: what the offset of int4 adds up to
  int64_t padded_k;
  int64_t groups;
  int64_t count;
  int64_t bytes_per_value;
};

// Rows [from, from + rows).
struct Rows {
  int64_t from, rows;
};

Rows rows_of(const Job& job, const Tiles& t, int64_t tile) {
  int64_t base = job.rows / t.count, larger = job.rows % t.count;
  return {tile * base + std::min(tile, larger), base + (tile < larger ? 1 : 0)};
}

Tiles sizes_of(int64_t rows, int64_t k, int64_t format) {
  Tiles t{};
  t.count = (rows + kTile - 1) / kTile;
  t.padded_k = is_integer(format) ? rounded_up(k, group_of(format)) : k;
  t.groups = is_integer(format) ? t.padded_k / group_of(format) : 0;
  t.bytes_per_value = is_integer(format) ? 2 : 4;
  return t;
}

size_t tiles_bytes(int64_t rows, int64_t k, int64_t format) {
  Tiles t = sizes_of(rows, k, format);
  int64_t extra = format == kInt8 ? 4 : format == kInt4 ? 4 + t.groups * 4 : 0;
  return size_t(rows * (t.padded_k * t.bytes_per_value + extra)) + 64;
}

Tiles place_tiles(char* memory, const Job& job) {
  Tiles t = sizes_of(job.rows, job.k, job.format);
  t.values = memory;
  t.scales = reinterpret_cast<float*>(memory + job.rows * t.padded_k * t.bytes_per_value);
  t.starts = reinterpret_cast<int32_t*>(t.scales + job.rows);
  return t;
}

template <class T>
T* values_of(const Tiles& t, Rows rows, int64_t k) {
  return reinterpret_cast<T*>(t.values + (rows.from * t.padded_k + k * rows.rows) * t.bytes_per_value);
}

void copy_tile(const Job& job, const Tiles& t, Rows rows) {
  float* out = values_of<float>(t, rows, 0);
  for (int64_t r = 0; r < rows.rows; ++r) {
    const float* x = job.x + (rows.from + r) * job.x_stride;
    for (int64_t i = 0; i < job.k; ++i) out[i * rows.rows + r] = x[i];
  }
}

// The steps of a row or group whose largest magnitude is given: q = round(x * inverse), x = q * scale.
struct Steps {
  float scale, inverse;
};

// What is not finite makes the scale NaN, and so the row, as it does in floating point. What is too small to divide by
// counts as 0.
Steps steps_of(V16 largest, V16 differences, float steps) {
  if (!(sum_of(differences) == 0.0f)) return {NAN, 0.0f};
  float most = largest_of(largest), inverse = steps / most;
  return {most / steps, inverse < INFINITY ? inverse : 0.0f};
}

// Sixteen values in steps; 0 for all where inverse is 0, NaN and infinity too.
inline I16 in_steps(V16 x, Steps steps) { return steps.inverse > 0 ? to_int(x * splat(steps.inverse)) : izero(); }

void add_to_start(const Tiles& t, Rows rows, int64_t r, int64_t i, const int16_t* q) {
  int32_t sum = 0;
  for (int64_t j = 0; j < kLanes; ++j) sum += q[j];
  int32_t* start = t.starts + rows.from * t.groups + i / kInt4Group * rows.rows + r;
  *start = (i % kInt4Group ? *start : 0) - 8 * sum;
}

// Fifteen bits and a sign per value, one scale per row: products with eight-bit weights are exact in int32.
void tile_of_pairs(const Job& job, const Tiles& t, Rows rows) {
  int32_t* out = values_of<int32_t>(t, rows, 0);
  for (int64_t r = 0; r < rows.rows; ++r) {
    const float* x = job.x + (rows.from + r) * job.x_stride;
    V16 largest = zero(), differences = zero();
    for (int64_t i = 0; i < job.k; i += kLanes) {
      V16 value = load_part(x + i, job.k - i);
      largest = max(abs(value), largest);
      differences = differences + (value - value);
    }
    Steps steps = steps_of(largest, differences, 32767.0f);
    t.scales[rows.from + r] = steps.scale;
    for (int64_t i = 0; i < t.padded_k; i += kLanes) {
      int16_t q[kLanes];
      int32_t pairs[kLanes / 2];
      store_i16(q, in_steps(load_part(x + i, job.k - i), steps));
      std::memcpy(pairs, q, sizeof q);
      for (int64_t j = 0; j < kLanes / 2; ++j) out[(i / 2 + j) * rows.rows + r] = pairs[j];
      if (job.format == kInt4) add_to_start(t, rows, r, i, q);
    }
  }
}

void make_tile(const Job& job, const Tiles& t, int64_t tile) {
  Rows rows = rows_of(job, t, tile);
  if (is_integer(job.format))
    tile_of_pairs(job, t, rows);
  else
    copy_tile(job, t, rows);
}

// Each tile is a function of its own: together they would not find enough registers.
#define QUIRE_ALONE __attribute__((noinline))

// ---- sums of a tile of R rows and P panels over k values [from, to)

struct Span {
  int64_t from, to;
  bool first, last;
};

struct Float32Line {
  using Type = float;
  static V16 get(const float* p) { return load(p); }
};
struct Bfloat16Line {
  using Type = uint16_t;
  static V16 get(const uint16_t* p) { return load_bf16_pairs(p); }
};

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

template <int R, int P, class Line>
QUIRE_ALONE void float_tile(const Job& job, const Tiles& t, Rows rows, int64_t panel, Span span) {
  using Type = typename Line::Type;
  const Type* w[P];
  for (int p = 0; p < P; ++p)
    w[p] = reinterpret_cast<const Type*>(job.weights) + ((panel + p) * job.k + span.from) * kPanel;
  const float* x = t.values ? values_of<float>(t, rows, span.from) : job.x;
  Target<R, P> target(job, rows, panel);
  V16 sums[R][P];
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) sums[r][p] = target.begin(r, p, span);
  for (int64_t i = span.from; i < span.to; ++i) {
    for (int p = 0; p < P; ++p) {
      V16 line = Line::get(w[p]);
      w[p] += kPanel;
      for (int r = 0; r < R; ++r) sums[r][p] = fma(splat(x[r]), line, sums[r][p]);
    }
    x += R;
  }
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) target.end(sums[r][p], r, p, span);
}

template <int R, int P>
QUIRE_ALONE void int8_tile(const Job& job, const Tiles& t, Rows rows, int64_t panel, Span span) {
  const int32_t* x = values_of<int32_t>(t, rows, span.from);
  Target<R, P> target(job, rows, panel);
  V16 sums[R][P];
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) sums[r][p] = target.begin(r, p, span);
  for (int64_t g = span.from / kInt8Group; g < span.to / kInt8Group; ++g) {
    for (int p = 0; p < P; ++p) {
      const char* block = job.weights + ((panel + p) * t.groups + g) * kInt8Block;
      const int8_t* q = reinterpret_cast<const int8_t*>(block);
      I16 whole[R];
      for (int r = 0; r < R; ++r) whole[r] = izero();
      for (int64_t i = 0; i < kInt8Group / 2; ++i) {
        P32 line = load_pairs_i8(q + i * 2 * kPanel);
        for (int r = 0; r < R; ++r) whole[r] = add_pairs(whole[r], line, x[i * R + r]);
      }
      V16 scale = load(reinterpret_cast<const float*>(block + kInt8Group * kPanel));
      for (int r = 0; r < R; ++r) sums[r][p] = fma(to_float(whole[r]), scale, sums[r][p]);
    }
    x += kInt8Group / 2 * R;
  }
  for (int r = 0; r < R; ++r) {
    V16 scale = splat(span.last ? t.scales[rows.from + r] : 1.0f);
    for (int p = 0; p < P; ++p) target.end(sums[r][p] * scale, r, p, span);
  }
}

// Pair i of the four in a line of nibbles.
template <int R, int I>
inline void add_nibbles(I16 (&whole)[R], const uint8_t* words, const int32_t* pairs) {
  if (R > 3) forget_loads();
  P32 line = load_pairs_u4(words, I);
  for (int r = 0; r < R; ++r) whole[r] = add_pairs(whole[r], line, pairs[I * R + r]);
}

template <int R, int P>
QUIRE_ALONE void int4_tile(const Job& job, const Tiles& t, Rows rows, int64_t panel, Span span) {
  const int32_t* x = values_of<int32_t>(t, rows, span.from);
  const int32_t* starts = t.starts + rows.from * t.groups;
  Target<R, P> target(job, rows, panel);
  V16 sums[R][P];
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) sums[r][p] = target.begin(r, p, span);
  for (int64_t g = span.from / kInt4Group; g < span.to / kInt4Group; ++g) {
    for (int p = 0; p < P; ++p) {
      const char* block = job.weights + ((panel + p) * t.groups + g) * kInt4Block;
      const uint8_t* q = reinterpret_cast<const uint8_t*>(block);
      I16 whole[R];
      for (int r = 0; r < R; ++r) whole[r] = isplat(starts[g * R + r]);
      for (int64_t i = 0; i < kInt4Group / 8; ++i) {
        const uint8_t* words = q + i * 4 * kPanel;
        const int32_t* pairs = x + i * 4 * R;
        add_nibbles<R, 0>(whole, words, pairs);
        add_nibbles<R, 1>(whole, words, pairs);
        add_nibbles<R, 2>(whole, words, pairs);
        add_nibbles<R, 3>(whole, words, pairs);
      }
      V16 scale = load_bf16(reinterpret_cast<const uint16_t*>(block + kInt4Group * kPanel / 2));
      for (int r = 0; r < R; ++r) sums[r][p] = fma(to_float(whole[r]), scale, sums[r][p]);
    }
    x += kInt4Group / 2 * R;
  }
  for (int r = 0; r < R; ++r) {
    V16 scale = splat(span.last ? t.scales[rows.from + r] : 1.0f);
    for (int p = 0; p < P; ++p) target.end(sums[r][p] * scale, r, p, span);
  }
}

template <int R, int P>
void tile_of(const Job& job, const Tiles& t, Rows rows, int64_t panel, Span span) {
  switch (job.format) {
    case kFloat32:
      return float_tile<R, P, Float32Line>(job, t, rows, panel, span);
    case kBfloat16:
      return float_tile<R, P, Bfloat16Line>(job, t, rows, panel, span);
    case kInt8:
      return int8_tile<R, P>(job, t, rows, panel, span);
    default:
      return int4_tile<R, P>(job, t, rows, panel, span);
  }
}

// Few rows take several panels at once: one panel's chain of additions would leave the multipliers waiting.
template <int R, int P>
void panels_of(const Job& job, const Tiles& t, Rows rows, int64_t from, int64_t to, Span span) {
  int64_t panel = from;
  for (; panel + P <= to; panel += P) tile_of<R, P>(job, t, rows, panel, span);
  if constexpr (P > 1) panels_of<R, P / 2>(job, t, rows, panel, to, span);
}

void run_tile(const Job& job, const Tiles& t, int64_t tile, int64_t from, int64_t to, Span span) {
  Rows rows = rows_of(job, t, tile);
  switch (rows.rows) {
    case 1:
      return panels_of<1, 4>(job, t, rows, from, to, span);
    case 2:
      return panels_of<2, 2>(job, t, rows, from, to, span);
    case 3:
      return panels_of<3, 2>(job, t, rows, from, to, span);
    case 4:
      return panels_of<4, 1>(job, t, rows, from, to, span);
    case 5:
      return panels_of<5, 1>(job, t, rows, from, to, span);
    default:
      return panels_of<6, 1>(job, t, rows, from, to, span);
  }
}

void run_block(const Job& job, const Tiles& t, Share tiles, Share panels) {
  // Passes of equal length; a panel's part and a tile's stay in L1.
  int64_t passes = tiles.to - tiles.from == 1 ? 1 : (t.padded_k + kBlock - 1) / kBlock;
  int64_t step = rounded_up((t.padded_k + passes - 1) / passes, kInt8Group);
  for (int64_t start = 0; start < t.padded_k; start += step) {
    int64_t stop = std::min(start + step, t.padded_k);
    Span span{start, stop, start == 0, stop == t.padded_k};
    for (int64_t tile = tiles.from; tile < tiles.to; ++tile) run_tile(job, t, tile, panels.from, panels.to, span);
  }
}

// How many parts the panels and the tiles are cut into; the threads take them one by one.
struct Tasks {
  int64_t panels, tiles;
};

Tasks tasks_of(const Job& job, const Tiles& t, int64_t threads) {
  int64_t panels = num_panels(job.n);
  if (t.count <= 2) {  // as many for each thread, so that none waits long for the others
    int64_t most = std::min(panels / (4 * threads), panels * panel_bytes(job.format, job.k) / (kBytesPerTask * threads));
    return {threads * std::clamp<int64_t>(most, 1, 8), 1};
  }
  int64_t parts = (panels + kPanelsPerTask - 1) / kPanelsPerTask;
  int64_t enough = std::clamp<int64_t>(12 * threads / parts, 1, std::max<int64_t>(1, t.count / 4));
  return {parts, std::max(enough, (t.count + kTilesPerTask - 1) / kTilesPerTask)};
}

}  // namespace

size_t linear_scratch(const Op& op, int64_t tokens) {
  Job job = job_of(op, tokens);
  size_t bytes = tiles_bytes(job.rows, job.k, job.format);
  return bytes <= kLocalScratch / 2 ? 0 : bytes;
}

void linear(const Op& op, const Context& c) {
  Job job = job_of(op, c.tokens);
  if (job.rows == 0) return;
  // Little to prepare: every thread does it for itself, which is cheaper than waiting for each other.
  bool alone = c.threads == 1 || job.rows * job.k <= kCheapTiles || job.rows == 1;
  alone &= tiles_bytes(job.rows, job.k, job.format) <= kLocalScratch / 2;
  Tiles t = place_tiles(alone ? c.local : c.shared, job);
  if (job.rows == 1 && !is_integer(job.format)) {
    t.values = nullptr;
  } else if (alone) {
    for (int64_t tile = 0; tile < t.count; ++tile) make_tile(job, t, tile);
  } else {
    for (int64_t tile = c.take(); tile < t.count; tile = c.take()) make_tile(job, t, tile);
    c.meet();
  }
  int64_t panels = num_panels(job.n);
  Tasks tasks = tasks_of(job, t, c.threads);
  for (int64_t task = c.take(); task < tasks.panels * tasks.tiles; task = c.take()) {
    // Neighbours share their tiles.
    Share tile_share = share_of(t.count, int(task / tasks.panels), int(tasks.tiles));
    run_block(job, t, tile_share, share_of(panels, int(task % tasks.panels), int(tasks.panels)));
  }
}

}  // namespace QUIRE_ISA
}  // namespace quire
