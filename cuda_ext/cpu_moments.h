// The formula, forward and backward, as CPU kernels compute it for vectors of numbers whose weights need no maximum.
// (cpu_exact.h has it for the others.)

#pragma once

#include "cpu_exp2.h"

namespace softpool3d {
namespace SOFTPOOL_LEVEL {

// Prefetches what lies 2 KB after p: the hardware does not follow rows in several places by itself.
template <class T>
SOFTPOOL_INLINE void prefetch(const T* p) {
  __builtin_prefetch(p + 2048 / sizeof(T));
}

// The sums over windows of e x^k, k = 0, 1 and, for beta's gradient, 2: weights, moments and squares.
template <class Acc, int kSums>
struct Moments {
  using V = typename Vec<Acc>::type;
  V of[kSums] = {};

  SOFTPOOL_INLINE void add_weighted(V e, V x) {
    of[0] += e;
    const V ex = e * x;
    of[1] += ex;
    if (kSums > 2) of[kSums - 1] += ex * x;
  }
  SOFTPOOL_INLINE void add(V x, V scale) { add_weighted(exp2_bounded(x, scale), x); }
  SOFTPOOL_INLINE void add(const Moments& other) {
    for (int s = 0; s < kSums; ++s) of[s] += other.of[s];
  }
};

// 1 / weight, 0 for an empty window.
template <class Acc>
SOFTPOOL_INLINE typename Vec<Acc>::type inverse_of(typename Vec<Acc>::type weight) {
  using V = typename Vec<Acc>::type;
  return weight == 0 ? V{} : Acc(1) / (weight == 0 ? splat<V>(Acc(1)) : weight);
}

// dL/dx = e (a + beta (a x - b)), where a, b = sum of u, v over the windows that hold x; u = g / S, v = u y.
template <class V>
SOFTPOOL_INLINE V gradient_of(V x, V scale, V beta, V a, V b) {
  return exp2_bounded(x, scale) * (a + beta * (a * x - b));
}

// The largest magnitude of numbers, lane by lane, NaN above infinity.
template <class Acc>
class Largest {
  using V = typename Vec<Acc>::type;
  using I = typename Vec<Acc>::ints;

 public:
  SOFTPOOL_INLINE void add(V x) { bits_ = larger(bits_, magnitude(x)); }
  SOFTPOOL_INLINE void add_positive(V x) { bits_ = larger(bits_, bit_cast<I>(x)); }
  SOFTPOOL_INLINE Acc value() const { return bit_cast<Acc>(largest_lane(bits_)); }
  SOFTPOOL_INLINE V lanes() const { return bit_cast<V>(bits_); }

 private:
  I bits_{};
};

}  // namespace SOFTPOOL_LEVEL
}  // namespace softpool3d
