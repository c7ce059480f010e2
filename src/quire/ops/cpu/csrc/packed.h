// How weights lie in memory once packed: panels of sixteen output columns, streamed from front to end.
// Knows: the layouts and their sizes. Does not know: who packs and who multiplies.
//
// float32       [panel][k][16]
// bfloat16      [panel][k][16], lanes in the order 0 8 1 9 2 10 ..., so that one shift and one mask widen a 32-byte line
// bfloat16_dot  [panel][k / 2][16][2]: two k of a column side by side, as dot products of pairs take them
// int8          [panel] of lines, then scales [k / 32][16] bfloat16: w = q * scale, q from -128 to 127
// int4          [panel] of lines, then scales as int8's: w = (q - 8) * scale, q from 0 to 15
//
// A line of integers is 64 bytes. What it holds depends on the instruction set (kHasByteDots in vec.h):
//            products of pairs of int16          products of four bytes
//   int8     [k / 2][16][2], two's complement    [k / 4][16][4], q + 128
//   int4     [k / 8][16][2] words; nibble i of   [k / 8][16][4]; the low nibble of a byte is one of the first four k,
//            a word holds pair i of four         the high one of the last four
#pragma once

#include <cstdint>

#include "op.h"

namespace quire {

constexpr int64_t kPanel = 16;
constexpr int64_t kGroup = 32;  // k values of a column that share a scale
constexpr int64_t kLine = 64;

constexpr int64_t rounded_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

constexpr bool is_integer(int64_t format) { return format == kInt8 || format == kInt4; }

// k as it is stored: with zeros up to the end of the last pair or group.
inline int64_t padded_k(int64_t format, int64_t k) {
  return is_integer(format) ? rounded_up(k, kGroup) : format == kBfloat16Dot ? rounded_up(k, 2) : k;
}

// Bytes of a panel's weights over `padded` k values, without scales.
inline int64_t line_bytes(int64_t format, int64_t padded) {
  switch (format) {
    case kFloat32:
      return padded * kPanel * 4;
    case kBfloat16:
    case kBfloat16Dot:
      return padded * kPanel * 2;
    case kInt8:
      return padded * kPanel;
    default:
      return padded * kPanel / 2;
  }
}

// Bytes of a panel; a whole number of lines, so that every panel of integers begins at one.
inline int64_t panel_bytes(int64_t format, int64_t k) {
  int64_t padded = padded_k(format, k), scales = is_integer(format) ? padded / kGroup * kPanel * 2 : 0;
  return line_bytes(format, padded) + rounded_up(scales, kLine);
}

inline int64_t num_panels(int64_t n) { return (n + kPanel - 1) / kPanel; }

// Where a column's bfloat16 lies among the sixteen of a line.
inline int64_t bf16_lane(int64_t column) { return column < 8 ? 2 * column : 2 * (column - 8) + 1; }

}  // namespace quire
