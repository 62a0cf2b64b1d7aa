// 2^x of vectors.

#pragma once

#include "cpu_vector.h"
#include "window.h"

namespace softpool3d {
namespace SOFTPOOL_LEVEL {

// Whether multiply-add fuses on this machine: x * scale then enters the reduced argument of exp2 without rounding.
#if SOFTPOOL_AVX512 || SOFTPOOL_AVX2 || defined(__FMA__) || defined(__aarch64__)
constexpr bool kFuses = true;
#else
constexpr bool kFuses = false;
#endif

// The largest |x scale| in exp2_bounded with which weights are used without subtracting the window's maximum. Up to
// here, sums stay normal numbers, and what rounding does to the exponent stays below the type's precision.
template <class Acc>
constexpr Acc kBound = kFuses ? Acc(60) : Acc(20);

// 2^(x scale) for |x scale| <= kBound, to about one unit in the last place. The same as exp2_of in window.h, without
// what bounded arguments do not need.
template <class Acc>
SOFTPOOL_INLINE typename Vec<Acc>::type exp2_by_polynomial(typename Vec<Acc>::type x, typename Vec<Acc>::type scale) {
  using V = typename Vec<Acc>::type;
  using Of = Exp2<Acc>;
  const V magic = splat<V>(Of::magic);
  const V shifted = x * scale + magic;
  const V whole = shifted - magic;
  const V f = x * scale - whole;
  const auto bits = (bit_cast<typename Vec<Acc>::bits>(shifted) << Of::shift) + Of::one;
  return exp2_of_fraction<Acc>(f) * bit_cast<V>(bits);
}

#if SOFTPOOL_AVX512
// 2^(k / 32), from a table in two registers, times a parabola in the rest: half the multiplications of a polynomial
// alone.
alignas(64) constexpr float kExp2Table[32] = {
    0x1p0f, 0x1.059b0ep0f, 0x1.0b5586p0f, 0x1.11301ep0f,
    0x1.172b84p0f, 0x1.1d4874p0f, 0x1.2387a6p0f, 0x1.29e9ep0f,
    0x1.306fep0f, 0x1.371a74p0f, 0x1.3dea64p0f, 0x1.44e086p0f,
    0x1.4bfdaep0f, 0x1.5342b6p0f, 0x1.5ab07ep0f, 0x1.6247ecp0f,
    0x1.6a09e6p0f, 0x1.71f75ep0f, 0x1.7a1148p0f, 0x1.82589ap0f,
    0x1.8ace54p0f, 0x1.93737cp0f, 0x1.9c4918p0f, 0x1.a5503cp0f,
    0x1.ae89fap0f, 0x1.b7f77p0f, 0x1.c199bep0f, 0x1.cb720ep0f,
    0x1.d5818ep0f, 0x1.dfc974p0f, 0x1.ea4afap0f, 0x1.f50766p0f};

SOFTPOOL_INLINE FloatV exp2_bounded(FloatV x, FloatV scale) {
  const FloatV magic = splat<FloatV>(0x1.8p18f);  // its last bit is worth 1 / 32
  const FloatV shifted = x * scale + magic;
  const FloatV steps = shifted - magic;
  const FloatV f = x * scale - steps;
  FloatV power = _mm512_permutex2var_ps(load(kExp2Table), bit_cast<__m512i>(shifted), load(kExp2Table + 16));
  power = _mm512_scalef_ps(power, steps);  // which rounds steps down
  return (f * 2.402265070e-01f + 6.931573437e-01f) * f * power + power;
}
#else
SOFTPOOL_INLINE FloatV exp2_bounded(FloatV x, FloatV scale) { return exp2_by_polynomial<float>(x, scale); }
#endif
SOFTPOOL_INLINE DoubleV exp2_bounded(DoubleV x, DoubleV scale) { return exp2_by_polynomial<double>(x, scale); }

// 2^x for x <= 0: 0 below the smallest normal number, NaN for NaN.
template <class Acc>
SOFTPOOL_INLINE typename Vec<Acc>::type exp2_of_vector(typename Vec<Acc>::type x) {
  using V = typename Vec<Acc>::type;
  constexpr Acc least = Exp2<Acc>::least;
  const V e = exp2_bounded(x < least ? splat<V>(least) : x, splat<V>(Acc(1)));
  return x < least ? V{} : e;
}

}  // namespace SOFTPOOL_LEVEL
}  // namespace softpool3d
