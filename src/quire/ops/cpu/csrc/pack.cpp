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
static_assert(kSpan % kInt8Group == 0 && kSpan % kInt4Group == 0);

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

// A group of eight bits: the largest value takes the largest step.
void put_int8(char* block, const float* w, Lanes lanes) {
  V16 largest = zero();
  for (int64_t i = 0; i < kInt8Group; ++i) largest = max(abs(load(w + i * kPanel)), largest);
  V16 scale = largest / splat(127.0f), inverse = where_greater(scale, zero(), splat(1.0f) / scale, zero());
  float scales[kPanel];
  store(scales, scale);
  uint16_t pairs[kInt8Group / 2 * kPanel];
  for (int64_t i = 0; i < kInt8Group / 2; ++i) {
    int8_t first[kPanel], second[kPanel];
    store_i8(first, to_int(load(w + 2 * i * kPanel) * inverse));
    store_i8(second, to_int(load(w + (2 * i + 1) * kPanel) * inverse));
    for (int64_t lane = 0; lane < kPanel; ++lane)
      pairs[i * kPanel + lane] = uint16_t(uint8_t(first[lane]) | uint8_t(second[lane]) << 8);
  }
  put_lanes(block, pairs, kInt8Group / 2, lanes);
  put_lanes(block + kInt8Group * kPanel, scales, 1, lanes);
}

inline V16 in_sixteen_steps(V16 w, V16 inverse) {
  return min(splat(7.0f), max(splat(-8.0f), round_even(w * inverse)));
}

// The scales of four bits with the least squared error among some around the two that use the whole range; 0 where all
// values are.
V16 int4_scales(const float* w) {
  V16 extreme = zero(), best = zero(), least = splat(INFINITY);
  for (int64_t i = 0; i < kInt4Group; ++i) {
    V16 value = load(w + i * kPanel);
    extreme = where_greater(abs(value), abs(extreme), value, extreme);
  }
  for (int step = -4; step <= 4; ++step) {
    uint16_t bits[kPanel];
    store_bf16(bits, extreme / splat(-8.0f + 0.25f * float(step)));
    V16 scale = load_bf16(bits), inverse = splat(1.0f) / scale, error = zero();
    for (int64_t i = 0; i < kInt4Group; ++i) {
      V16 value = load(w + i * kPanel), lost = value - in_sixteen_steps(value, inverse) * scale;
      error = error + lost * lost;
    }
    error = where_greater(abs(scale), zero(), error, splat(INFINITY));
    best = where_greater(least, error, scale, best);
    least = where_greater(least, error, error, least);
  }
  return best;
}

void put_int4(char* block, const float* w, Lanes lanes) {
  V16 scale = int4_scales(w);
  V16 inverse = where_greater(abs(scale), zero(), splat(1.0f) / scale, zero());
  uint16_t scales[kPanel];
  store_bf16(scales, scale);
  uint32_t words[kInt4Group / 8 * kPanel];
  for (int64_t line = 0; line < kInt4Group / 8; ++line) {
    // Four nibbles of even k, and of odd k: as numbers they are exact in float32.
    V16 sums[2] = {zero(), zero()};
    for (int64_t i = 7; i >= 0; --i) {
      V16 q = in_sixteen_steps(load(w + (line * 8 + i) * kPanel), inverse) + splat(8.0f);
      sums[i % 2] = sums[i % 2] * splat(16.0f) + q;
    }
    I16 even = to_int(sums[0]), odd = to_int(sums[1]);
    uint32_t parts[2][kPanel];
    std::memcpy(parts[0], &even, sizeof even);
    std::memcpy(parts[1], &odd, sizeof odd);
    for (int64_t lane = 0; lane < kPanel; ++lane) words[line * kPanel + lane] = parts[0][lane] | parts[1][lane] << 16;
  }
  put_lanes(block, words, kInt4Group / 8, lanes);
  put_lanes(block + kInt4Group * kPanel / 2, scales, 1, lanes);
}

// k values from `start` on: `count` of them, zeros after them to the end of the last group.
void put_span(const PackJob& job, char* panel, Lanes lanes, int64_t start, int64_t count, const float* w) {
  if (job.format == kFloat32) {
    put_lanes(panel + start * kPanel * 4, w, count, lanes);
  } else if (job.format == kBfloat16) {
    put_bf16(panel + start * kPanel * 2, w, count, lanes);
  } else if (job.format == kInt8) {
    for (int64_t i = 0; i < count; i += kInt8Group)
      put_int8(panel + (start + i) / kInt8Group * kInt8Block, w + i * kPanel, lanes);
  } else {
    for (int64_t i = 0; i < count; i += kInt4Group)
      put_int4(panel + (start + i) / kInt4Group * kInt4Block, w + i * kPanel, lanes);
  }
}

}  // namespace

// Threads share out whole panels, so no two write the same line.
void pack(const PackJob& job, int thread, int threads) {
  int64_t first_panel = job.first_row / kPanel, end_panel = num_panels(job.first_row + job.rows);
  Share share = share_of(end_panel - first_panel, thread, threads);
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
