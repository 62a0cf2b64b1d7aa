// One call of the operator, and the pool as the CUDA kernels see it: its axes, strides and alignment. Host code without
// torch, so that the tests run all of it.

#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>

#include "soft_pool_index.cuh"

namespace softpool3d::cuda {

#ifdef __CUDACC__
using Stream = cudaStream_t;
#endif

// One call of the operator. Pointers are to the device's memory; `strides` are those of x, which has its channels
// (channels_last) or its width next to each other; everything else is dense in the same layout.
template <class T>
struct Call {
  Geometry<int64_t> axes;
  int64_t batch, channels;
  bool channels_last;
  const T* x;
  int64_t strides[5];
  const AccOf<T>* betas;  // one per channel, or null
  double beta;
  Stream stream;
  // Indices from here on take 64 bits. The tests lower it, to run those kernels without a tensor of gigabytes.
  int64_t index_limit = int64_t{1} << 30;
  std::function<void*(int64_t bytes)> workspace;  // memory until the call's kernels have run
};

// What kernels may ask of a call before they are chosen.
template <class T>
class View {
  using Acc = AccOf<T>;

 public:
  // Elements of 16 bytes.
  static constexpr int kWide = 16 / sizeof(T);
  // Windows of kLarge values or more are always shared out to teams of threads. Windows of kMany or more are if they
  // are runs, or if one thread for each would make few threads.
  static constexpr int64_t kLarge = 512, kMany = 32, kFewThreads = int64_t{1} << 17;

  explicit View(const Call<T>& call) : call_(call) {}

  Pool<T, int64_t> unfolded() const {
    const Geometry<int64_t>& g = call_.axes;
    const int64_t inner = call_.channels_last ? call_.channels : 1;
    return pool_of(g, inner, call_.channels_last,
                   {call_.strides[0], call_.channels_last ? 0 : call_.strides[1], call_.strides[2], call_.strides[3],
                    call_.channels_last ? call_.strides[4] : 1});
  }

  // In a contiguous tensor, axes at the end that are not pooled become the inner dimension.
  Pool<T, int64_t> folded() const {
    Pool<T, int64_t> pool = unfolded();
    if (call_.channels_last || !untouched(pool.axes.w)) return pool;
    Geometry<int64_t> g = pool.axes;
    int64_t inner = g.w.size;
    g.w = single();
    if (untouched(g.h) && (g.h.size == 1 || pool.input.h == inner)) {
      inner *= g.h.size;
      g.h = single();
    }
    return pool_of(g, inner, false, pool.input);
  }

  // Whether the numbers of threads and all numbers within a plane stay below 2^31.
  bool fits_32_bits(const Pool<T, int64_t>& pool) const {
    const Geometry<int64_t>& g = pool.axes;
    const int64_t limit = call_.index_limit;
    const auto spans = [&](const Strides<int64_t>& s) {
      return (g.t.size - 1) * s.t + (g.h.size - 1) * s.h + (g.w.size - 1) * s.w + pool.inner;
    };
    const auto fits = [limit](const Axis<int64_t>& a) {
      return a.size + 2 * a.kernel * a.dilation + a.stride < limit && (a.kernel > 0 || (a.size + 1) * a.out < limit);
    };
    return spans(pool.input) < limit && spans(pool.input_grad) < limit && pool.outputs < limit &&
           pool.output.c < limit && call_.batch * pool.outer_channels * g.t.size < limit && fits(g.t) &&
           fits(g.h) && fits(g.w);
  }

  static Pool<T, int32_t> narrowed(const Pool<T, int64_t>& pool) {
    const auto strides = [](const Strides<int64_t>& s) {
      return Strides<int32_t>{s.n, s.c, static_cast<int32_t>(s.t), static_cast<int32_t>(s.h),
                              static_cast<int32_t>(s.w)};
    };
    return {softpool3d::narrowed(pool.axes),
            strides(pool.input),
            strides(pool.input_grad),
            strides(pool.output),
            static_cast<int32_t>(pool.outer_channels),
            static_cast<int32_t>(pool.inner),
            pool.inner_is_channels,
            pool.outputs,
            pool.betas,
            pool.beta};
  }

  // The number of taps of the largest window along an axis.
  static int64_t most_taps(const Axis<int64_t>& a) {
    return min_of(a.size, a.kernel == 0 ? ceil_div(a.size, a.out) + 1 : a.kernel);
  }

  bool has_kernel(int64_t t, int64_t h, int64_t w) const {
    const auto is = [](const Axis<int64_t>& a, int64_t kernel) {
      return a.kernel == kernel && (a.dilation == 1 || kernel == 1);
    };
    return is(call_.axes.t, t) && is(call_.axes.h, h) && is(call_.axes.w, w);
  }

  bool large() const {
    return most_taps(call_.axes.t) * most_taps(call_.axes.h) * most_taps(call_.axes.w) >= kLarge;
  }

  // Whether kWide inner elements can be read and written at once, given what is written or read besides x.
  template <class... Others>
  bool columns_of_16_bytes(const Pool<T, int64_t>& pool, const Others*... others) const {
    const Strides<int64_t>& s = pool.input;
    return pool.inner % kWide == 0 && s.n % kWide == 0 && s.c % kWide == 0 && s.t % kWide == 0 && s.h % kWide == 0 &&
           s.w % kWide == 0 && aligned(call_.x, others...);
  }

  // Whether Rows can read the windows along w.
  template <class... Others>
  bool rows_of_16_bytes(const Others*... others) const {
    const Pool<T, int64_t> pool = unfolded();
    const Strides<int64_t>& s = pool.input;
    const Axis<int64_t>& w = pool.axes.w;
    return !call_.channels_last && w.stride == 2 && w.padding == 0 && w.size % kWide == 0 &&
           w.out * 2 == w.size && s.n % kWide == 0 && s.c % kWide == 0 && s.t % kWide == 0 && s.h % kWide == 0 &&
           aligned(call_.x, others...);
  }

  // Whether vectors of n elements, along w or the inner dimension, are aligned in every row of x and in the others.
  template <class... Others>
  bool vectors_of(int64_t n, const Pool<T, int64_t>& pool, const Others*... others) const {
    const Strides<int64_t>& s = pool.input;
    const auto aligned_to = [&](const void* p) { return reinterpret_cast<uintptr_t>(p) % (n * sizeof(T)) == 0; };
    return s.n % n == 0 && s.c % n == 0 && s.t % n == 0 && s.h % n == 0 && aligned_to(call_.x) &&
           (aligned_to(others) && ...);
  }

  // Whether teams of threads compute the windows.
  bool by_teams(const Pool<T, int64_t>& pool) const {
    const Geometry<int64_t>& g = call_.axes;
    const int64_t taps = most_taps(g.t) * most_taps(g.h) * most_taps(g.w);
    const int64_t threads = pool.outputs / (pool.inner % kWide == 0 ? kWide : 1);
    return large() || (taps >= kMany && (threads < kFewThreads || is_run(as_run(pool))));
  }

  // Whether each position lies in exactly one window.
  bool partition() const {
    const auto is = [](const Axis<int64_t>& a) {
      return a.kernel > 0 && a.dilation == 1 && (a.out == 1 || a.stride == a.kernel) &&
             (a.out - 1) * a.stride + a.kernel - a.padding >= a.size;
    };
    return is(call_.axes.t) && is(call_.axes.h) && is(call_.axes.w);
  }

  // Whether a single window holds all positions of the axis.
  static bool whole(const Axis<int64_t>& a) {
    return a.out == 1 && a.kernel > 0 && a.dilation == 1 && a.kernel - a.padding >= a.size;
  }

  static bool is_run(const Pool<T, int64_t>& pool) {
    const Geometry<int64_t>& g = pool.axes;
    return g.t.size == 1 && g.h.size == 1 && whole(g.t) && whole(g.h) && g.w.dilation == 1;
  }

  // Windows that are whole planes along t are runs of positions: returns the pool with these as its only axis. Any
  // other pool is returned as it is.
  static Pool<T, int64_t> as_run(const Pool<T, int64_t>& pool) {
    const Axis<int64_t>&t = pool.axes.t, &h = pool.axes.h, &w = pool.axes.w;
    const Strides<int64_t>& s = pool.input;
    const int64_t plane = h.size * w.size;
    const int64_t step = w.size > 1 ? s.w : h.size > 1 ? s.h : t.size > 1 ? s.t : pool.inner;
    const bool dense = (h.size == 1 || s.h == w.size * step) && (t.size == 1 || s.t == plane * step);
    if (!whole(h) || !whole(w) || t.kernel == 0 || t.dilation != 1 || !dense) return pool;
    Pool<T, int64_t> run = pool;
    const int64_t kernel = min_of(t.kernel, t.size + t.padding);  // cut to the input, so that nothing overflows
    run.axes = {single(), single(), {t.size * plane, t.out, kernel * plane, t.stride * plane, t.padding * plane, 1}};
    if (whole(t)) run.axes.w = {t.size * plane, 1, t.size * plane, t.size * plane, 0, 1};
    run.input = {s.n, s.c, 0, 0, step};
    run.input_grad = dense_strides(pool.input_grad, pool.inner);
    run.output = dense_strides(pool.output, pool.inner);
    return run;
  }

  // Whether runs without an inner dimension, and what else is read or written, can be read 16 bytes at a time.
  template <class... Others>
  bool runs_of_16_bytes(const Pool<T, int64_t>& pool, const Others*... others) const {
    const Axis<int64_t>& w = pool.axes.w;
    return w.kernel > 0 && w.size % kWide == 0 && w.kernel % kWide == 0 && w.stride % kWide == 0 &&
           w.padding % kWide == 0 && pool.input.w == 1 && pool.input.n % kWide == 0 && pool.input.c % kWide == 0 &&
           aligned(call_.x, others...);
  }

  // The same runs, in vectors.
  static Pool<T, int64_t> in_vectors(Pool<T, int64_t> pool) {
    Axis<int64_t>& w = pool.axes.w;
    w = {w.size / kWide, w.out, w.kernel / kWide, w.stride / kWide, w.padding / kWide, 1};
    pool.input.w = pool.input_grad.w = kWide;
    return pool;
  }

  // Windows that lie side by side from the first position on, and few enough to be numbered in 32 bits with those that
  // are incomplete.
  bool tiled() const {
    const auto is = [](const Axis<int64_t>& a) {
      const bool side_by_side = a.kernel == a.stride || (a.out == 1 && a.kernel >= a.size);
      return a.kernel > 0 && a.padding == 0 && (a.dilation == 1 || a.kernel == 1) && side_by_side;
    };
    const Geometry<int64_t>& g = call_.axes;
    return is(g.t) && is(g.h) && is(g.w) &&
           call_.batch * call_.channels * tiles(g.t) * tiles(g.h) * tiles(g.w) < call_.index_limit;
  }

  static int64_t tiles(const Axis<int64_t>& a) { return ceil_div(a.size, a.kernel); }

 private:
  static Axis<int64_t> single() { return {1, 1, 1, 1, 0, 1}; }

  static bool untouched(const Axis<int64_t>& a) { return a.kernel == 1 && a.stride == 1 && a.padding == 0; }

  Pool<T, int64_t> pool_of(const Geometry<int64_t>& g, int64_t inner, bool inner_is_channels,
                           Strides<int64_t> input) const {
    Pool<T, int64_t> pool;
    pool.axes = g;
    pool.outer_channels = call_.channels_last ? 1 : call_.channels;
    pool.inner = inner;
    pool.inner_is_channels = inner_is_channels;
    // The stride of an axis of one position means nothing; as 0 it does not spoil the alignment.
    pool.input = {call_.batch > 1 ? input.n : 0, pool.outer_channels > 1 ? input.c : 0, g.t.size > 1 ? input.t : 0,
                  g.h.size > 1 ? input.h : 0, g.w.size > 1 ? input.w : 0};
    pool.input_grad = dense(g.t.size, g.h.size, g.w.size, inner, pool.outer_channels);
    pool.output = dense(g.t.out, g.h.out, g.w.out, inner, pool.outer_channels);
    pool.outputs = call_.batch * pool.output.n;
    pool.betas = call_.betas;
    pool.beta = static_cast<Acc>(std::clamp<double>(call_.beta, -Limits<Acc>::max, Limits<Acc>::max));
    return pool;
  }

  static Strides<int64_t> dense(int64_t t, int64_t h, int64_t w, int64_t inner, int64_t channels) {
    return {channels * t * h * w * inner, t * h * w * inner, h * w * inner, w * inner, inner};
  }

  template <class... Pointers>
  static bool aligned(const Pointers*... pointers) {
    return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
  }

  static Strides<int64_t> dense_strides(const Strides<int64_t>& s, int64_t inner) { return {s.n, s.c, 0, 0, inner}; }

  const Call<T>& call_;
};

}  // namespace softpool3d::cuda
