// Sixteen float lanes, whatever the registers of the instruction set are: all kernels are written on them once.
// Knows: loads, stores, arithmetic on 16 lanes and the packed forms of 16 weights. Does not know: any operation.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace quire {

constexpr int kLanes = 16;

inline float bf16_to_float(uint16_t bits) {
  uint32_t word = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

// Round to nearest, ties to even; NaN stays NaN.
inline uint16_t float_to_bf16(float value) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  uint32_t rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16, nan = (word >> 16) | 0x40;
  return uint16_t((word & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

// Exact, as are all of them in float32.
inline float half_to_float(uint16_t h) {
  int32_t exponent = h >> 10 & 31, fraction = h & 0x3ff;
  int32_t normal = (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
  float tiny = float(fraction) * 0x1p-24f, value;
  int32_t tiny_bits;
  std::memcpy(&tiny_bits, &tiny, 4);
  uint32_t bits = uint32_t(exponent ? normal : tiny_bits) | uint32_t(h & 0x8000) << 16;
  std::memcpy(&value, &bits, 4);
  return value;
}

namespace QUIRE_ISA {

// Whether integer weights meet bytes, four at a time, rather than pairs of int16.
#if defined(__AVX512VNNI__)
constexpr bool kHasByteDots = true;
#else
constexpr bool kHasByteDots = false;
#endif
// Thirty-two registers of sixteen lanes, rather than the room of eight.
#if defined(__AVX512F__)
constexpr bool kHasManyRegisters = true;
#else
constexpr bool kHasManyRegisters = false;
#endif

#if defined(__AVX512F__)

struct V16 {
  __m512 v;
};
inline V16 zero() { return {_mm512_setzero_ps()}; }
inline V16 splat(float x) { return {_mm512_set1_ps(x)}; }
inline V16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, V16 a) { _mm512_storeu_ps(p, a.v); }
inline V16 fma(V16 a, V16 b, V16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline V16 operator+(V16 a, V16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline V16 operator-(V16 a, V16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline V16 operator*(V16 a, V16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline V16 operator/(V16 a, V16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline V16 max(V16 a, V16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline V16 min(V16 a, V16 b) { return {_mm512_min_ps(a.v, b.v)}; }
// For max and min the second operand wins where one is NaN.
inline V16 zero_where_less(V16 a, V16 x, float limit) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_NLT_UQ), a.v)};
}
inline V16 round_even(V16 a) { return {_mm512_roundscale_ps(a.v, 0)}; }
inline V16 scale_by_power(V16 a, V16 n) { return {_mm512_scalef_ps(a.v, n.v)}; }
inline V16 load_bf16_pairs(const uint16_t* p) {
  __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  __m256i low = _mm256_slli_epi32(words, 16);
  __m256i high = _mm256_and_si256(words, _mm256_set1_epi32(int(0xffff0000u)));
  return {_mm512_castsi512_ps(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1))};
}
inline V16 load_bf16(const uint16_t* p) {
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}

// Per lane x where a > b, else y.
inline V16 where_greater(V16 a, V16 b, V16 x, V16 y) {
  return {_mm512_mask_mov_ps(y.v, _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ), x.v)};
}
inline V16 load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
// Rounded as float_to_bf16 does.
inline void store_bf16(uint16_t* p, V16 a) {
  __m512i word = _mm512_castps_si512(a.v), top = _mm512_srli_epi32(word, 16);
  __m512i even = _mm512_add_epi32(_mm512_and_si512(top, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
  __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(word, even), 16);
  __mmask16 none = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, none, top, _mm512_set1_epi32(0x40));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
}

// Eight words: pairs of bfloat16, or four int8 each.
struct W8 {
  __m256i v;
};
// Rounded as float_to_bf16 does, but for numbers below 2^-126, which products of pairs take for 0 anyway.
inline W8 bf16_words(V16 a) {
#if defined(__AVX512BF16__)
  return {(__m256i)_mm512_cvtneps_pbh(a.v)};
#else
  uint16_t bits[kLanes];
  store_bf16(bits, a);
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits))};
#endif
}
inline void store_words(void* p, W8 a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a.v); }
// Word i of `count` rows, at most eight, to out + i * count, for the first `columns` words.
inline void store_columns(int32_t* out, const W8 (&rows)[8], int count, int columns) {
  __m256i a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_epi32(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm256_unpackhi_epi32(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = _mm256_unpacklo_epi64(a[i + j], a[i + j + 2]);
      b[i + 2 * j + 1] = _mm256_unpackhi_epi64(a[i + j], a[i + j + 2]);
    }
  __mmask8 mask = __mmask8((1u << count) - 1);
  for (int i = 0; i < columns; ++i) {
    __m256i column = i < 4 ? _mm256_permute2x128_si256(b[i], b[i + 4], 0x20)
                           : _mm256_permute2x128_si256(b[i - 4], b[i], 0x31);
    _mm256_mask_storeu_epi32(out + i * count, mask, column);
  }
}

inline V16 load_i8(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}

struct I16 {
  __m512i v;
};
inline I16 izero() { return {_mm512_setzero_si512()}; }
inline I16 isplat(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline V16 to_float(I16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline V16 abs(V16 a) { return {_mm512_abs_ps(a.v)}; }
inline I16 to_int(V16 a) { return {_mm512_cvtps_epi32(a.v)}; }
inline void store_i16(int16_t* p, I16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(a.v));
}
inline void store_i8(int8_t* p, I16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(a.v));
}
inline float largest_of(V16 a) { return _mm512_reduce_max_ps(a.v); }
// Thirty-two int16: two for each of sixteen columns.
struct P32 {
  __m512i v;
};
inline I16 add_pairs(I16 sum, P32 w, int32_t x) {
  return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(w.v, _mm512_set1_epi32(x)))};
}
inline P32 load_pairs_i8(const int8_t* p) {
  return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
// Pair i of four in nibbles, 0 to 15: nibble i of every 16-bit word.
inline P32 load_pairs_u4(const uint8_t* p, int i) {
  return {_mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(p), unsigned(4 * i)), _mm512_set1_epi16(15))};
}
// Pairs of bfloat16.
inline P32 load_bf16_line(const uint16_t* p) { return {_mm512_loadu_si512(p)}; }
#if defined(__AVX512BF16__)
// Sixteen words to p[0], p[2] and so on; those between stay as they are, also while another thread writes them.
inline void store_every_other(uint16_t* p, W8 words) {
  _mm512_mask_storeu_epi16(p, 0x55555555, _mm512_cvtepu16_epi32(words.v));
}
// Thirty-two numbers, rounded as bf16_words does.
inline void store_bf16_line(uint16_t* p, V16 a, V16 b) { _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(b.v, a.v)); }
#endif
inline V16 dot_bf16(V16 sum, P32 w, int32_t x) {
#if defined(__AVX512BF16__)
  return {_mm512_dpbf16_ps(sum.v, (__m512bh)w.v, (__m512bh)_mm512_set1_epi32(x))};
#else
  __m512i pair = _mm512_set1_epi32(x);
  __m512 first = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
  __m512 second = _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32(int(0xffff0000u))));
  __m512 low = _mm512_castsi512_ps(_mm512_slli_epi32(w.v, 16));
  __m512 high = _mm512_castsi512_ps(_mm512_and_si512(w.v, _mm512_set1_epi32(int(0xffff0000u))));
  return {_mm512_fmadd_ps(low, first, _mm512_fmadd_ps(high, second, sum.v))};
#endif
}
#if defined(__AVX512VNNI__)
// Sixty-four bytes: four for each of sixteen columns, from 0 to 255.
struct Q64 {
  __m512i v;
};
inline Q64 load_bytes(const char* p) { return {_mm512_loadu_si512(p)}; }
inline Q64 low_nibbles(Q64 a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
inline Q64 high_nibbles(Q64 a) { return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))}; }
inline I16 dot_bytes(I16 sum, Q64 w, int32_t x) { return {_mm512_dpbusd_epi32(sum.v, w.v, _mm512_set1_epi32(x))}; }
inline int32_t sum_of(I16 a) { return _mm512_reduce_add_epi32(a.v); }
inline I16 operator+(I16 a, I16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
#endif

#elif defined(__AVX2__)

struct V16 {
  __m256 a, b;
};
inline V16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline V16 splat(float x) {
  __m256 v = _mm256_set1_ps(x);
  return {v, v};
}
inline V16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, V16 x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
inline V16 fma(V16 x, V16 y, V16 z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline V16 operator+(V16 x, V16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline V16 operator-(V16 x, V16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline V16 operator*(V16 x, V16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline V16 operator/(V16 x, V16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline V16 max(V16 x, V16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline V16 min(V16 x, V16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
// For max and min the second operand wins where one is NaN.
inline V16 zero_where_less(V16 a, V16 x, float limit) {
  __m256 bound = _mm256_set1_ps(limit);
  return {_mm256_and_ps(a.a, _mm256_cmp_ps(x.a, bound, _CMP_NLT_UQ)),
          _mm256_and_ps(a.b, _mm256_cmp_ps(x.b, bound, _CMP_NLT_UQ))};
}
inline V16 round_even(V16 x) {
  return {_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
          _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline __m256 power_of_two(__m256 n) {
  __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_castsi256_ps(bits);
}
// For -126 <= n <= 127.
inline V16 scale_by_power(V16 x, V16 n) {
  return {_mm256_mul_ps(x.a, power_of_two(n.a)), _mm256_mul_ps(x.b, power_of_two(n.b))};
}
inline V16 load_bf16_pairs(const uint16_t* p) {
  __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(words, 16)),
          _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(int(0xffff0000u))))};
}
inline __m256 widen_bf16(const uint16_t* p) {
  __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline V16 load_bf16(const uint16_t* p) { return {widen_bf16(p), widen_bf16(p + 8)}; }

// Per lane x where a > b, else y.
inline V16 where_greater(V16 a, V16 b, V16 x, V16 y) {
  return {_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(a.a, b.a, _CMP_GT_OQ)),
          _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(a.b, b.b, _CMP_GT_OQ))};
}
inline V16 load_f16(const uint16_t* p) {
  const __m128i* q = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
inline __m256i bf16_bits(__m256 x) {
  __m256i word = _mm256_castps_si256(x), top = _mm256_srli_epi32(word, 16);
  __m256i even = _mm256_add_epi32(_mm256_and_si256(top, _mm256_set1_epi32(1)), _mm256_set1_epi32(0x7fff));
  __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(word, even), 16);
  __m256i none = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, _mm256_or_si256(top, _mm256_set1_epi32(0x40)), none);
}
// Rounded as float_to_bf16 does.
inline void store_bf16(uint16_t* p, V16 x) {
  __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(bf16_bits(x.a), bf16_bits(x.b)), 0xd8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), words);
}

inline V16 load_i8(const int8_t* p) {
  __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}

struct I16 {
  __m256i a, b;
};
inline I16 izero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline I16 isplat(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline V16 to_float(I16 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline V16 abs(V16 x) {
  __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  return {_mm256_and_ps(x.a, mask), _mm256_and_ps(x.b, mask)};
}
inline I16 to_int(V16 x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline __m256i narrow(I16 x) { return _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8); }
inline void store_i16(int16_t* p, I16 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(x)); }
inline void store_i8(int8_t* p, I16 x) {
  __m256i words = narrow(x);
  __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
inline float largest_of(V16 x) {
  __m256 eight = _mm256_max_ps(x.a, x.b);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
// Thirty-two int16: two for each of sixteen columns.
struct P32 {
  __m256i lo, hi;
};
// Sums that stay in their registers: left to itself, the compiler moves them about and spills.
inline __m256i added_32(__m256i sum, __m256i x) {
  asm("vpaddd %1, %0, %0" : "+x"(sum) : "x"(x));
  return sum;
}
inline I16 add_pairs(I16 sum, P32 w, int32_t x) {
  __m256i pair = _mm256_set1_epi32(x);
  __m256i low = _mm256_madd_epi16(w.lo, pair), high = _mm256_madd_epi16(w.hi, pair);
  return {added_32(sum.a, low), added_32(sum.b, high)};
}
inline P32 load_pairs_i8(const int8_t* p) {
  const __m128i* q = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtepi8_epi16(_mm_loadu_si128(q)), _mm256_cvtepi8_epi16(_mm_loadu_si128(q + 1))};
}
// Pair i of four in nibbles, 0 to 15: nibble i of every 16-bit word.
inline P32 load_pairs_u4(const uint8_t* p, int i) {
  const __m256i* q = reinterpret_cast<const __m256i*>(p);
  __m256i mask = _mm256_set1_epi16(15);
  __m256i first = _mm256_srli_epi16(_mm256_loadu_si256(q), 4 * i);
  __m256i second = _mm256_srli_epi16(_mm256_loadu_si256(q + 1), 4 * i);
  return {_mm256_and_si256(first, mask), _mm256_and_si256(second, mask)};
}
// Pairs of bfloat16.
inline P32 load_bf16_line(const uint16_t* p) {
  const __m256i* q = reinterpret_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline __m256 dot_bf16_8(__m256 sum, __m256i w, __m256i x) {
  __m256i mask = _mm256_set1_epi32(int(0xffff0000u));
  __m256 high = _mm256_castsi256_ps(_mm256_and_si256(w, mask)), second = _mm256_castsi256_ps(_mm256_and_si256(x, mask));
  __m256 low = _mm256_castsi256_ps(_mm256_slli_epi32(w, 16)), first = _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
  return _mm256_fmadd_ps(low, first, _mm256_fmadd_ps(high, second, sum));
}
inline V16 dot_bf16(V16 sum, P32 w, int32_t x) {
  __m256i pair = _mm256_set1_epi32(x);
  return {dot_bf16_8(sum.a, w.lo, pair), dot_bf16_8(sum.b, w.hi, pair)};
}

#else

// Plain loops; a compiler for NEON or SSE turns them into its registers.
struct V16 {
  float x[16];
};
#define QUIRE_EACH for (int i = 0; i < 16; ++i)
inline V16 zero() { return V16{}; }
inline V16 splat(float x) {
  V16 r;
  QUIRE_EACH r.x[i] = x;
  return r;
}
inline V16 load(const float* p) {
  V16 r;
  std::memcpy(r.x, p, sizeof r.x);
  return r;
}
inline void store(float* p, V16 a) { std::memcpy(p, a.x, sizeof a.x); }
inline V16 fma(V16 a, V16 b, V16 c) {
  QUIRE_EACH c.x[i] += a.x[i] * b.x[i];
  return c;
}
inline V16 operator+(V16 a, V16 b) {
  QUIRE_EACH a.x[i] += b.x[i];
  return a;
}
inline V16 operator-(V16 a, V16 b) {
  QUIRE_EACH a.x[i] -= b.x[i];
  return a;
}
inline V16 operator*(V16 a, V16 b) {
  QUIRE_EACH a.x[i] *= b.x[i];
  return a;
}
inline V16 operator/(V16 a, V16 b) {
  QUIRE_EACH a.x[i] /= b.x[i];
  return a;
}
inline V16 max(V16 a, V16 b) {
  QUIRE_EACH a.x[i] = a.x[i] > b.x[i] ? a.x[i] : b.x[i];
  return a;
}
inline V16 min(V16 a, V16 b) {
  QUIRE_EACH a.x[i] = a.x[i] < b.x[i] ? a.x[i] : b.x[i];
  return a;
}
inline V16 zero_where_less(V16 a, V16 x, float limit) {
  QUIRE_EACH a.x[i] = x.x[i] < limit ? 0.0f : a.x[i];
  return a;
}
inline V16 round_even(V16 a) {
  QUIRE_EACH a.x[i] = std::nearbyint(a.x[i]);
  return a;
}
inline V16 scale_by_power(V16 a, V16 n) {
  QUIRE_EACH a.x[i] = std::ldexp(a.x[i], int(n.x[i]));
  return a;
}
inline V16 load_bf16_pairs(const uint16_t* p) {
  V16 r;
  for (int i = 0; i < 8; ++i) {
    r.x[i] = bf16_to_float(p[2 * i]);
    r.x[i + 8] = bf16_to_float(p[2 * i + 1]);
  }
  return r;
}
inline V16 load_bf16(const uint16_t* p) {
  V16 r;
  QUIRE_EACH r.x[i] = bf16_to_float(p[i]);
  return r;
}
// Per lane x where a > b, else y.
inline V16 where_greater(V16 a, V16 b, V16 x, V16 y) {
  QUIRE_EACH y.x[i] = a.x[i] > b.x[i] ? x.x[i] : y.x[i];
  return y;
}
inline V16 load_f16(const uint16_t* p) {
  V16 r;
  QUIRE_EACH r.x[i] = half_to_float(p[i]);
  return r;
}
// Rounded as float_to_bf16 does.
inline void store_bf16(uint16_t* p, V16 a) { QUIRE_EACH p[i] = float_to_bf16(a.x[i]); }
inline V16 load_i8(const int8_t* p) {
  V16 r;
  QUIRE_EACH r.x[i] = float(p[i]);
  return r;
}
struct I16 {
  int32_t x[16];
};
inline I16 izero() { return I16{}; }
inline I16 isplat(int32_t x) {
  I16 r;
  QUIRE_EACH r.x[i] = x;
  return r;
}
inline V16 to_float(I16 a) {
  V16 r;
  QUIRE_EACH r.x[i] = float(a.x[i]);
  return r;
}
inline V16 abs(V16 a) {
  QUIRE_EACH a.x[i] = std::fabs(a.x[i]);
  return a;
}
inline I16 to_int(V16 a) {
  I16 r;
  QUIRE_EACH r.x[i] = int32_t(std::nearbyint(a.x[i]));
  return r;
}
inline void store_i16(int16_t* p, I16 a) { QUIRE_EACH p[i] = int16_t(a.x[i]); }
inline void store_i8(int8_t* p, I16 a) { QUIRE_EACH p[i] = int8_t(a.x[i]); }
inline float largest_of(V16 a) {
  float largest = a.x[0];
  QUIRE_EACH largest = a.x[i] > largest ? a.x[i] : largest;
  return largest;
}
// Thirty-two int16: two for each of sixteen columns.
struct P32 {
  int16_t x[32];
};
inline I16 add_pairs(I16 sum, P32 w, int32_t x) {
  int16_t first = int16_t(x & 0xffff), second = int16_t(x >> 16);
  QUIRE_EACH sum.x[i] += w.x[2 * i] * first + w.x[2 * i + 1] * second;
  return sum;
}
inline P32 load_pairs_i8(const int8_t* p) {
  P32 r;
  for (int i = 0; i < 32; ++i) r.x[i] = p[i];
  return r;
}
// Pair i of four in nibbles, 0 to 15: nibble i of every 16-bit word.
inline P32 load_pairs_u4(const uint8_t* p, int i) {
  P32 r;
  for (int lane = 0; lane < 32; ++lane) {
    unsigned word = unsigned(p[2 * lane]) | unsigned(p[2 * lane + 1]) << 8;
    r.x[lane] = int16_t(word >> (4 * i) & 15);
  }
  return r;
}
// Pairs of bfloat16.
inline P32 load_bf16_line(const uint16_t* p) {
  P32 r;
  std::memcpy(r.x, p, sizeof r.x);
  return r;
}
inline V16 dot_bf16(V16 sum, P32 w, int32_t x) {
  float first = bf16_to_float(uint16_t(x & 0xffff)), second = bf16_to_float(uint16_t(uint32_t(x) >> 16));
  QUIRE_EACH sum.x[i] += bf16_to_float(uint16_t(w.x[2 * i + 1])) * second;
  QUIRE_EACH sum.x[i] += bf16_to_float(uint16_t(w.x[2 * i])) * first;
  return sum;
}
#undef QUIRE_EACH

#endif

// Begins to bring a line of memory near: into the second cache, or the first where it is needed in a moment.
inline void fetch(const char* p) { __builtin_prefetch(p, 0, 2); }
inline void fetch_close(const char* p) { __builtin_prefetch(p, 0, 3); }

// What was read before is read again after, rather than kept in registers that are needed.
inline void forget_loads() { asm volatile("" ::: "memory"); }

// e^x for x <= 88, above as for 88; below -87 the result is 0; NaN stays NaN. Polynomial of Cephes' expf after range
// reduction (error below 2 ulp).
inline V16 exp(V16 x) {
  V16 clamped = max(splat(-87.0f), min(splat(88.0f), x));
  V16 n = round_even(clamped * splat(1.44269504088896341f));
  V16 r = fma(n, splat(-0.693359375f), clamped);
  r = fma(n, splat(2.12194440e-4f), r);
  V16 p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r) + splat(1.0f);
  return zero_where_less(scale_by_power(p, n), x, -87.0f);
}

// tanh x = 1 - 2 / (e^2x + 1).
inline V16 tanh(V16 x) {
  V16 e = exp(x + x);
  return splat(1.0f) - splat(2.0f) / (e + splat(1.0f));
}

// The lanes' sum, always added up in the same order.
inline float sum_of(V16 x) {
  float lanes[kLanes];
  store(lanes, x);
  for (int step = kLanes / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
  return lanes[0];
}

inline float max_of(V16 x) {
  float lanes[kLanes];
  store(lanes, x);
  for (int step = kLanes / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) lanes[i] = lanes[i] > lanes[i + step] ? lanes[i] : lanes[i + step];
  return lanes[0];
}

// The first `count` lanes of memory, the others 0.
inline V16 load_part(const float* p, int64_t count) {
  if (count >= kLanes) return load(p);
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
}

inline void store_part(float* p, V16 x, int64_t count) {
  if (count >= kLanes) return store(p, x);
  float lanes[kLanes];
  store(lanes, x);
  for (int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}

}  // namespace QUIRE_ISA
}  // namespace quire
