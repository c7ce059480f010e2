// The rows' tokens: read where a step needs them, and appended to when it has drawn. Formulas: quire/ops/sampling.py.
#include <limits>

#include "kernels.h"

namespace quire {
namespace QUIRE_ISA {

// p tokens int32, places int64, out int64. A step has too few of them to be shared out.
int64_t read_tokens(const Op& op, const Context& c) {
  const int32_t* tokens = static_cast<const int32_t*>(op.p[0]);
  const int64_t* places = static_cast<const int64_t*>(op.p[1]);
  int64_t* out = static_cast<int64_t*>(op.p[2]);
  if (c.take(1) == 0)
    for (int64_t i = 0, count = c.tokens * op.rows; i < count; ++i) out[i] = tokens[places[i]];
  return 1;
}

// p tokens int32, places int64, ids int64.
int64_t append_tokens(const Op& op, const Context& c) {
  int32_t* tokens = static_cast<int32_t*>(op.p[0]);
  const int64_t *places = static_cast<const int64_t*>(op.p[1]), *ids = static_cast<const int64_t*>(op.p[2]);
  if (c.take(1) == 0)
    for (int64_t i = 0, count = c.tokens * op.rows; i < count; ++i) tokens[places[i] + 1] = int32_t(ids[i]);
  return 1;
}

// p logits, lines int64, masks uint32; n V, row stride, words of a mask. Bit v % 32 of word v / 32 keeps token v.
int64_t mask_tokens(const Op& op, const Context& c) {
  return each_row(c, c.tokens * op.rows, [&](int64_t i) {
    float* x = static_cast<float*>(op.p[0]) + static_cast<const int64_t*>(op.p[1])[i] * op.n[1];
    const uint32_t* mask = static_cast<const uint32_t*>(op.p[2]) + i * op.n[2];
    for (int64_t word = 0, start = 0; start < op.n[0]; ++word, start += 32) {
      uint32_t bits = mask[word];
      if (bits == ~uint32_t(0)) continue;
      int64_t count = op.n[0] - start < 32 ? op.n[0] - start : 32;
      for (int64_t j = 0; j < count; ++j)
        x[start + j] = bits >> j & 1 ? x[start + j] : -std::numeric_limits<float>::infinity();
    }
  });
}

}  // namespace QUIRE_ISA
}  // namespace quire
