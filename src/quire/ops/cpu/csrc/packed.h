// How weights lie in memory once packed: panels of sixteen output columns, streamed from front to end.
// Knows: the layout and its sizes. Does not know: who packs and who multiplies.
//
// float32   [panel][k][16]
// bfloat16  [panel][k][16], lanes in the order 0 8 1 9 2 10 ..., so that one shift and one mask widen a 32-byte line
// int8      [panel][k / 64] of { pairs [32][16][2] int8, scales [16] float32 }: w = q * scale
// int4      [panel][k / 32] of { nibbles [4][2][16 words], scales [16] bfloat16 }: w = (q - 8) * scale; nibble i of a
//           word holds pair i of four; the words of a line are eight columns times two rows
#pragma once

#include <cstdint>

#include "op.h"

namespace quire {

constexpr int64_t kPanel = 16;
constexpr int64_t kInt8Group = 64;
constexpr int64_t kInt4Group = 32;
constexpr int64_t kInt8Block = kInt8Group * kPanel + kPanel * 4;
constexpr int64_t kInt4Block = kInt4Group * kPanel / 2 + kPanel * 2;

constexpr int64_t rounded_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

inline int64_t panel_bytes(int64_t format, int64_t k) {
  switch (format) {
    case kFloat32:
      return k * kPanel * 4;
    case kBfloat16:
      return k * kPanel * 2;
    case kInt8:
      return rounded_up(k, kInt8Group) / kInt8Group * kInt8Block;
    default:
      return rounded_up(k, kInt4Group) / kInt4Group * kInt4Block;
  }
}

inline int64_t num_panels(int64_t n) { return (n + kPanel - 1) / kPanel; }

// Where a column's bfloat16 lies among the sixteen of a line.
inline int64_t bf16_lane(int64_t column) { return column < 8 ? 2 * column : 2 * (column - 8) + 1; }

}  // namespace quire
