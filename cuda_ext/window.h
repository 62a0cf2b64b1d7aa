// The arithmetic of one window and of its gradient, for host and device, templated on the accumulation type.
//
//     m = max beta x,   w_i = exp(beta x_i - m) / sum exp(beta x_j - m),   y = sum w_i x_i
//     dy/dx_i = w_i (1 + beta (x_i - y)),   dy/dbeta = sum w_i x_i^2 - y^2          (arXiv 2101.00440, eq. 1 and 2)
//
// Two passes over a window's values, which a caller keeps in registers where it can:
//
//     Extent<Acc> extent;                       for each x: extent.add(x);
//     Sums<Acc> sums(extent, beta);             for each x: sums.add(x);      then sums.mean()
//
// and, for the gradient, Stats<Acc> stats = sums.stats(): what one window contributes to dL/dx at a position with value
// x is stats.gradient(x, g, beta).
//
// Finite values of any size are exact: nothing is formed that overflows. A window with a NaN gives NaN; else one with
// +inf gives +inf; -inf has weight 0; only -inf gives -inf; an empty window gives 0. Where y is infinite there is no
// derivative, and none is passed on.

#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "geometry.h"

namespace softpool3d {

template <class Acc>
struct Limits;

template <>
struct Limits<float> {
  static constexpr float max = FLT_MAX, inf = __builtin_huge_valf();
  // Above `large`, values are scaled by `shrink` before they are summed: up to 2^31 of them then stay finite.
  static constexpr float large = 0x1p90f, shrink = 0x1p-40f;
};

template <>
struct Limits<double> {
  static constexpr double max = DBL_MAX, inf = __builtin_huge_val();
  static constexpr double large = 0x1p900, shrink = 0x1p-100;
};

constexpr double kLog2e = 1.4426950408889634;

// exp2_of(x): 2^x for x <= 0, 0 below the smallest normal number, NaN for NaN.
#if defined(__CUDA_ARCH__)
SOFTPOOL_HD float exp2_of(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));  // to within 2 ulp
  return power;
}
SOFTPOOL_HD double exp2_of(double x) { return exp2(x); }
#else
// What 2^x is made of on a CPU, here and in cpu_exp2.h: adding `magic` rounds x to an integer, which is then in the low
// bits; shifted to the exponent and added to `one` they are a power of 2. The coefficients are those of the best
// polynomials for 2^f on [-0.5, 0.5], with a relative error of 2e-9 and 3e-18.
template <class Acc>
struct Exp2;

template <>
struct Exp2<float> {
  using Bits = uint32_t;
  static constexpr float magic = 0x1.8p23f, least = -126;
  static constexpr Bits shift = 23, one = 0x3f800000;
  static constexpr float coefficients[] = {1.5461444698569129e-4f, 1.3400428177615838e-3f, 9.6180566785246380e-3f,
                                           5.5503272266703021e-2f, 2.4022650922288758e-1f, 6.9314720670283260e-1f,
                                           1.f};
};

template <>
struct Exp2<double> {
  using Bits = uint64_t;
  static constexpr double magic = 0x1.8p52, least = -1022;
  static constexpr Bits shift = 52, one = 0x3ff0000000000000;
  static constexpr double coefficients[] = {4.4558179083360645e-10, 7.0741942972885210e-9, 1.0178057087733941e-7,
                                            1.3215432535912376e-6,  1.5252733841556773e-5, 1.5403530463724354e-4,
                                            1.3333558146406471e-3,  9.6181291076872567e-3, 5.5504108664821627e-2,
                                            2.4022650695910160e-1,  6.9314718055994531e-1, 1.};
};

// 2^f of numbers, or of vectors of numbers.
template <class Acc, class V>
SOFTPOOL_HD V exp2_of_fraction(V f) {
  const auto& c = Exp2<Acc>::coefficients;
  V p = f * c[0] + c[1];
  for (unsigned i = 2; i < sizeof c / sizeof c[0]; ++i) p = p * f + c[i];
  return p;
}

// Without branches, calls or conversions to int, so that compilers vectorise loops over it.
template <class Acc>
SOFTPOOL_HD Acc exp2_of(Acc x) {
  using Of = Exp2<Acc>;
  const Acc clamped = x < Of::least ? Of::least : x;
  const Acc shifted = clamped + Of::magic;
  const Acc f = clamped - (shifted - Of::magic);
  typename Of::Bits bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << Of::shift) + Of::one;
  Acc power;
  memcpy(&power, &bits, sizeof power);
  return x < Of::least ? Acc(0) : exp2_of_fraction<Acc>(f) * power;
}
#endif

template <class Acc>
SOFTPOOL_HD bool is_nan(Acc x) {
  return x != x;
}

// Neither infinite nor NaN.
template <class Acc>
SOFTPOOL_HD bool is_finite(Acc x) {
  return x <= Limits<Acc>::max && x >= -Limits<Acc>::max;
}

// larger(a, b): the larger one; of a number and NaN, the number. quotient(a, b): a / b, b a sum of weights, 1 to 2^31.
#if defined(__CUDA_ARCH__)
SOFTPOOL_HD float larger(float a, float b) { return fmaxf(a, b); }
SOFTPOOL_HD double larger(double a, double b) { return fmax(a, b); }
SOFTPOOL_HD float quotient(float a, float b) { return __fdividef(a, b); }  // to within 2 ulp, and without a branch
SOFTPOOL_HD double quotient(double a, double b) { return a / b; }
#else
template <class Acc>
SOFTPOOL_HD Acc larger(Acc a, Acc b) {
  return b > a || is_nan(a) ? b : a;
}
template <class Acc>
SOFTPOOL_HD Acc quotient(Acc a, Acc b) {
  return a / b;
}
#endif

// Infinities become the largest numbers; NaN stays.
template <class Acc>
SOFTPOOL_HD Acc to_finite(Acc x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (sizeof(Acc) == sizeof(float)) {
    float result;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(x), "f"(FLT_MAX));
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(result), "f"(-FLT_MAX));
    return result;
  }
#endif
  return x > Limits<Acc>::max ? Limits<Acc>::max : x < -Limits<Acc>::max ? -Limits<Acc>::max : x;
}

// First pass: the smallest and largest value. -inf does not count; NaN is ignored here and caught by Sums.
template <class Acc>
struct Extent {
  Acc lo = Limits<Acc>::inf, hi = -Limits<Acc>::inf;
  bool any = false;  // tells a window of only -inf from an empty one

  SOFTPOOL_HD void add(Acc x) {
    hi = x > hi ? x : hi;
    lo = x < lo && x != -Limits<Acc>::inf ? x : lo;
    any = true;
  }
};

// Usual windows: their largest value is finite, and beta is neither negative nor so close to 0 that values far below
// the largest weigh something. Then half of what the general arithmetic guards against cannot happen, and *_usual()
// below leave out these guards. They are for GPUs, where the general arithmetic takes longer than memory does.
template <class Acc>
SOFTPOOL_HD bool is_usual(Acc beta) {
  return beta >= Acc(0x1p-20);
}

template <class Acc>
SOFTPOOL_HD bool is_usual(Acc hi, Acc beta) {
  return is_usual(beta) && hi < Limits<Acc>::inf && hi > -Limits<Acc>::inf;
}

// What the gradient needs to know about a window: the value whose weight is exp(0), 1 / sum of the weights, and how far
// y lies from the pivot. Differences from the pivot stay precise where x and y are large and close to each other;
// halves keep them finite where x and y are very large and far apart. A window without a derivative has inverse_sum 0.
template <class Acc>
struct Stats {
  Acc pivot, inverse_sum, half_offset;

  // g dy/dx at a position of value x.
  SOFTPOOL_HD Acc gradient(Acc x, Acc g, Acc beta) const {
    constexpr Acc inf = Limits<Acc>::inf;
    if (inverse_sum == 0 || x == -inf || x == inf) return Acc(0);
    const Acc half_distance = Acc(0.5) * x - Acc(0.5) * pivot;
    const Acc weight = exp2_of(to_finite(Acc(2 * kLog2e) * beta) * half_distance) * inverse_sum;
    // Made finite, because a weight of 0 times a slope that overflows is still 0.
    const Acc slope = to_finite(to_finite(Acc(2) * beta) * (half_distance - half_offset));
    return g * (weight * (Acc(1) + slope));
  }

  // The same with fewer guards, for a usual beta. Either the window is usual and holds no NaN; or x is finite, and the
  // window is usual or has no derivative.
  SOFTPOOL_HD Acc gradient_usual(Acc x, Acc g, Acc beta) const {
    const Acc distance = x - pivot;
    const Acc weight = exp2_of(to_finite(Acc(kLog2e) * beta) * distance) * (inverse_sum * g);
    const Acc slope = larger(beta * (distance - 2 * half_offset), -Limits<Acc>::max);
    return weight * slope + weight;
  }
};

// The sums of a usual window whose largest value is not known beforehand: hi is the largest so far. `scale` is
// to_finite(log2(e) beta), beta usual. For GPUs.
template <class Acc>
struct RunningSums {
  // hi starts at a finite number, because -inf - -inf is NaN. A value of -inf then weighs 0.
  Acc hi = -Limits<Acc>::max, weight = 0, moment = 0, square = 0;

  // Whether the window is usual, given that its beta is.
  SOFTPOOL_HD bool is_usual() const { return hi < Limits<Acc>::inf && weight != 0; }

  // Makes the sums relative to a new pivot that is not below hi.
  SOFTPOOL_HD void raise(Acc to, Acc scale) {
    const Acc shift = larger(hi - to, -Limits<Acc>::max), factor = exp2_of(scale * shift);
    hi = to;
    weight *= factor;
    moment *= factor;
    square = factor * square + 2 * moment * shift + weight * shift * shift;
    moment += weight * shift;
  }

  // Adds a value that is not above hi. If it is -inf, or its distance overflows, its weight is 0.
  SOFTPOOL_HD void add(Acc x, Acc scale) {
    const Acc distance = x - hi, weight_of_x = exp2_of(scale * distance), finite = larger(distance, -Limits<Acc>::max);
    weight += weight_of_x;
    moment += weight_of_x * finite;
    square += weight_of_x * finite * finite;
  }
};

// Second pass: the sums over a window whose extent is known.
template <class Acc>
class Sums {
 public:
  SOFTPOOL_HD Sums(const Extent<Acc>& extent, Acc beta) {
    constexpr Acc inf = Limits<Acc>::inf;
    const bool finite = extent.hi != inf && extent.hi != -inf;
    special_ = finite || !extent.any ? Acc(0) : extent.hi;
    pivot_ = !finite ? Acc(0) : beta >= 0 ? extent.hi : extent.lo;
    const bool large = finite && max_of(extent.hi, -extent.lo) > Limits<Acc>::large;
    shrink_ = large ? Limits<Acc>::shrink : Acc(1);
    grow_ = large ? 1 / Limits<Acc>::shrink : Acc(1);
    // Without finite values, or with +inf, all that matters is a NaN; with a scale of 0, only a NaN makes the sums NaN.
    scale_ = finite ? to_finite(Acc(kLog2e) * beta * grow_) : Acc(0);
  }

  // The sums of a usual window, for add_usual().
  SOFTPOOL_HD Sums(Acc hi, Acc beta)
      : pivot_(hi), shrink_(1), grow_(1), scale_(to_finite(Acc(kLog2e) * beta)), special_(0) {}

  SOFTPOOL_HD Sums(const RunningSums<Acc>& usual, Acc beta) : Sums(usual.hi, beta) {
    weight_ = usual.weight;
    moment_ = usual.moment;
    square_ = usual.square;
  }

  // A distance that is -inf or overflows has a weight of 0 or NaN. It is made finite where the two are multiplied.
  SOFTPOOL_HD void add_usual(Acc x) {
    const Acc distance = x - pivot_, weight = exp2_of(scale_ * distance);
    const Acc moment = weight * larger(distance, -Limits<Acc>::max);
    weight_ += weight;
    moment_ += moment;
    square_ += moment * larger(distance, -Limits<Acc>::max);
  }

  SOFTPOOL_HD void add(Acc x) {
    constexpr Acc inf = Limits<Acc>::inf;
    const bool counts = x != inf && x != -inf;
    const Acc distance = counts ? x * shrink_ - pivot_ * shrink_ : Acc(0);
    const Acc weight = counts ? exp2_of(scale_ * distance) : Acc(0);
    weight_ += weight;
    moment_ += weight * distance;
    square_ += weight * distance * distance;
  }

  // Adds the sums over another part of the same window, whose extent may differ.
  SOFTPOOL_HD void merge(const Sums& other, Acc beta) {
    if (special_ == Limits<Acc>::inf || other.special_ == Limits<Acc>::inf) {
      special_ = Limits<Acc>::inf;
      weight_ += other.weight_;  // a NaN in it has to stay
    } else if (other.weight_ == 0) {
      special_ = weight_ == 0 && special_ == 0 ? other.special_ : special_;
    } else if (weight_ == 0) {
      *this = other;
    } else {
      const Sums smaller = shrink_ <= other.shrink_ ? *this : other;
      const Acc pivot = beta >= 0 ? max_of(pivot_, other.pivot_) : min_of(pivot_, other.pivot_);
      Sums theirs = other;
      move_to(pivot, smaller);
      theirs.move_to(pivot, smaller);
      weight_ += theirs.weight_;
      moment_ += theirs.moment_;
      square_ += theirs.square_;
    }
  }

  // y
  SOFTPOOL_HD Acc mean() const {
    if (weight_ == 0 || (special_ != 0 && !is_nan(weight_))) return special_;
    return (pivot_ * shrink_ + quotient(moment_, weight_)) * grow_;
  }

  // dy/dbeta
  SOFTPOOL_HD Acc variance() const {
    if (weight_ == 0 || (special_ != 0 && !is_nan(weight_))) return Acc(0);
    const Acc mean = quotient(moment_, weight_);
    return (quotient(square_, weight_) - mean * mean) * grow_ * grow_;
  }

  SOFTPOOL_HD Stats<Acc> stats() const {
    if (weight_ == 0 || (special_ != 0 && !is_nan(weight_))) return {Limits<Acc>::max, Acc(0), Acc(0)};
    return {pivot_, quotient(Acc(1), weight_), Acc(0.5) * quotient(moment_, weight_) * grow_};
  }

 private:
  // Makes the sums relative to a new pivot that none of their values is beyond, in the units of `units`. Sums that
  // weigh nothing there are multiplied by 0 first, before their distance could overflow.
  SOFTPOOL_HD void move_to(Acc pivot, const Sums& units) {
    const Acc shift = to_finite(pivot_ * units.shrink_ - pivot * units.shrink_), ratio = units.shrink_ * grow_;
    const Acc factor = exp2_of(units.scale_ * shift);
    weight_ *= factor;
    moment_ = factor * moment_ * ratio;
    square_ = factor * square_ * ratio * ratio + 2 * moment_ * shift + weight_ * shift * shift;
    moment_ += weight_ * shift;
    pivot_ = pivot;
    shrink_ = units.shrink_;
    grow_ = units.grow_;
    scale_ = units.scale_;
  }

  Acc pivot_, shrink_, grow_, scale_, special_;
  Acc weight_ = 0, moment_ = 0, square_ = 0;
};

}  // namespace softpool3d
