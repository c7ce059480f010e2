// The pages of paged attention: what an attention op says, how numbers lie in a page, where a row's pages are.
// Knows: the layout and its formats. Does not know: queries and scores.
//
// Pages of a layer: K [P, K, D, S], transposed within the page so that sixteen keys are a line, then V [P, K, S, D].
#pragma once

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
  float scale, softcap;
};

enum PageFormat : int64_t { kFloat32Pages, kBfloat16Pages };

struct Float32Page {
  using Type = float;
  static V16 get(const float* p) { return load(p); }
  static float one(float x) { return x; }
  static void put(float* p, V16 x) { store(p, x); }
};
struct Bfloat16Page {
  using Type = uint16_t;
  static V16 get(const uint16_t* p) { return load_bf16(p); }
  static float one(uint16_t x) { return bf16_to_float(x); }
  static void put(uint16_t* p, V16 x) { store_bf16(p, x); }
};

// Bytes of K, and as many of V, of one kv head in one page.
template <class Page>
int64_t part_bytes(int64_t size, int64_t head) {
  return size * head * int64_t(sizeof(typename Page::Type));
}

// A row's K pages or V pages of one kv head.
template <class Page>
struct RowPages {
  using T = typename Page::Type;
  const char* first;  // of page 0
  int64_t stride;     // bytes from a page to the next
  int64_t size;
  const int32_t* table;

  const T* at(int64_t index) const { return reinterpret_cast<const T*>(first + table[index] * stride); }
};

template <class Page>
RowPages<Page> row_pages(const Job& job, const Plan& plan, int64_t row, int64_t kv_head, bool values) {
  int64_t bytes = part_bytes<Page>(plan.page_size, job.head), all = job.pages * job.kv_heads * bytes;
  return {job.kv + kv_head * bytes + (values ? all : 0), job.kv_heads * bytes, plan.page_size,
          plan.page_tables + row * plan.table_stride};
}

// Puts K and V of the tokens [from, to) of the step into their pages.
template <class Page>
void write_pages(const Job& job, const Plan& plan, int64_t from, int64_t to) {
  using T = typename Page::Type;
  int64_t size = plan.page_size, head = job.head, bytes = part_bytes<Page>(size, head);
  T line[kLanes];
  for (int64_t t = from; t < to; ++t) {
    int64_t slot = plan.slots[t], page = slot / size, at = slot % size;
    for (int64_t h = 0; h < job.kv_heads; ++h) {
      const float *k = job.k + t * job.k_stride + h * head, *v = job.v + t * job.v_stride + h * head;
      char* part = job.kv + (page * job.kv_heads + h) * bytes;
      T* key = reinterpret_cast<T*>(part) + at;
      T* value = reinterpret_cast<T*>(part + job.pages * job.kv_heads * bytes) + at * head;
      for (int64_t d = 0; d < head; d += kLanes) {
        int64_t count = head - d < kLanes ? head - d : kLanes;
        Page::put(line, load_part(k + d, count));
        for (int64_t i = 0; i < count; ++i) key[(d + i) * size] = line[i];
        Page::put(line, load_part(v + d, count));
        for (int64_t i = 0; i < count; ++i) value[d + i] = line[i];
      }
    }
  }
}

}  // namespace QUIRE_ISA
}  // namespace quire
