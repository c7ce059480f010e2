// The pages of paged attention: what an attention op says, how numbers lie in a page, where a row's pages are.
// Knows: the layout and its formats. Does not know: queries and scores.
//
// Pages of a layer: K [P, K, D, S], transposed within the page so that sixteen keys are a line, then V [P, K, S, D]. Pages
// of pairs (attention_dots.h) are laid out in their own way.
// In int8 pages the numbers of a kv head are followed by S float32 scales, one for each token: a number is int8 * scale
// with scale = (largest magnitude of the head's D numbers) / 127, or NaN where one of them is infinite or NaN.
#pragma once

#include <algorithm>
#include <cstdint>

#include "op.h"
#include "vec.h"

namespace quire {
namespace QUIRE_ISA {

// An attention op with its fields named; attention.cpp says what they mean.
struct Job {
  const float *q, *k, *v;
  char* kv;
  float* out;
  const float* slopes;
  int64_t heads, kv_heads, head, q_stride, k_stride, v_stride, pages;
  int64_t format;
  int64_t window;
  bool alibi_first;
  bool both_ways;  // a query sees the keys behind it too; no window and no slopes then
  float scale, softcap;
};

enum PageFormat : int64_t { kFloat32Pages, kBfloat16Pages, kInt8Pages };

struct Float32Page {
  using Type = float;
  static constexpr int64_t kNumbersAcross = 1;  // of a token in a line of keys
  static constexpr bool kScaled = false;
  static V16 get(const float* p) { return load(p); }
  static float one(float x) { return x; }
  static void put(float* p, V16 x) { store(p, x); }
};
struct Bfloat16Page {
  using Type = uint16_t;
  static constexpr int64_t kNumbersAcross = 1;
  static constexpr bool kScaled = false;
  static V16 get(const uint16_t* p) { return load_bf16(p); }
  static float one(uint16_t x) { return bf16_to_float(x); }
  static void put(uint16_t* p, V16 x) { store_bf16(p, x); }
};

struct Int8Page {
  using Type = int8_t;
  static constexpr int64_t kNumbersAcross = 1;
  static constexpr bool kScaled = true;
  static V16 get(const int8_t* p) { return load_i8(p); }
  static float one(int8_t x) { return float(x); }
  // The order makes a NaN 127: its scale says that it is none.
  static void put(int8_t* p, V16 x) { store_i8(p, to_int(max(min(x, splat(127.0f)), splat(-127.0f)))); }
};

inline float int8_scale(const float* x, int64_t head) {
  V16 largest = zero(), none = zero();  // none: 0, or NaN where a number is infinite or NaN
  for (int64_t d = 0; d < head; d += kLanes) {
    V16 line = load_part(x + d, head - d);
    largest = max(largest, abs(line));
    none = none + line * zero();
  }
  return largest_of(largest) / 127.0f + sum_of(none);
}

// Bytes of K, and as many of V, of one kv head in one page.
template <class Page>
int64_t part_bytes(int64_t size, int64_t head) {
  return size * (head * int64_t(sizeof(typename Page::Type)) + (Page::kScaled ? int64_t(sizeof(float)) : 0));
}

// A row's K pages or V pages of one kv head.
template <class Page>
struct RowPages {
  using T = typename Page::Type;
  const char* first;  // of page 0
  int64_t stride;     // bytes from a page to the next
  int64_t size, head;
  const int32_t* table;

  const T* at(int64_t index) const { return reinterpret_cast<const T*>(first + table[index] * stride); }
  const float* scales_at(int64_t index) const { return reinterpret_cast<const float*>(at(index) + size * head); }
};

template <class Page>
RowPages<Page> row_pages(const Job& job, const Plan& plan, int64_t row, int64_t kv_head, bool values) {
  int64_t bytes = part_bytes<Page>(plan.page_size, job.head), all = job.pages * job.kv_heads * bytes;
  return {job.kv + kv_head * bytes + (values ? all : 0), job.kv_heads * bytes, plan.page_size, job.head,
          plan.page_tables + row * plan.table_stride};
}

// The block of keys and values that a thread reads next, fetched step by step, keys while this block's keys are read and
// values while its values are: memory then works all the time. Pages lie anywhere, and what the processor fetches by
// itself ends with a page.
template <class Page>
class NextBlock {
 public:
  // Of `count` keys from position `start` on. For pages of whole chunks.
  NextBlock(const RowPages<Page>& k, const RowPages<Page>& v, int64_t start, int64_t count)
      : key_step_(kBytes / kLanes * k.size), steps_(k.head / Page::kNumbersAcross) {
    for (int i = 0; i < kChunks; ++i) {
      int64_t position = start + std::min<int64_t>(i, (count - 1) / kLanes) * kLanes, offset = position % k.size;
      keys_[i] = reinterpret_cast<const char*>(k.at(position / k.size)) + offset / kLanes * kBytes;
      values_[i] = reinterpret_cast<const char*>(v.at(position / v.size) + offset * v.head);
    }
  }
  void key() { step(keys_, key_step_, keys_done_); }
  void value() { step(values_, kBytes, values_done_); }
  void finish() {
    while (keys_done_ < steps_) key();
    while (values_done_ < steps_) value();
  }

 private:
  static constexpr int kChunks = 4;  // of sixteen keys
  static constexpr int64_t kBytes = kLanes * int64_t(sizeof(typename Page::Type)) * Page::kNumbersAcross;

  void step(const char* const* at, int64_t size, int64_t& done) const {
    if (done == steps_) return;
    for (int chunk = 0; chunk < kChunks; ++chunk) fetch_close(at[chunk] + done * size);
    ++done;
  }

  const char *keys_[kChunks], *values_[kChunks];
  int64_t key_step_, steps_, keys_done_ = 0, values_done_ = 0;
};
// Where nothing is to be fetched.
struct NoBlock {
  void key() {}
  void value() {}
  void finish() {}
};

// Puts one head's numbers of the token `at` into its page.
template <class Page>
void write_head(const float* x, int64_t head, char* part, int64_t size, int64_t at, bool transposed) {
  using T = typename Page::Type;
  T* numbers = reinterpret_cast<T*>(part);
  float inverse = 1.0f;
  if constexpr (Page::kScaled) {
    float scale = int8_scale(x, head);
    reinterpret_cast<float*>(numbers + size * head)[at] = scale;
    inverse = scale > 0 ? 1.0f / scale : 0.0f;
  }
  T* place = numbers + (transposed ? at : at * head);
  int64_t apart = transposed ? size : 1;
  for (int64_t d = 0; d < head; d += kLanes) {
    int64_t count = head - d < kLanes ? head - d : kLanes;
    V16 line = load_part(x + d, count);
    T found[kLanes];
    Page::put(found, Page::kScaled ? line * splat(inverse) : line);
    for (int64_t i = 0; i < count; ++i) place[(d + i) * apart] = found[i];
  }
}

// K and V of one head of the token `at` into their pages.
template <class Page>
void write_heads(Page, const float* k, const float* v, int64_t head, char* keys, char* values, int64_t size, int64_t at) {
  write_head<Page>(k, head, keys, size, at, true);
  write_head<Page>(v, head, values, size, at, false);
}

}  // namespace QUIRE_ISA
}  // namespace quire
