// Paged attention: the step's K and V go into their pages, then every query attends to its row's pages.
//
// Pages of a layer: K [P, K, D, S], transposed within the page so that sixteen keys are a line, and V [P, K, S, D].
// A tile is a few queries of one row with all heads that share a kv head. Keys come in blocks of 64 positions and
// partitions of 512, both counted from position 0: a query's sums are the same in whatever tile, batch or chunk it
// comes. Softmax is online (Milakov & Gimelshein, 2018); partitions are merged in order.
//
// Op: p q, k, v, kv, out, alibi slopes or null; n H, K, D, strides of q, k, v rows, pages, kv dtype, window (0: none),
// alibi before scale; f scale, softcap (0: none). One row per token.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels.h"
#include "vec.h"

namespace quire {
namespace QUIRE_ISA {
namespace {

constexpr int64_t kBlock = 64;
constexpr int64_t kPartition = 512;
constexpr int kQueryRows = 24;
constexpr int kStep = 6;  // query rows that share a line of keys or values in registers
constexpr int64_t kMaxHead = 256;
constexpr float kNothing = -std::numeric_limits<float>::infinity();

struct Job {
  const float *q, *k, *v;
  void* kv;
  float* out;
  const float* slopes;
  int64_t heads, kv_heads, head, q_stride, k_stride, v_stride, pages;
  bool is_bf16;
  int64_t window;
  bool alibi_first;
  float scale, softcap;
};

Job job_of(const Op& op) {
  return {static_cast<const float*>(op.p[0]),
          static_cast<const float*>(op.p[1]),
          static_cast<const float*>(op.p[2]),
          op.p[3],
          static_cast<float*>(op.p[4]),
          static_cast<const float*>(op.p[5]),
          op.n[0],
          op.n[1],
          op.n[2],
          op.n[3],
          op.n[4],
          op.n[5],
          op.n[6],
          op.n[7] != 0,
          op.n[8],
          op.n[9] != 0,
          op.f[0],
          op.f[1]};
}

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
void write_pages(const Job& job, const Context& c) {
  using T = typename Page::Type;
  int64_t size = c.plan->page_size, head = job.head, page_numbers = size * head;
  T* keys = static_cast<T*>(job.kv);
  T* values = keys + job.pages * job.kv_heads * page_numbers;
  c.meet(each_row(c, c.tokens, [&](int64_t t) {
    int64_t slot = c.plan->slots[t], page = slot / size, at = slot % size;
    for (int64_t h = 0; h < job.kv_heads; ++h) {
      const float *k = job.k + t * job.k_stride + h * head, *v = job.v + t * job.v_stride + h * head;
      T* key = keys + (page * job.kv_heads + h) * page_numbers + at;
      T* value = values + (page * job.kv_heads + h) * page_numbers + at * head;
      for (int64_t d = 0; d < head; ++d) {
        key[d * size] = Page::from(k[d]);
        value[d] = Page::from(v[d]);
      }
    }
  }));
}

// Scratch of one tile.
struct Tile {
  float q[kQueryRows * kMaxHead];       // scaled
  float sums[kQueryRows * kMaxHead];    // of the partition
  float result[kQueryRows * kMaxHead];  // of the partitions so far
  float scores[kQueryRows * kBlock];
  float keys[kBlock * kMaxHead];        // of pages smaller than a line
  float top[32], total[32], all_top[32], all_total[32], change[32];
  int64_t position[kQueryRows];
  float slope[kQueryRows];
  int rows;
};

// scores[row][key] = q . k for `rows` rows and sixteen keys, chained over d in order.
template <int R, class Load>
void score_line(const float* q, int64_t head, float* scores, Load keys_at) {
  V16 sums[R];
  for (int r = 0; r < R; ++r) sums[r] = zero();
  for (int64_t d = 0; d < head; ++d) {
    V16 line = keys_at(d);
    for (int r = 0; r < R; ++r) sums[r] = fma(splat(q[d * R + r]), line, sums[r]);
  }
  for (int r = 0; r < R; ++r) store(scores + r * kBlock, sums[r]);
}

template <class Load>
void score_rows(int rows, const float* q, int64_t head, float* scores, Load keys_at) {
  int r = 0;
  for (; r + kStep <= rows; r += kStep) score_line<kStep>(q + r * head, head, scores + r * kBlock, keys_at);
  switch (rows - r) {
    case 1: return score_line<1>(q + r * head, head, scores + r * kBlock, keys_at);
    case 2: return score_line<2>(q + r * head, head, scores + r * kBlock, keys_at);
    case 3: return score_line<3>(q + r * head, head, scores + r * kBlock, keys_at);
    case 4: return score_line<4>(q + r * head, head, scores + r * kBlock, keys_at);
    case 5: return score_line<5>(q + r * head, head, scores + r * kBlock, keys_at);
    default: return;
  }
}

// sums[row][d..] = sums * change + p[row] . v over keys [from, to) in order, for sixteen d.
template <int R, class Load>
void value_line(const float* p, const float* change, int64_t from, int64_t to, float* sums, int64_t head, int64_t d,
                Load value_at) {
  // The sums stay in registers only if every loop over rows is unrolled; the compiler is told so.
  V16 acc[R];
  bool whole = d + kLanes <= head;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
    acc[r] = (whole ? load(sums + r * head + d) : load_part(sums + r * head + d, head - d)) * splat(change[r]);
  p += from;
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

template <class Load>
void value_rows(Tile& t, int64_t from, int64_t to, int64_t head, Load value_at) {
  for (int64_t d = 0; d < head; d += kLanes) {
    int r = 0;
    for (; r + kStep <= t.rows; r += kStep)
      value_line<kStep>(t.scores + r * kBlock, t.change + r, from, to, t.sums + r * head, head, d, value_at);
    const float *p = t.scores + r * kBlock, *change = t.change + r;
    float* sums = t.sums + r * head;
    switch (t.rows - r) {
      case 1: value_line<1>(p, change, from, to, sums, head, d, value_at); break;
      case 2: value_line<2>(p, change, from, to, sums, head, d, value_at); break;
      case 3: value_line<3>(p, change, from, to, sums, head, d, value_at); break;
      case 4: value_line<4>(p, change, from, to, sums, head, d, value_at); break;
      case 5: value_line<5>(p, change, from, to, sums, head, d, value_at); break;
      default: break;
    }
  }
}

float rounded_bf16(float x) { return bf16_to_float(float_to_bf16(x)); }

// Cap, bias and mask of a block of scores that begins at position `start`, then p = e^(score - top) in their place.
void softmax_block(const Job& job, Tile& t, int64_t start) {
  float new_top[32];
  for (int r = 0; r < t.rows; ++r) {
    float* s = t.scores + r * kBlock;
    int64_t last = t.position[r] - start, first = job.window ? t.position[r] - job.window + 1 - start : 0;
    if (job.softcap > 0)
      for (int64_t i = 0; i < kBlock; i += kLanes)
        store(s + i, splat(job.softcap) * tanh(load(s + i) / splat(job.softcap)));
    if (job.slopes)
      for (int64_t i = 0; i < kBlock; ++i) {
        float position = float(start + i);
        s[i] += job.alibi_first ? rounded_bf16(rounded_bf16(t.slope[r]) * rounded_bf16(position)) * job.scale
                                : t.slope[r] * position;
      }
    for (int64_t i = std::max<int64_t>(last + 1, 0); i < kBlock; ++i) s[i] = kNothing;
    for (int64_t i = 0; i < std::min(first, kBlock); ++i) s[i] = kNothing;
    float top = max_of(max(max(load(s), load(s + 16)), max(load(s + 32), load(s + 48))));
    new_top[r] = top > t.top[r] ? top : t.top[r];
  }
  float difference[32] = {};
  for (int r = 0; r < t.rows; ++r) difference[r] = t.top[r] == kNothing ? kNothing : t.top[r] - new_top[r];
  store(t.change, exp(load(difference)));
  store(t.change + kLanes, exp(load(difference + kLanes)));
  for (int r = 0; r < t.rows; ++r) {
    float* s = t.scores + r * kBlock;
    // Nothing visible so far: every e^ below must be 0, and -inf - -inf would not be.
    V16 top = splat(new_top[r] == kNothing ? 0.0f : new_top[r]), sum = zero();
    for (int64_t i = 0; i < kBlock; i += kLanes) {
      V16 p = exp(load(s + i) - top);
      store(s + i, p);
      sum = sum + p;
    }
    t.total[r] = t.total[r] * t.change[r] + sum_of(sum);
    t.top[r] = new_top[r];
  }
}

void start_partition(Tile& t, int64_t head) {
  std::fill(t.sums, t.sums + t.rows * head, 0.0f);
  std::fill(t.top, t.top + 32, kNothing);
  std::fill(t.total, t.total + 32, 0.0f);
}

void merge_partition(Tile& t, int64_t head) {
  float before[32] = {}, now[32] = {};
  for (int r = 0; r < t.rows; ++r) {
    float top = t.top[r] > t.all_top[r] ? t.top[r] : t.all_top[r];
    before[r] = t.all_top[r] == kNothing ? kNothing : t.all_top[r] - top;
    now[r] = t.top[r] == kNothing ? kNothing : t.top[r] - top;
    t.all_top[r] = top;
  }
  for (int i = 0; i < 32; i += kLanes) {
    store(before + i, exp(load(before + i)));
    store(now + i, exp(load(now + i)));
  }
  for (int r = 0; r < t.rows; ++r) {
    t.all_total[r] = t.all_total[r] * before[r] + t.total[r] * now[r];
    V16 a = splat(before[r]), b = splat(now[r]);
    for (int64_t d = 0; d < head; d += kLanes) {
      float* result = t.result + r * head + d;
      store_part(result, load_part(result, head - d) * a + load_part(t.sums + r * head + d, head - d) * b, head - d);
    }
  }
}

// What one tile computes: some queries of a row, for some of the heads that share a kv head.
struct Task {
  int64_t row, kv_head, first, count, head, heads;
};

template <class Page>
void attend(const Job& job, const Context& c, Tile& t, Task task) {
  using T = typename Page::Type;
  const Plan& plan = *c.plan;
  int64_t row = task.row, kv_head = task.kv_head, first = task.first, count = task.count, group = task.heads;
  int64_t head = job.head, size = plan.page_size, numbers = size * head;
  int64_t base = plan.context_lens[row] - plan.query_lens[row] + first, token = plan.first_tokens[row] + first;
  const int32_t* pages = plan.page_tables + row * plan.table_stride;
  const T* keys = static_cast<const T*>(job.kv);
  const T* values = keys + job.pages * job.kv_heads * numbers;
  auto page_at = [&](const T* from, int64_t position) {
    return from + (int64_t(pages[position / size]) * job.kv_heads + kv_head) * numbers;
  };
  t.rows = int(count * group);
  for (int r = 0; r < t.rows; ++r) {
    const float* q = job.q + (token + r / group) * job.q_stride + (task.head + r % group) * head;
    // Rows that share registers lie side by side: one address serves them all.
    int first_row = r / kStep * kStep, side = std::min(kStep, t.rows - first_row);
    float* place = t.q + first_row * head + (r - first_row);
    for (int64_t d = 0; d < head; ++d) place[d * side] = q[d] * job.scale;
    t.position[r] = base + r / group;
    t.slope[r] = job.slopes ? job.slopes[task.head + r % group] : 0.0f;
  }
  std::fill(t.result, t.result + t.rows * head, 0.0f);
  std::fill(t.all_top, t.all_top + 32, kNothing);
  std::fill(t.all_total, t.all_total + 32, 0.0f);
  int64_t end = base + count, lowest = job.window ? std::max<int64_t>(0, base - job.window + 1) : 0;
  for (int64_t part = lowest / kPartition * kPartition; part < end; part += kPartition) {
    start_partition(t, head);
    int64_t stop = std::min(part + kPartition, end);
    for (int64_t start = std::max(part, lowest / kBlock * kBlock); start < stop; start += kBlock) {
      int64_t known = std::min(start + kBlock, end) - start;
      for (int64_t line = 0; line < kBlock; line += kLanes) {
        if (line >= known) {  // no page need be there
          for (int r = 0; r < t.rows; ++r) std::fill_n(t.scores + r * kBlock + line, kLanes, kNothing);
        } else if (size >= kLanes) {
          const T* page = page_at(keys, start + line) + (start + line) % size;
          score_rows(t.rows, t.q, head, t.scores + line, [=](int64_t d) { return Page::get(page + d * size); });
        } else {
          for (int64_t i = 0; i < kLanes; ++i) {
            int64_t position = start + line + i;
            const T* page = line + i < known ? page_at(keys, position) + position % size : nullptr;
            for (int64_t d = 0; d < head; ++d) t.keys[d * kLanes + i] = page ? Page::one(page[d * size]) : 0.0f;
          }
          const float* gathered = t.keys;
          score_rows(t.rows, t.q, head, t.scores + line, [=](int64_t d) { return load(gathered + d * kLanes); });
        }
      }
      softmax_block(job, t, start);
      // Nobody in the tile sees keys before the window: what lies there is not read, though its weight would be 0.
      int64_t skipped = std::max<int64_t>(0, lowest - start);
      const T* rows[kBlock];
      for (int64_t i = skipped; i < known; ++i) rows[i] = page_at(values, start + i) + (start + i) % size * head;
      if (head % kLanes == 0)
        value_rows(t, skipped, known, head, [&](int64_t key, int64_t d) { return Page::get(rows[key] + d); });
      else
        value_rows(t, skipped, known, head, [&](int64_t key, int64_t d) {
          float line[kLanes] = {};
          for (int64_t i = 0; i < std::min<int64_t>(kLanes, head - d); ++i) line[i] = Page::one(rows[key][d + i]);
          return load(line);
        });
    }
    merge_partition(t, head);
  }
  for (int r = 0; r < t.rows; ++r) {
    float* out = job.out + ((token + r / group) * job.heads + task.head + r % group) * head;
    V16 total = splat(t.all_total[r]);
    for (int64_t d = 0; d < head; d += kLanes)
      store_part(out + d, load_part(t.result + r * head + d, head - d) / total, head - d);
  }
}

template <class Page>
int64_t run(const Job& job, const Context& c) {
  write_pages<Page>(job, c);
  const Plan& plan = *c.plan;
  static_assert(sizeof(Tile) <= kLocalScratch, "a tile must fit a thread's scratch");
  Tile& tile = *reinterpret_cast<Tile*>(c.local);
  // More heads to a kv head than a tile has rows (Falcon 7B has 71) are cut into parts.
  int64_t group = job.heads / job.kv_heads, parts = (group + kQueryRows - 1) / kQueryRows;
  int64_t heads = (group + parts - 1) / parts, per_tile = kQueryRows / heads, lanes = job.kv_heads * parts;
  int64_t total = 0, before = 0;
  for (int64_t row = 0; row < plan.num_rows; ++row)
    total += (plan.query_lens[row] + per_tile - 1) / per_tile * lanes;
  int64_t task = c.take(total);
  // Rows from the last to the first: chunks of prompts, the largest tasks, mostly come behind the decodes.
  for (int64_t row = plan.num_rows - 1; row >= 0; --row) {
    int64_t tiles = (plan.query_lens[row] + per_tile - 1) / per_tile, tasks = tiles * lanes;
    for (; task >= 0 && task < before + tasks; task = c.take(total)) {
      // Later queries see more keys, so they go first.
      int64_t index = tiles - 1 - (task - before) / lanes, kv_head = (task - before) % lanes / parts;
      int64_t first = index * per_tile, skipped = (task - before) % parts * heads;
      attend<Page>(job, c, tile,
                   {row, kv_head, first, std::min(per_tile, plan.query_lens[row] - first), kv_head * group + skipped,
                    std::min(heads, group - skipped)});
    }
    before += tasks;
  }
  return total;
}

}  // namespace

int64_t attention(const Op& op, const Context& c) {
  Job job = job_of(op);
  return job.is_bf16 ? run<Bfloat16Page>(job, c) : run<Float32Page>(job, c);
}

}  // namespace QUIRE_ISA
}  // namespace quire
