// Rows of input gradients: those of rows of numbers, and how a row is written.

#pragma once

#include "cpu_moments.h"
#include "cpu_plan.h"

namespace softpool3d {
namespace SOFTPOOL_LEVEL {

// Computes the gradient of `size` numbers of one beta; coefficients(i, a, b) sets those of the vector at i.
template <class T, class Acc, class To, class Coefficients>
SOFTPOOL_INLINE void gradient_of_numbers(const Plan<T, Acc>& plan, const T* x, int64_t size, To* dx,
                                         const Coefficients& coefficients) {
  using V = typename Vec<Acc>::type;
  constexpr int lanes = Vec<Acc>::lanes;
  const V scale = splat<V>(*plan.scale), beta = splat<V>(*plan.beta);
  const auto of = [&](int64_t i, V x) SOFTPOOL_LAMBDA {
    V a, b;
    coefficients(i, a, b);
    return gradient_of(x, scale, beta, a, b);
  };
  int64_t i = 0;
  for (; i + lanes <= size; i += lanes) {
    prefetch(x + i);
    store(dx + i, of(i, load(x + i)));
  }
  const int rest = static_cast<int>(size - i);
  if (rest > 0) store_part(dx + i, of(i, load_part(x + i, rest)), rest);
}

// Where no window holds the inputs.
template <class Acc, class To>
void store_zeros(To* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) store_part(to + i, typename Vec<Acc>::type{}, 1);
}

// Writes the plan's line to a row of dL/dx.
template <class T, class Acc>
void store_line(const Plan<T, Acc>& plan, T* dx) {
  constexpr int lanes = Vec<Acc>::lanes;
  // Positions lie next to each other if contiguous, else there are some channels at each.
  const int64_t size = plan.own_w.size() * plan.channels, piece = plan.call.channels_last ? plan.channels : size;
  for (int64_t at = 0; at < size; at += piece, dx += plan.call.dx_stride[4]) {
    int64_t i = 0;
    for (; i + lanes <= piece; i += lanes) store(dx + i, load(plan.line + at + i));
    const int rest = static_cast<int>(piece - i);
    if (rest > 0) store_part(dx + i, load(plan.line + at + i), rest);
  }
}

}  // namespace SOFTPOOL_LEVEL
}  // namespace softpool3d
