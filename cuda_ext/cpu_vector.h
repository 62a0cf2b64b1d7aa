// Vectors of the widest registers that this file is compiled for, in GCC's and Clang's portable vector extension.
//
// Included once for each instruction set (see cpu_kernels.h); everything lies in a namespace of its own and is inlined.

#pragma once

#include <cfloat>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// SOFTPOOL_VECTOR_BYTES is 64 with AVX-512, 32 with AVX2, FMA and F16C, else 16. The including file says so, because
// g++ reads all macros before it takes notice of a `#pragma GCC target`.
#define SOFTPOOL_AVX512 (SOFTPOOL_VECTOR_BYTES == 64)
#define SOFTPOOL_AVX2 (SOFTPOOL_VECTOR_BYTES == 32)

#define SOFTPOOL_INLINE inline __attribute__((always_inline))
#define SOFTPOOL_LAMBDA __attribute__((always_inline))  // after a lambda's parameters
#define SOFTPOOL_APART __attribute__((noinline))        // what works on a whole row: one copy of it is enough

namespace softpool3d {

// The 16-bit types as they lie in memory.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

namespace SOFTPOOL_LEVEL {

template <class Acc>
struct Vec;

template <>
struct Vec<float> {
  static constexpr int lanes = SOFTPOOL_VECTOR_BYTES / 4;
  typedef float type __attribute__((vector_size(SOFTPOOL_VECTOR_BYTES)));
  typedef uint32_t bits __attribute__((vector_size(SOFTPOOL_VECTOR_BYTES)));
  typedef int32_t ints __attribute__((vector_size(SOFTPOOL_VECTOR_BYTES)));
  typedef uint16_t halves __attribute__((vector_size(SOFTPOOL_VECTOR_BYTES / 2)));
};

template <>
struct Vec<double> {
  static constexpr int lanes = SOFTPOOL_VECTOR_BYTES / 8;
  typedef double type __attribute__((vector_size(SOFTPOOL_VECTOR_BYTES)));
  typedef uint64_t bits __attribute__((vector_size(SOFTPOOL_VECTOR_BYTES)));
  typedef int64_t ints __attribute__((vector_size(SOFTPOOL_VECTOR_BYTES)));
};

using FloatV = Vec<float>::type;
using DoubleV = Vec<double>::type;

template <class To, class From>
SOFTPOOL_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

template <class V, class A>
SOFTPOOL_INLINE V splat(A value) {
  return V{} + value;
}

template <class Acc>
SOFTPOOL_INLINE typename Vec<Acc>::type load(const Acc* p) {
  typename Vec<Acc>::type v;
  memcpy(&v, p, sizeof v);
  return v;
}

template <class Acc>
SOFTPOOL_INLINE void store(Acc* p, typename Vec<Acc>::type v) {
  memcpy(p, &v, sizeof v);
}

// The first `n` lanes, 0 < n < lanes; the others are 0.
SOFTPOOL_INLINE FloatV load_part(const float* p, int n) {
#if SOFTPOOL_AVX512
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#else
  float v[Vec<float>::lanes] = {};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return load(v);
#endif
}

SOFTPOOL_INLINE DoubleV load_part(const double* p, int n) {
  double v[Vec<double>::lanes] = {};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return load(v);
}

SOFTPOOL_INLINE void store_part(float* p, FloatV v, int n) {
#if SOFTPOOL_AVX512
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
#else
  for (int i = 0; i < n; ++i) p[i] = v[i];
#endif
}

SOFTPOOL_INLINE void store_part(double* p, DoubleV v, int n) {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}

// --- 16-bit types ----------------------------------------------------------------------------------------------------

using HalvesV = Vec<float>::halves;
using BitsV = Vec<float>::bits;

SOFTPOOL_INLINE HalvesV load_halves(const void* p) {
  HalvesV v;
  memcpy(&v, p, sizeof v);
  return v;
}

SOFTPOOL_INLINE HalvesV load_halves_part(const void* p, int n) {
#if SOFTPOOL_AVX512
  return bit_cast<HalvesV>(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p));
#else
  uint16_t v[Vec<float>::lanes] = {};
  for (int i = 0; i < n; ++i) v[i] = static_cast<const uint16_t*>(p)[i];
  return load_halves(v);
#endif
}

SOFTPOOL_INLINE void store_halves_part(void* p, HalvesV v, int n) {
  for (int i = 0; i < n; ++i) static_cast<uint16_t*>(p)[i] = v[i];
}

SOFTPOOL_INLINE FloatV widen(HalvesV v, BFloat16) {
  return bit_cast<FloatV>(__builtin_convertvector(v, BitsV) << 16);
}

SOFTPOOL_INLINE HalvesV narrow(FloatV v, BFloat16) {
  const BitsV bits = bit_cast<BitsV>(v);
  const BitsV rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  return __builtin_convertvector(v == v ? rounded : splat<BitsV>(0x7fc0u), HalvesV);
}

SOFTPOOL_INLINE FloatV widen(HalvesV v, Half) {
#if SOFTPOOL_AVX512
  return _mm512_cvtph_ps(bit_cast<__m256i>(v));
#elif SOFTPOOL_AVX2
  return _mm256_cvtph_ps(bit_cast<__m128i>(v));
#else
  const BitsV bits = __builtin_convertvector(v, BitsV);
  const BitsV magnitude = (bits & 0x7fffu) << 13;
  // The exponents differ by 112; the product is exact, also from a denormal half to a normal float.
  BitsV wide = bit_cast<BitsV>(bit_cast<FloatV>(magnitude) * 0x1p112f);
  wide = magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : wide;  // infinities and NaN
  return bit_cast<FloatV>(wide | (bits & 0x8000u) << 16);
#endif
}

SOFTPOOL_INLINE HalvesV narrow(FloatV v, Half) {
#if SOFTPOOL_AVX512
  return bit_cast<HalvesV>(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif SOFTPOOL_AVX2
  return bit_cast<HalvesV>(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  const BitsV bits = bit_cast<BitsV>(v), magnitude = bits & 0x7fffffffu;
  const BitsV normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Adding 0.5 leaves a denormal half's bits at the end of the mantissa, rounded.
  const BitsV denormal = bit_cast<BitsV>(bit_cast<FloatV>(magnitude) + 0.5f) - 0x3f000000u;
  BitsV half = magnitude < (113u << 23) ? denormal : normal;
  half = magnitude >= 0x477ff000u ? splat<BitsV>(0x7c00u) : half;  // rounds to infinity
  half = magnitude > 0x7f800000u ? splat<BitsV>(0x7e00u) : half;   // NaN
  return __builtin_convertvector(half | (bits & 0x80000000u) >> 16, HalvesV);
#endif
}

template <class T>
SOFTPOOL_INLINE FloatV load16(const T* p) {
  return widen(load_halves(p), T{});
}
SOFTPOOL_INLINE FloatV load(const Half* p) { return load16(p); }
SOFTPOOL_INLINE FloatV load(const BFloat16* p) { return load16(p); }
SOFTPOOL_INLINE FloatV load_part(const Half* p, int n) { return widen(load_halves_part(p, n), Half{}); }
SOFTPOOL_INLINE FloatV load_part(const BFloat16* p, int n) { return widen(load_halves_part(p, n), BFloat16{}); }

template <class T>
SOFTPOOL_INLINE void store16(T* p, FloatV v) {
  const HalvesV halves = narrow(v, T{});
  memcpy(p, &halves, sizeof halves);
}
SOFTPOOL_INLINE void store(Half* p, FloatV v) { store16(p, v); }
SOFTPOOL_INLINE void store(BFloat16* p, FloatV v) { store16(p, v); }
SOFTPOOL_INLINE void store_part(Half* p, FloatV v, int n) { store_halves_part(p, narrow(v, Half{}), n); }
SOFTPOOL_INLINE void store_part(BFloat16* p, FloatV v, int n) { store_halves_part(p, narrow(v, BFloat16{}), n); }

// One value.
SOFTPOOL_INLINE float load_one(const float* p) { return *p; }
SOFTPOOL_INLINE double load_one(const double* p) { return *p; }
SOFTPOOL_INLINE float load_one(const Half* p) { return load_part(p, 1)[0]; }
SOFTPOOL_INLINE float load_one(const BFloat16* p) { return load_part(p, 1)[0]; }

// --- arithmetic ------------------------------------------------------------------------------------------------------

// |x| as an integer that orders as |x| does, NaN above infinity.
SOFTPOOL_INLINE Vec<float>::ints magnitude(FloatV x) { return bit_cast<Vec<float>::ints>(x) & INT32_MAX; }
SOFTPOOL_INLINE Vec<double>::ints magnitude(DoubleV x) { return bit_cast<Vec<double>::ints>(x) & INT64_MAX; }

template <class Ints>
SOFTPOOL_INLINE Ints larger(Ints a, Ints b) {
  return a > b ? a : b;
}
#if SOFTPOOL_AVX512
SOFTPOOL_INLINE Vec<float>::ints larger(Vec<float>::ints a, Vec<float>::ints b) {
  return bit_cast<Vec<float>::ints>(_mm512_max_epi32(bit_cast<__m512i>(a), bit_cast<__m512i>(b)));
}
#elif SOFTPOOL_AVX2
SOFTPOOL_INLINE Vec<float>::ints larger(Vec<float>::ints a, Vec<float>::ints b) {
  return bit_cast<Vec<float>::ints>(_mm256_max_epi32(bit_cast<__m256i>(a), bit_cast<__m256i>(b)));
}
#endif

// The lanes i... of a followed by b. Only clang and g++ from 12 on have __builtin_shufflevector, only g++ the other.
template <int... i, class V>
SOFTPOOL_INLINE V pick_lanes(V a, V b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, i...);
#else
  return __builtin_shuffle(a, b, decltype(a < b){i...});
#endif
}

template <class V, int... i>
SOFTPOOL_INLINE V even_lanes(V a, V b, std::integer_sequence<int, i...>) {
  return pick_lanes<(2 * i)...>(a, b);
}

template <class V, int... i>
SOFTPOOL_INLINE V interleave(V a, V b, int offset, std::integer_sequence<int, i...>) {
  constexpr int n = sizeof...(i);
  return offset == 0 ? pick_lanes<(i / 2 + i % 2 * n)...>(a, b) : pick_lanes<(n / 2 + i / 2 + i % 2 * n)...>(a, b);
}

// Turns rows into columns, in log2(lanes) rounds that interleave row i with row i + lanes / 2.
template <class V, int lanes>
SOFTPOOL_INLINE void transpose(V (&v)[lanes]) {
  for (int step = 1; step < lanes; step *= 2) {
    V next[lanes];
    for (int i = 0; i < lanes / 2; ++i) {
      next[2 * i] = interleave(v[i], v[i + lanes / 2], 0, std::make_integer_sequence<int, lanes>{});
      next[2 * i + 1] = interleave(v[i], v[i + lanes / 2], 1, std::make_integer_sequence<int, lanes>{});
    }
    for (int i = 0; i < lanes; ++i) v[i] = next[i];
  }
}

template <class V>
SOFTPOOL_INLINE auto sum_of_lanes(V v) {
  auto total = v[0];
  for (unsigned i = 1; i < sizeof(V) / sizeof(total); ++i) total += v[i];
  return total;
}

template <class Ints>
SOFTPOOL_INLINE auto largest_lane(Ints v) {
  auto best = v[0];
  for (unsigned i = 1; i < sizeof(Ints) / sizeof(best); ++i) best = v[i] > best ? v[i] : best;
  return best;
}

}  // namespace SOFTPOOL_LEVEL
}  // namespace softpool3d
