// The rows' tokens: read where a step needs them, and appended to when it has drawn. Formulas: quire/ops/sampling.py.
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

}  // namespace QUIRE_ISA
}  // namespace quire
