// Weights into panels, once at load. The rounding here is all that a quantized format loses.
//
// Sixteen rows at a time lie side by side, k by k, so that each is a lane: what is computed for one is for all.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels.h"
#include "packed.h"
#include "vec.h"

namespace quire {
namespace QUIRE_ISA {
namespace {

constexpr int64_t kSpan = 256;  // k values at a time: a multiple of every group; sixteen rows of them stay in L1
static_assert(kSpan % kGroup == 0);

// The lanes [from, to) of a panel, and the row of the source that is lane 0.
struct Lanes {
  int64_t from, to, row;
};

float number(float x) { return x; }
V16 numbers(const float* p) { return load(p); }
struct Half {
  uint16_t bits;
};
float number(Half x) { return half_to_float(x.bits); }
V16 numbers(const Half* p) { return load_f16(&p->bits); }
struct Brain {
  uint16_t bits;
};
float number(Brain x) { return bf16_to_float(x.bits); }
V16 numbers(const Brain* p) { return load_bf16(&p->bits); }

// k values [start, start + count) of the lanes, to w[count][16].
template <class T>
void read_span(const PackJob& job, Lanes lanes, int64_t start, int64_t count, float* w) {
  for (int64_t lane = lanes.from; lane < lanes.to; ++lane) {
    const T* in = static_cast<const T*>(job.source);
    in += (lanes.row + lane) * job.source_stride + start * job.column_stride;
    float row[kSpan];
    int64_t done = 0;
    if (job.column_stride == 1)
      for (; done + kLanes <= count; done += kLanes) store(row + done, numbers(in + done));
    for (; done < count; ++done) row[done] = number(in[done * job.column_stride]);
    for (int64_t i = 0; i < count; ++i) w[i * kPanel + lane] = row[i];
  }
}

void read_any(const PackJob& job, Lanes lanes, int64_t start, int64_t count, float* w) {
  if (job.source_type == kSourceFloat32)
    read_span<float>(job, lanes, start, count, w);
  else if (job.source_type == kSourceBfloat16)
    read_span<Brain>(job, lanes, start, count, w);
  else
    read_span<Half>(job, lanes, start, count, w);
}

// Lanes of lines of sixteen units; the others may hold other rows already.
template <class Unit>
void put_lanes(char* out, const Unit* lines, int64_t count, Lanes lanes) {
  if (lanes.to - lanes.from == kPanel) {
    std::memcpy(out, lines, size_t(count * kPanel) * sizeof(Unit));
    return;
  }
  for (int64_t i = 0; i < count; ++i)
    std::memcpy(out + (i * kPanel + lanes.from) * int64_t(sizeof(Unit)), lines + i * kPanel + lanes.from,
                size_t(lanes.to - lanes.from) * sizeof(Unit));
}

void put_bf16(char* out, const float* w, int64_t count, Lanes lanes) {
  uint16_t* line = reinterpret_cast<uint16_t*>(out);
  for (int64_t i = 0; i < count; ++i, line += kPanel, w += kPanel) {
    uint16_t bits[kPanel];
    store_bf16(bits, load(w));
    if (lanes.to - lanes.from == kPanel)
      for (int64_t lane = 0; lane < kPanel / 2; ++lane) {
        line[2 * lane] = bits[lane];
        line[2 * lane + 1] = bits[lane + kPanel / 2];
      }
    else
      for (int64_t lane = lanes.from; lane < lanes.to; ++lane) line[bf16_lane(lane)] = bits[lane];
  }
}

void put_bf16_pairs(char* out, const float* w, int64_t count, Lanes lanes) {
  for (int64_t i = 0; i < count; i += 2, w += 2 * kPanel, out += 2 * kPanel * 2) {
    uint16_t first[kPanel], second[kPanel];
    uint32_t line[kPanel];
    store_bf16(first, load(w));
    store_bf16(second, load(w + kPanel));
    for (int64_t lane = 0; lane < kPanel; ++lane) line[lane] = uint32_t(first[lane]) | uint32_t(second[lane]) << 16;
    put_lanes(out, line, 1, lanes);
  }
}

// Where a group's integers go, and its scales.
struct Place {
  char *lines, *scales;
};

void put_scales(Place place, V16 scale, Lanes lanes) {
  uint16_t bits[kPanel];
  store_bf16(bits, scale);
  put_lanes(place.scales, bits, 1, lanes);
}

V16 inverse_of(V16 scale) { return where_greater(abs(scale), zero(), splat(1.0f) / scale, zero()); }

// The number of largest size in each lane's group, with its sign.
V16 extremes_of(const float* w) {
  V16 extreme = zero();
  for (int64_t i = 0; i < kGroup; ++i) {
    V16 value = load(w + i * kPanel);
    extreme = where_greater(abs(value), abs(extreme), value, extreme);
  }
  return extreme;
}

inline V16 in_steps(V16 w, V16 inverse, float least, float most) {
  return min(splat(most), max(splat(least), round_even(w * inverse)));
}

// Of some scales around the one that makes the extreme `least` steps, those with the least squared error; 0 where all
// values are. Scales are bfloat16.
V16 best_scales(const float* w, float least, float step, int tries) {
  V16 extreme = extremes_of(w), best = zero(), lowest = splat(INFINITY);
  for (int i = -tries; i <= tries; ++i) {
    uint16_t bits[kPanel];
    store_bf16(bits, extreme / splat(least + step * float(i)));
    V16 scale = load_bf16(bits), inverse = splat(1.0f) / scale, error = zero();
    for (int64_t k = 0; k < kGroup; ++k) {
      V16 value = load(w + k * kPanel), lost = value - in_steps(value, inverse, least, -1.0f - least) * scale;
      error = error + lost * lost;
    }
    error = where_greater(abs(scale), zero(), error, splat(INFINITY));
    best = where_greater(lowest, error, scale, best);
    lowest = where_greater(lowest, error, error, lowest);
  }
  return best;
}

// q of one k for the sixteen lanes.
void steps_to(int8_t* q, const float* w, V16 inverse, float least) {
  store_i8(q, to_int(in_steps(load(w), inverse, least, -1.0f - least)));
}

void put_int8(Place place, const float* w, Lanes lanes) {
  V16 scale = best_scales(w, -128.0f, 0.5f, 2), inverse = inverse_of(scale);
  constexpr int64_t side = kHasByteDots ? 4 : 2;  // k values of a column side by side
  int8_t lines[kGroup * kPanel];
  for (int64_t i = 0; i < kGroup; ++i) {
    int8_t q[kPanel];
    steps_to(q, w + i * kPanel, inverse, -128.0f);
    int8_t* line = lines + i / side * side * kPanel + i % side;
    for (int64_t lane = 0; lane < kPanel; ++lane) line[lane * side] = int8_t(q[lane] ^ (kHasByteDots ? -128 : 0));
  }
  if constexpr (kHasByteDots)
    put_lanes(place.lines, reinterpret_cast<const uint32_t*>(lines), kGroup / side, lanes);
  else
    put_lanes(place.lines, reinterpret_cast<const uint16_t*>(lines), kGroup / side, lanes);
  put_scales(place, scale, lanes);
}

// Where k i of eight goes among a lane's eight nibbles, counted from the lowest.
constexpr int64_t nibble_of(int64_t i) { return kHasByteDots ? i % 4 * 2 + i / 4 : i % 2 * 4 + i / 2; }

void put_int4(Place place, const float* w, Lanes lanes) {
  V16 scale = best_scales(w, -8.0f, 0.25f, 4), inverse = inverse_of(scale);
  uint32_t words[kGroup / 8 * kPanel] = {};
  for (int64_t i = 0; i < kGroup; ++i) {
    int8_t q[kPanel];
    steps_to(q, w + i * kPanel, inverse, -8.0f);
    for (int64_t lane = 0; lane < kPanel; ++lane)
      words[i / 8 * kPanel + lane] |= uint32_t(q[lane] + 8) << (4 * nibble_of(i % 8));
  }
  put_lanes(place.lines, words, kGroup / 8, lanes);
  put_scales(place, scale, lanes);
}

// k values from `start` on: `count` of them, zeros after them to the end of the last pair or group.
void put_span(const PackJob& job, char* panel, Lanes lanes, int64_t start, int64_t count, const float* w) {
  char* lines = panel + line_bytes(job.format, start);
  if (job.format == kFloat32) return put_lanes(lines, w, count, lanes);
  if (job.format == kBfloat16) return put_bf16(lines, w, count, lanes);
  if (job.format == kBfloat16Dot) return put_bf16_pairs(lines, w, count, lanes);
  char* scales = panel + line_bytes(job.format, padded_k(job.format, job.k)) + start / kGroup * kPanel * 2;
  for (int64_t i = 0; i < count; i += kGroup) {
    Place place{lines + line_bytes(job.format, i), scales + i / kGroup * kPanel * 2};
    job.format == kInt8 ? put_int8(place, w + i * kPanel, lanes) : put_int4(place, w + i * kPanel, lanes);
  }
}

}  // namespace

// Parts are of whole panels, so no two threads write the same line.
void pack(const PackJob& job, int64_t part, int64_t parts) {
  int64_t first_panel = job.first_row / kPanel, end_panel = num_panels(job.first_row + job.rows);
  Share share = share_of(end_panel - first_panel, part, parts);
  alignas(64) float w[kSpan * kPanel];
  for (int64_t panel = first_panel + share.from; panel < first_panel + share.to; ++panel) {
    int64_t first = panel * kPanel;
    Lanes lanes{std::max(job.first_row - first, int64_t(0)), std::min(job.first_row + job.rows - first, kPanel),
                first - job.first_row};
    char* out = static_cast<char*>(job.packed) + panel * panel_bytes(job.format, job.k);
    for (int64_t start = 0; start < job.k; start += kSpan) {
      int64_t count = std::min(kSpan, job.k - start);
      if (count < kSpan || lanes.to - lanes.from < kPanel) std::fill(w, w + kSpan * kPanel, 0.0f);
      read_any(job, lanes, start, count, w);
      put_span(job, out, lanes, start, count, w);
    }
  }
}

}  // namespace QUIRE_ISA
}  // namespace quire
