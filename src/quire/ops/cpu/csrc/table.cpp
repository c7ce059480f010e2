// The kernels of one instruction set as a table.
#include "kernels.h"

#define QUIRE_TEXT(name) #name
#define QUIRE_NAME(name) QUIRE_TEXT(name)

namespace quire {
namespace QUIRE_ISA {
namespace {

size_t shared_scratch(const Op& op, int64_t tokens) {
  if (op.kind == kLinear) return linear_scratch(op, tokens);
  if (op.kind == kExperts) return experts_scratch(op, tokens);
  if (op.kind == kDraw) return draw_scratch(op, tokens);
  return 0;
}

}  // namespace

extern const KernelTable table;
const KernelTable table = {
    QUIRE_NAME(QUIRE_ISA),
    {embedding, linear, rms_norm, layer_norm, rope, activation, gated_activation, softcap, add, attention, route,
     experts, greedy, draw, uniform, read_tokens, append_tokens, mask_tokens},
    shared_scratch,
    pack,
};

}  // namespace QUIRE_ISA
}  // namespace quire
