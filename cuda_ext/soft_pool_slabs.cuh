// The CUDA kernel for windows over an inner dimension that are too large for registers as a whole: slab by slab.

#pragma once

#include "soft_pool_reduce.cuh"

namespace softpool3d::cuda {

// V windows side by side, without dilation, for each thread. It holds the values of one slab of h and w at a time.
template <class T, int V, int KT, int KH, int KW>
__global__ void __launch_bounds__(kThreads, 3)
    forward_slabs(const T* x, T* y, Pool<T, int32_t> pool, Split<int32_t> split, int32_t count) {
  using Acc = AccOf<T>;
  const int32_t id = global_id<int32_t>();
  if (id >= count) return;
  const Place<int32_t> at = split(id, V);
  const auto beta = lanes_of<V>([&](int v) { return pool.beta_at(at, v); });
  const auto scale = lanes_of<V>([&](int v) { return to_finite(Acc(kLog2e) * beta[v]); });
  x += pool.input.plane(at);
  const auto inside = [](const Axis<int32_t>& axis, int32_t i) { return i >= 0 && i < axis.size; };
  const Axis<int32_t>&at_t = pool.axes.t, &at_h = pool.axes.h, &at_w = pool.axes.w;
  const int32_t t0 = at.t * at_t.stride - at_t.padding, h0 = at.h * at_h.stride - at_h.padding,
                w0 = at.w * at_w.stride - at_w.padding;
  Lanes<RunningSums<Acc>, V> totals;
#pragma unroll 1
  for (int32_t t = max_of(t0, 0); t < min_of(t0 + KT, at_t.size); ++t) {
    Vec<T, V> values[KH * KW];
#pragma unroll
    for (int tap = 0; tap < KH * KW; ++tap) {
      const int32_t h = h0 + tap / KW, w = w0 + tap % KW;
      if (inside(at_h, h) && inside(at_w, w)) {
        values[tap] = load<V>(x + pool.input.in_plane(t, h, w));
      } else {
#pragma unroll
        for (int v = 0; v < V; ++v) values[tap].of[v] = static_cast<T>(-Limits<Acc>::inf);
      }
    }
    take<false>(totals, values, scale);
  }
  bool usual = true;
#pragma unroll
  for (int v = 0; v < V; ++v) usual &= is_usual(beta[v]) && totals[v].is_usual();
  Vec<T, V> result;
  if (usual) {
#pragma unroll
    for (int v = 0; v < V; ++v) result.of[v] = static_cast<T>(Sums<Acc>(totals[v], beta[v]).mean());
  } else {
    const Any::Window<T, int32_t, V> window(x, pool, at);
#pragma unroll
    for (int v = 0; v < V; ++v) result.of[v] = static_cast<T>(general_sums<T>(window, v, beta[v]).mean());
  }
  store<V>(y + pool.output(at), result);
}

}  // namespace softpool3d::cuda
