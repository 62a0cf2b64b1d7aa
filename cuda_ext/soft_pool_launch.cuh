// Which CUDA kernel runs for a call, and on what grid. Host code without torch, so that the tests run all of it.

#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>

#include "soft_pool_kernels.cuh"
#include "soft_pool_overlap.cuh"
#include "soft_pool_overlap_backward.cuh"
#include "soft_pool_reduce.cuh"
#include "soft_pool_tile.cuh"

namespace softpool3d::cuda {

#ifdef __CUDACC__
using Stream = cudaStream_t;

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared, Stream stream,
            const Arguments&... arguments) {
  kernel<<<static_cast<unsigned>(blocks), threads, shared, stream>>>(arguments...);
}
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

template <class T>
class Launcher {
  using Acc = AccOf<T>;

 public:
  explicit Launcher(const Call<T>& call) : call_(call) {}

  void forward(T* y) const {
    const Pool<T, int64_t> pool = folded();
    if (by_teams(pool)) return reduce(pool, {.y = y});
    if (!fits_32_bits(pool)) return columns<Any, int64_t, 1>(pool, y);
    const auto narrow = narrowed(pool);
    if constexpr (kSpecialised) {
      const auto overlap = [&](auto kind) { overlapping<decltype(kind)>(narrow, y); };
      if (with_known_overlap(pool, overlap, y)) return;
      if (rows_of_16_bytes(y) && kernel_is(2, 2, 2)) return rows<2, 2, 2>(narrow, y);
      if (rows_of_16_bytes(y) && kernel_is(1, 2, 2)) return rows<1, 2, 2>(narrow, y);
      if (columns_of_16_bytes(pool, y)) {
        if (kernel_is(2, 2, 2)) return columns<Fixed<2, 2, 2>, int32_t, kWide>(narrow, y);
        if (kernel_is(1, 2, 2)) return columns<Fixed<1, 2, 2>, int32_t, kWide>(narrow, y);
        if (kernel_is(1, 3, 3)) return columns<Fixed<1, 3, 3>, int32_t, kFixed>(narrow, y);
        if (kernel_is(2, 1, 1)) return columns<Fixed<2, 1, 1>, int32_t, kWide>(narrow, y);
      } else {
        if (kernel_is(2, 2, 2)) return columns<Fixed<2, 2, 2>, int32_t, 1>(narrow, y);
        if (kernel_is(1, 2, 2)) return columns<Fixed<1, 2, 2>, int32_t, 1>(narrow, y);
        if (kernel_is(3, 3, 3)) return columns<Fixed<3, 3, 3>, int32_t, 1>(narrow, y);
        if (kernel_is(1, 3, 3)) return columns<Fixed<1, 3, 3>, int32_t, 1>(narrow, y);
      }
    }
    if (columns_of_16_bytes(pool, y)) return columns<Any, int32_t, kWide>(narrow, y);
    columns<Any, int32_t, 1>(narrow, y);
  }

  void backward(const T* y_grad, T* x_grad) const {
    const Pool<T, int64_t> pool = folded();
    const bool narrow_fits = fits_32_bits(pool);
    const bool wide = narrow_fits && columns_of_16_bytes(pool, y_grad, x_grad);
    const bool in_shared_memory = box_of(pool, 1, true).positions() > 0;
    if ((partition() ? by_teams(pool) : large()) || !in_shared_memory) {
      // Few windows for many positions, or more windows over a position than shared memory holds: a kernel of its own
      // computes their stats first.
      const int64_t apart = (pool.outputs + kWide - 1) / kWide * kWide;
      auto* const stats = static_cast<Acc*>(call_.workspace(3 * apart * sizeof(Acc)));
      reduce(pool, {.stats = stats, .apart = apart, .y_grad = y_grad});
      if (partition()) return spread(pool, x_grad, stats, apart);
      if (!narrow_fits) return gather<int64_t, 1, true>(pool, y_grad, x_grad, stats, apart);
      if (wide) return gather<int32_t, kWide, true>(narrowed(pool), y_grad, x_grad, stats, apart);
      return gather<int32_t, 1, true>(narrowed(pool), y_grad, x_grad, stats, apart);
    }
    if (!narrow_fits) return gather<int64_t, 1, false>(pool, y_grad, x_grad, nullptr, 0);
    const auto narrow = narrowed(pool);
    if (tiled()) {
      if constexpr (kSpecialised) {
        if (rows_of_16_bytes(y_grad, x_grad)) {
          if (kernel_is(2, 2, 2)) return tiled_rows<2, 2, 2>(narrow, y_grad, x_grad);
          if (kernel_is(1, 2, 2)) return tiled_rows<1, 2, 2>(narrow, y_grad, x_grad);
        }
        if (kernel_is(2, 2, 2))
          return wide ? tiled_columns<Fixed<2, 2, 2>, kFixed>(narrow, y_grad, x_grad)
                      : tiled_columns<Fixed<2, 2, 2>, 1>(narrow, y_grad, x_grad);
        if (kernel_is(1, 2, 2))
          return wide ? tiled_columns<Fixed<1, 2, 2>, kWide>(narrow, y_grad, x_grad)
                      : tiled_columns<Fixed<1, 2, 2>, 1>(narrow, y_grad, x_grad);
        if (kernel_is(2, 1, 1) && wide) return tiled_columns<Fixed<2, 1, 1>, kWide>(narrow, y_grad, x_grad);
      }
      return wide ? tiled_columns<Any, kWide>(narrow, y_grad, x_grad)
                  : tiled_columns<Any, 1>(narrow, y_grad, x_grad);
    }
    if constexpr (kSpecialised) {
      const auto overlap = [&](auto kind) { overlapping<decltype(kind)>(narrow, y_grad, x_grad); };
      if (with_known_overlap(pool, overlap, y_grad, x_grad)) return;
    }
    if (wide && box_of(pool, kWide, true).positions() > 0)
      return gather<int32_t, kWide, false>(narrow, y_grad, x_grad, nullptr, 0);
    gather<int32_t, 1, false>(narrow, y_grad, x_grad, nullptr, 0);
  }

  // dL/dbeta of each channel
  void beta_gradient(const T* y_grad, Acc* sums) const {
    const Pool<T, int64_t> pool = unfolded();
    const int64_t outputs = call_.axes.t.out * call_.axes.h.out * call_.axes.w.out;
    int64_t rows;
    Acc* shares;
    if (large() || (by_teams(pool) && call_.batch * outputs <= kFewRows)) {
      rows = call_.batch * outputs;
      shares = static_cast<Acc*>(call_.workspace(rows * call_.channels * sizeof(Acc)));
      reduce(pool, {.beta_shares = shares, .y_grad = y_grad});
    } else {
      const bool narrow_fits = fits_32_bits(pool);
      const bool wide = narrow_fits && columns_of_16_bytes(pool, y_grad);
      const int lanes = lanes_of(pool.inner, wide ? kWide : 1);
      const int64_t per_slice = kThreads / lanes * kWindowsPerThread;
      const int64_t slices = ceil_div(outputs, per_slice);
      rows = call_.batch * slices;
      shares = static_cast<Acc*>(call_.workspace(rows * call_.channels * sizeof(Acc)));
      if (!narrow_fits)
        share<int64_t, 1>(pool, y_grad, shares, slices, per_slice, lanes);
      else if (wide)
        share<int32_t, kWide>(narrowed(pool), y_grad, shares, slices, per_slice, lanes);
      else
        share<int32_t, 1>(narrowed(pool), y_grad, shares, slices, per_slice, lanes);
    }
    launch(sum_shares<Acc>, ceil_div<int64_t>(call_.channels, kThreads), kThreads, 0, call_.stream, shares, sums, rows,
           call_.channels);
  }

 private:
  static constexpr int kWide = 16 / sizeof(T);
  // Windows held in registers side by side where more than four would leave room for one block only.
  static constexpr int kFixed = kWide < 4 ? kWide : 4;
  // Speed matters little in float64, so it has no specialised kernels.
  static constexpr bool kSpecialised = !std::is_same_v<T, double>;
  // Windows of kLarge values or more are always shared out to teams of threads. Windows of kMany or more are if they
  // are runs, or if one thread for each would make few threads.
  static constexpr int64_t kLarge = 512, kMany = 32, kFewThreads = int64_t{1} << 17, kFewRows = 4096;
  // Every GPU has 48 KB of shared memory to a block; less leaves room for several blocks.
  static constexpr int64_t kMostShared = 48 << 10, kGoodShared = 24 << 10;
  static constexpr int64_t kWindowsPerThread = 16;
  // As many blocks as keep the largest GPUs busy to the end. More would cost more merging for sums; gradients need
  // none.
  static constexpr int64_t kBlocksOfSums = 2640, kBlocksOfGradients = 10560;

  // --- the pool, as the kernels see it

  static Axis<int64_t> single() { return {1, 1, 1, 1, 0, 1}; }

  static bool untouched(const Axis<int64_t>& a) { return a.kernel == 1 && a.stride == 1 && a.padding == 0; }

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

  bool large() const {
    return most_taps(call_.axes.t) * most_taps(call_.axes.h) * most_taps(call_.axes.w) >= kLarge;
  }

  template <class... Pointers>
  static bool aligned(const Pointers*... pointers) {
    return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
  }

  // Whether kWide inner elements can be read and written at once, given what is written or read besides x.
  template <class... Others>
  bool columns_of_16_bytes(const Pool<T, int64_t>& pool, const Others*... others) const {
    const Strides<int64_t>& s = pool.input;
    return pool.inner % kWide == 0 && s.n % kWide == 0 && s.c % kWide == 0 && s.t % kWide == 0 && s.h % kWide == 0 &&
           s.w % kWide == 0 && aligned(call_.x, others...);
  }

  // Whether class Rows can read the windows along w.
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

  // Windows whose overlap the compiler knows, a line for each: kernel, stride and padding along t, h and w.
  template <class... Arguments>
  bool with_known_overlap(const Arguments&... arguments) const {
    return with_overlap<Along<1, 1, 0>, Along<3, 2, 1>, Along<3, 2, 1>>(arguments...) ||
           with_overlap<Along<3, 2, 1>, Along<3, 2, 1>, Along<3, 2, 1>>(arguments...) ||
           with_overlap<Along<3, 1, 1>, Along<3, 1, 1>, Along<3, 1, 1>>(arguments...);
  }

  // Calls run(Overlap<...>()) if these are the pool's windows, and returns whether they are.
  template <class AlongT, class H, class W, class Run, class... Others>
  bool with_overlap(const Pool<T, int64_t>& pool, Run run, const Others*... others) const {
    using Rows = Overlap<AlongT, H, W, WideRow>;
    constexpr int kLanes = 2;
    if (!Rows::is(pool.axes)) return false;
    const Axis<int64_t>& w = pool.axes.w;
    if (pool.inner == 1 && (pool.input.w == 1 || w.size == 1)) {
      const bool whole = w.size % Rows::kCellColumns == 0 && w.out * w.stride == w.size;
      if (whole && vectors_of(Rows::kCellColumns, pool, others...))
        run(Rows());
      else
        run(Overlap<AlongT, H, W, Row>());
    } else if (pool.inner % kLanes == 0 && pool.input.w % kLanes == 0 && vectors_of(kLanes, pool, others...)) {
      run(Overlap<AlongT, H, W, Inner<kLanes>>());
    } else {
      run(Overlap<AlongT, H, W, Inner<1>>());
    }
    return true;
  }

  bool kernel_is(int64_t t, int64_t h, int64_t w) const {
    const auto is = [](const Axis<int64_t>& a, int64_t kernel) {
      return a.kernel == kernel && (a.dilation == 1 || kernel == 1);
    };
    return is(call_.axes.t, t) && is(call_.axes.h, h) && is(call_.axes.w, w);
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

  static Strides<int64_t> dense_strides(const Strides<int64_t>& s, int64_t inner) { return {s.n, s.c, 0, 0, inner}; }

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

  // --- launches

  template <class Index>
  static Split<Index> split_of(int64_t c, int64_t t, int64_t h, int64_t w, int64_t groups) {
    const auto by = [](int64_t n) { return Divider<Index>(static_cast<Index>(n)); };
    return {by(c), by(t), by(h), by(w), by(groups)};
  }

  template <class Kind, class Index, int V>
  void columns(const Pool<T, Index>& pool, T* y) const {
    const Geometry<Index>& g = pool.axes;
    const int64_t count = pool.outputs / V;
    launch(forward_columns<T, Index, V, Kind>, ceil_div<int64_t>(count, kThreads), kThreads, 0, call_.stream, call_.x,
           y, pool, split_of<Index>(pool.outer_channels, g.t.out, g.h.out, g.w.out, pool.inner / V),
           static_cast<Index>(count));
  }

  template <int KT, int KH, int KW>
  void rows(const Pool<T, int32_t>& pool, T* y) const {
    const Geometry<int32_t>& g = pool.axes;
    const int32_t groups = g.w.size / kWide;
    const int64_t count = call_.batch * pool.outer_channels * g.t.out * g.h.out * groups;
    launch(forward_rows<T, KT, KH, KW>, ceil_div<int64_t>(count, kThreads), kThreads, 0, call_.stream, call_.x, y,
           pool, split_of<int32_t>(pool.outer_channels, g.t.out, g.h.out, groups, 1), static_cast<int32_t>(count));
  }

  template <class Kind>
  void overlapping(const Pool<T, int32_t>& pool, T* y) const {
    const Geometry<int32_t>& g = pool.axes;
    const int32_t h = ceil_div(g.h.out, Kind::kH), w = ceil_div(g.w.out, Kind::kW), groups = pool.inner / Kind::kLanes;
    const int64_t count = call_.batch * pool.outer_channels * g.t.out * h * w * groups;
    launch(forward_overlap<T, Kind>, ceil_div<int64_t>(count, kOverlapThreads), kOverlapThreads, 0, call_.stream,
           call_.x, y, pool, split_of<int32_t>(pool.outer_channels, g.t.out, h, w, groups),
           static_cast<int32_t>(count));
  }

  template <class Kind>
  void overlapping(const Pool<T, int32_t>& pool, const T* y_grad, T* x_grad) const {
    const Tile tile = Tiling<Kind>(pool, call_.batch * pool.outer_channels).best();
    const Geometry<int32_t>& g = pool.axes;
    const int32_t t = ceil_div(ceil_div(g.t.size, Kind::AlongT::kStride), tile.t),
                  h = ceil_div(ceil_div(g.h.size, Kind::AlongH::kStride), tile.h),
                  w = ceil_div(ceil_div(g.w.size, Kind::AlongW::kStride), tile.w),
                  groups = ceil_div(pool.inner, tile.lanes * Kind::kLanes);
    const int32_t warps = ceil_div(tile.window_run_count, 32);
    launch(backward_overlap<T, Kind>, call_.batch * pool.outer_channels * t * h * w * groups,
           min_of(32 * warps, kOverlapThreads), tile.bytes(Kind::kLanes), call_.stream, call_.x, y_grad, x_grad, pool,
           split_of<int32_t>(pool.outer_channels, t, h, w, groups), tile);
  }

  template <class Kind, int V>
  void tiled_columns(const Pool<T, int32_t>& pool, const T* y_grad, T* x_grad) const {
    const int32_t t = ceil_div(pool.axes.t.size, pool.axes.t.kernel), h = ceil_div(pool.axes.h.size, pool.axes.h.kernel),
                  w = ceil_div(pool.axes.w.size, pool.axes.w.kernel);
    const int64_t count = call_.batch * pool.outer_channels * t * h * w * (pool.inner / V);
    launch(backward_columns<T, int32_t, V, Kind>, ceil_div<int64_t>(count, kThreads), kThreads, 0, call_.stream,
           call_.x, y_grad, x_grad, pool, split_of<int32_t>(pool.outer_channels, t, h, w, pool.inner / V),
           static_cast<int32_t>(count));
  }

  template <int KT, int KH, int KW>
  void tiled_rows(const Pool<T, int32_t>& pool, const T* y_grad, T* x_grad) const {
    const int32_t t = ceil_div(pool.axes.t.size, KT), h = ceil_div(pool.axes.h.size, KH), w = pool.axes.w.size / kWide;
    const int64_t count = call_.batch * pool.outer_channels * t * h * w;
    launch(backward_rows<T, KT, KH, KW>, ceil_div<int64_t>(count, kThreads), kThreads, 0, call_.stream, call_.x, y_grad,
           x_grad, pool, split_of<int32_t>(pool.outer_channels, t, h, w, 1), static_cast<int32_t>(count));
  }

  // How many threads read next to each other along `inner`, V elements each: a power of two, up to a cache line of 128
  // bytes or, where a block has to keep much for each, a part of it.
  static int lanes_of(int64_t inner, int V, int part = 1) {
    const int most = V > 1 ? 8 / part : kMostLanes;
    int lanes = 1;
    while (2 * lanes <= most && 2 * lanes * V <= inner) lanes *= 2;
    return lanes;
  }

  // How many windows lie over `positions` next to each other, at most.
  static int64_t most_windows(const Axis<int64_t>& a, int64_t positions) {
    if (a.kernel == 0) return min_of(a.out, ceil_div(positions * a.out, a.size) + 1);
    return min_of(a.out, (positions - 1 + (a.kernel - 1) * a.dilation) / a.stride + 1);
  }

  static Box<int64_t> box_over(const Geometry<int64_t>& g, int64_t t, int64_t h, int64_t w) {
    Box<int64_t> box = {};
    box.t = t;
    box.h = h;
    box.w = w;
    box.windows_t = most_windows(g.t, t);
    box.windows_h = most_windows(g.h, h);
    box.windows_w = most_windows(g.w, w);
    return box;
  }

  // A box whose windows' stats fit into shared memory; of no positions if there is none.
  static Box<int64_t> box_of(const Pool<T, int64_t>& pool, int V, bool with_stats) {
    const Geometry<int64_t>& g = pool.axes;
    int64_t lanes = lanes_of(pool.inner, V, 2);
    Box<int64_t> box = box_over(g, g.t.size, g.h.size, g.w.size);
    while (true) {
      box.lanes = lanes;
      const int64_t bytes = gather_bytes<T>(box, V, with_stats);
      if (bytes <= kGoodShared && box.positions() * lanes * V <= kBoxElements) return box;
      if (box.positions() > 1) {
        // Cut where it makes the fewest windows lie over two boxes. Rows without an inner dimension stay long enough
        // for a warp or two, which read them side by side.
        const Box<int64_t> whole = box;
        const auto keep_fewer = [&](bool allowed, int64_t t, int64_t h, int64_t w) {
          const Box<int64_t> half = box_over(g, t, h, w);
          const bool first = box.positions() == whole.positions();
          if (allowed && (first || half.windows() * box.positions() < box.windows() * half.positions())) box = half;
        };
        keep_fewer(whole.h > 1, whole.t, ceil_div<int64_t>(whole.h, 2), whole.w);
        keep_fewer(whole.t > 1, ceil_div<int64_t>(whole.t, 2), whole.h, whole.w);
        const bool long_rows = pool.inner > 1 || whole.w > 64 || whole.t * whole.h == 1;
        keep_fewer(whole.w > 1 && long_rows, whole.t, whole.h, ceil_div<int64_t>(whole.w, 2));
      } else if (lanes > 1) {
        lanes /= 2;
      } else {
        if (bytes > kMostShared) box.t = 0;
        return box;
      }
    }
  }

  template <class Index, int V, bool kReady>
  void gather(const Pool<T, Index>& pool, const T* y_grad, T* x_grad, const Acc* ready, int64_t apart) const {
    const Box<int64_t> plan = box_of(folded(), V, !kReady);
    const auto as = [](int64_t n) { return static_cast<Index>(n); };
    const auto by = [](int64_t n) { return Divider<Index>(static_cast<Index>(n)); };
    const Box<Index> box = {as(plan.t),         as(plan.h),         as(plan.w),         as(plan.windows_t),
                            as(plan.windows_h), as(plan.windows_w), as(plan.lanes),     by(plan.lanes),
                            by(plan.h),         by(plan.w),         by(plan.windows_h), by(plan.windows_w)};
    const Geometry<Index>& g = pool.axes;
    const int64_t t = ceil_div(g.t.size, box.t), h = ceil_div(g.h.size, box.h), w = ceil_div(g.w.size, box.w),
                  groups = ceil_div<int64_t>(pool.inner, box.lanes * V);
    launch(backward_gather<T, Index, V, kReady>, call_.batch * pool.outer_channels * t * h * w * groups, kThreads,
           gather_bytes<T>(box, V, !kReady), call_.stream, call_.x, y_grad, x_grad, pool,
           split_of<Index>(pool.outer_channels, t, h, w, groups), box, ready, apart);
  }

  // Calls f<Index, V, kAcross, kRun>(pool) for the widest kernel that fits the pool and what else is read or written.
  template <class F, class... Others>
  void by_layout(const Pool<T, int64_t>& any_pool, F f, const Others*... others) const {
    const Pool<T, int64_t> pool = as_run(any_pool);
    const bool wide = columns_of_16_bytes(pool, others...), run = is_run(pool);
    if (!fits_32_bits(pool)) {
      if (pool.inner == 1) return f.template operator()<int64_t, 1, true, false>(pool);
      return f.template operator()<int64_t, 1, false, false>(pool);
    }
    const Pool<T, int32_t> narrow = narrowed(pool);
    if (pool.inner == 1) {
      if (run && runs_of_16_bytes(pool, others...))
        return f.template operator()<int32_t, kWide, true, true>(narrowed(in_vectors(pool)));
      if (run) return f.template operator()<int32_t, 1, true, true>(narrow);
      return f.template operator()<int32_t, 1, true, false>(narrow);
    }
    if (wide && run) return f.template operator()<int32_t, kWide, false, true>(narrow);
    if (wide) return f.template operator()<int32_t, kWide, false, false>(narrow);
    f.template operator()<int32_t, 1, false, false>(narrow);
  }

  template <class Index, int V, bool kAcross>
  Teams<Index> teams_of(const Pool<T, Index>& pool, int64_t enough_blocks) const {
    const Geometry<Index>& g = pool.axes;
    const auto taps_along = [](const Axis<Index>& a) {
      return most_taps(Axis<int64_t>{a.size, a.out, a.kernel, a.stride, a.padding, a.dilation});
    };
    const int64_t h = taps_along(g.h), w = taps_along(g.w), taps = taps_along(g.t) * h * w;
    // Rows of a chunk or two each. Lanes fill the rest of the block, or a cache line, and differ little between groups.
    int64_t rows = 1, lanes = 1, groups = 1;
    while (2 * rows <= kThreads && 2 * rows * kChunk<V> <= taps) rows *= 2;
    if (!kAcross) {
      const int64_t vectors = pool.inner / V, line = V > 1 ? 8 : kMostLanes;
      groups = ceil_div(vectors, max_of(line, kThreads / rows));
      lanes = ceil_div(vectors, groups);
      groups = ceil_div(vectors, lanes);
      rows = min_of(kThreads / lanes, ceil_div<int64_t>(taps, kChunk<V>));
    }
    const int64_t teams = kThreads / (rows * lanes);
    const int64_t windows = call_.batch * pool.outer_channels * g.t.out * g.h.out * g.w.out * groups;
    // A window is cut, into whole chunks, only until there are enough blocks; each thread keeps two chunks at least.
    const int64_t chunks = rows * kChunk<V>;
    const int64_t wished = min_of(ceil_div(enough_blocks, ceil_div(windows, teams)), taps / (2 * chunks));
    const int64_t per_segment = wished > 1 ? (taps / wished + chunks / 2) / chunks * chunks : taps;
    const int64_t segments = ceil_div(taps, per_segment);
    const auto as = [](int64_t n) { return static_cast<Index>(n); };
    Teams<Index> plan = {};
    plan.windows = as(windows);
    plan.taps = as(taps);
    plan.per_segment = as(per_segment);
    plan.segments = as(segments);
    plan.teams = static_cast<int>(teams);
    plan.rows = static_cast<int>(rows);
    plan.lanes = static_cast<int>(lanes);
    plan.taps_h = as(h);
    plan.taps_w = as(w);
    plan.step_t = as(rows / (w * h));
    plan.step_h = as(rows / w % h);
    plan.step_w = as(rows % w);
    plan.by_segments = Divider<Index>(as(segments));
    plan.by_taps_h = Divider<Index>(as(h));
    plan.by_taps_w = Divider<Index>(as(w));
    plan.by_rows = Divider<int32_t>(static_cast<int32_t>(rows));
    plan.by_lanes = Divider<int32_t>(static_cast<int32_t>(lanes));
    return plan;
  }

  template <class Index, int V, bool kAcross>
  static Split<Index> split_of(const Pool<T, Index>& pool, const Teams<Index>& teams) {
    const int64_t groups = kAcross ? 1 : ceil_div<int64_t>(pool.inner, V * teams.lanes);
    return split_of<Index>(pool.outer_channels, pool.axes.t.out, pool.axes.h.out, pool.axes.w.out, groups);
  }

  void reduce(const Pool<T, int64_t>& any_pool, const Wanted<T>& wanted) const {
    by_layout(any_pool, [&]<class Index, int V, bool kAcross, bool kRun>(const Pool<T, Index>& pool) {
      // Only a learned beta needs squares. It has no kernel for runs, to compile fewer.
      if (wanted.beta_shares != nullptr)
        sum<Index, V, kAcross, false, true>(pool, wanted);
      else
        sum<Index, V, kAcross, kRun, false>(pool, wanted);
    });
  }

  template <class Index, int V, bool kAcross, bool kRun, bool kSquares>
  void sum(const Pool<T, Index>& pool, const Wanted<T>& wanted) const {
    const Teams<Index> teams = teams_of<Index, V, kAcross>(pool, kBlocksOfSums);
    Sums<Acc>* parts = nullptr;
    if (teams.segments > 1)
      parts = static_cast<Sums<Acc>*>(call_.workspace(teams.segments * pool.outputs * sizeof(Sums<Acc>)));
    launch(reduce_windows<T, Index, V, kAcross, kRun, kSquares>,
           ceil_div<int64_t>(teams.windows, teams.teams) * teams.segments, kThreads,
           reduce_bytes<T>(V, kAcross, kSquares), call_.stream, call_.x, pool,
           split_of<Index, V, kAcross>(pool, teams), teams, wanted, parts);
    if (teams.segments == 1) return;
    const Geometry<Index>& g = pool.axes;
    int rows = 1;
    while (rows < kThreads && rows < teams.segments) rows *= 2;
    launch(merge_segments<T, Index>, ceil_div<int64_t>(pool.outputs, kThreads / rows), kThreads,
           kThreads * sizeof(Sums<Acc>), call_.stream, pool,
           split_of<Index>(pool.outer_channels, g.t.out, g.h.out, g.w.out, pool.inner), teams.segments, rows, wanted,
           static_cast<const Sums<Acc>*>(parts));
  }

  void spread(const Pool<T, int64_t>& any_pool, T* x_grad, const Acc* stats, int64_t apart) const {
    const auto launch_for = [&]<class Index, int V, bool kAcross, bool kRun>(const Pool<T, Index>& pool) {
      const Teams<Index> teams = teams_of<Index, V, kAcross>(pool, kBlocksOfGradients);
      launch(spread_gradient<T, Index, V, kAcross, kRun>,
             ceil_div<int64_t>(teams.windows, teams.teams) * teams.segments, kThreads, 0, call_.stream, call_.x,
             x_grad, pool, split_of<Index, V, kAcross>(pool, teams), teams, stats, apart);
    };
    by_layout(any_pool, launch_for, x_grad);
  }

  template <class Index, int V>
  void share(const Pool<T, Index>& pool, const T* y_grad, Acc* shares, int64_t slices, int64_t per_slice,
             int lanes) const {
    const Geometry<Index>& g = pool.axes;
    const int64_t groups = ceil_div<int64_t>(pool.inner, V * lanes);
    launch(beta_shares<T, Index, V>, call_.batch * pool.outer_channels * groups * slices, kThreads,
           kThreads * V * sizeof(Acc), call_.stream, call_.x, y_grad, shares, pool,
           split_of<Index>(pool.outer_channels, 1, 1, 1, groups), Divider<Index>(g.h.out), Divider<Index>(g.w.out),
           static_cast<int>(slices), static_cast<Index>(per_slice), lanes);
  }

  const Call<T>& call_;
};

}  // namespace softpool3d::cuda
