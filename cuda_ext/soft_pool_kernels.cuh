// The CUDA kernels for windows of which a thread computes one, or several side by side, and for the gradient of beta.
// The arithmetic of indices is in geometry.h, that of a window in window.h.
//
// Nothing in this file needs a GPU's compiler beyond its keywords: tests/cuda_ext compiles it with g++ and a launch
// shim and runs it under sanitizers.

#pragma once

#include "soft_pool_sums.cuh"
#include "soft_pool_window.cuh"

namespace softpool3d::cuda {

// --- windows of a thread: a kernel forward and one backward, for every kind of soft_pool_window.cuh -----------------

template <class T, class Index, int V, class Kind>
__global__ void __launch_bounds__(kThreads, Kind::blocks(V))
    forward_windows(const T* x, T* y, Pool<T, Index> pool, Split<Index> split, Index count) {
  using Window = typename Kind::template Window<T, Index, V>;
  const Index id = global_id<Index>();
  if (id >= count) return;
  const Place<Index> at = split(id, Window::kInner);
  const auto beta = Window::betas(pool, at);
  const Window window(x + pool.input.plane(at), pool, at);
  store<V>(y + Window::output(pool, at), means_of<V, T>(window, beta));
}

// The gradient where windows tile the input: every thread computes its window once more and writes the gradient of all
// of it. `split` also counts a last, incomplete window on an axis where there is one, so that all of the gradient is
// written; where the output has none, it is 0.
template <class T, class Index, int V, class Kind>
__global__ void __launch_bounds__(kThreads, Kind::blocks(V))
    backward_windows(const T* x, const T* y_grad, T* x_grad, Pool<T, Index> pool, Split<Index> split, Index count) {
  using Acc = AccOf<T>;
  using Window = typename Kind::template Window<T, Index, V>;
  const Index id = global_id<Index>();
  if (id >= count) return;
  const Place<Index> at = split(id, Window::kInner);
  const bool has_output = Window::has_output(pool, at);
  const auto beta = Window::betas(pool, at);
  const Window window(x + pool.input.plane(at), pool, at);
  Vec<T, V> g = {};
  if (has_output) g = load<V>(y_grad + Window::output(pool, at));
  x_grad += pool.input_grad.plane(at);
  const auto write = [&](const auto& gradient, auto whole) { window.write(x_grad, pool.input_grad, gradient, whole); };
  if (has_output)
    write_gradients<V, T>(window, beta, g, write);
  else
    write([](int, int, Acc) { return Acc(0); }, std::false_type());
}

// --- any backward: a gather over the windows that hold a position ---------------------------------------------------

// What a block of backward_gather computes: the gradient of a box of positions times `lanes` vectors of inner elements.
// windows_*: the most windows that lie over a box along that axis.
template <class Index>
struct Box {
  Index t, h, w, windows_t, windows_h, windows_w, lanes;
  Divider<Index> by_lanes, by_h, by_w, by_windows_h, by_windows_w;

  __host__ __device__ Index positions() const { return t * h * w; }
  __host__ __device__ Index windows() const { return windows_t * windows_h * windows_w; }
};

// Stats of windows as three arrays: pivot, g / sum of the weights, half_offset. `apart`: elements from one array to the
// next.
template <int V, class Acc>
__device__ __forceinline__ void store_stats(Acc* to, int64_t apart, const Lanes<Stats<Acc>, V>& stats,
                                            const Lanes<Acc, V>& g) {
  Vec<Acc, V> pivot, share, half_offset;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    pivot.of[v] = stats[v].pivot;
    share.of[v] = stats[v].inverse_sum * g[v];
    half_offset.of[v] = stats[v].half_offset;
  }
  *reinterpret_cast<Vec<Acc, V>*>(to) = pivot;
  *reinterpret_cast<Vec<Acc, V>*>(to + apart) = share;
  *reinterpret_cast<Vec<Acc, V>*>(to + 2 * apart) = half_offset;
}

// Shared memory: the windows over each coordinate of the box (t, then h, then w), then the stats of its windows.
template <class T, class Index>
__host__ __device__ constexpr int64_t gather_bytes(const Box<Index>& box, int V, bool with_stats) {
  const int64_t ranges = (box.t + box.h + box.w) * sizeof(Index) * 2;
  const int64_t stats = with_stats ? int64_t{3} * box.windows() * box.lanes * V * sizeof(AccOf<T>) : 0;
  return (ranges + 31) / 32 * 32 + stats;
}

// The gradient of every position, from the stats of all windows over it. The stats were computed before (`ready`:
// arrays as long as the output, `apart` elements from one to the next), or are computed here first, into shared memory.
// Windows over two boxes are then computed twice, but neither stats nor x go through global memory once more.
template <class T, class Index, int V, bool kReady>
__global__ void __launch_bounds__(kThreads, 2)
    backward_gather(const T* x, const T* y_grad, T* x_grad, Pool<T, Index> pool, Split<Index> split, Box<Index> box,
                    const AccOf<T>* ready, int64_t apart) {
  using Acc = AccOf<T>;
  SOFTPOOL_SHARED(shared);
  const Axis<Index>&at = pool.axes.t, &ah = pool.axes.h, &aw = pool.axes.w;
  const Place<Index> place = split(static_cast<Index>(blockIdx.x), box.lanes * V);
  const Index t0 = place.t * box.t, h0 = place.h * box.h, w0 = place.w * box.w;
  // Windows over the box: all from the first over its first position to the last over its last.
  const Index first_t = at.windows_over(t0).begin, first_h = ah.windows_over(h0).begin,
              first_w = aw.windows_over(w0).begin;

  auto* const over_t = reinterpret_cast<Index*>(shared);
  auto* const over_h = over_t + 2 * box.t;
  auto* const over_w = over_h + 2 * box.h;
  const auto list = [&](Index* over, const Axis<Index>& axis, Index begin, Index extent) {
    for (Index i = threadIdx.x; i < extent; i += blockDim.x) {
      const Range<Index> range = begin + i < axis.size ? axis.windows_over(begin + i) : Range<Index>{0, 0, 1};
      over[2 * i] = range.begin;
      over[2 * i + 1] = range.end;
    }
  };
  list(over_t, at, t0, box.t);
  list(over_h, ah, h0, box.h);
  list(over_w, aw, w0, box.w);

  auto* const stats = reinterpret_cast<Acc*>(shared + gather_bytes<T>(box, V, false));
  const Index per_array = box.windows() * box.lanes * V;
  if constexpr (!kReady) {
    const Index end_t = at.windows_over(min_of(t0 + box.t, at.size) - 1).end,
                end_h = ah.windows_over(min_of(h0 + box.h, ah.size) - 1).end,
                end_w = aw.windows_over(min_of(w0 + box.w, aw.size) - 1).end;
    for (Index i = threadIdx.x; i < box.windows() * box.lanes; i += blockDim.x) {
      const Index window = box.by_lanes(i), row = box.by_windows_w(window), slab = box.by_windows_h(row);
      Place<Index> o = place;
      o.inner += (i - window * box.lanes) * V;
      o.w = first_w + window - row * box.windows_w;
      o.h = first_h + row - slab * box.windows_h;
      o.t = first_t + slab;
      if (o.inner >= pool.inner || o.t >= end_t || o.h >= end_h || o.w >= end_w) continue;
      const auto beta = lanes_of<V>([&](int v) { return pool.beta_at(o, v); });
      const auto sums = sums_of<V, T>(Any::Window<T, Index, V>(x + pool.input.plane(o), pool, o), beta);
      const Vec<T, V> g = load<V>(y_grad + pool.output(o));
      store_stats<V, Acc>(stats + i * V, per_array, lanes_of<V>([&](int v) { return sums[v].stats(); }),
                          lanes_of<V>([&](int v) { return static_cast<Acc>(g.of[v]); }));
    }
  }
  __syncthreads();

  for (Index i = threadIdx.x; i < box.positions() * box.lanes; i += blockDim.x) {
    const Index position = box.by_lanes(i), row = box.by_w(position), slab = box.by_h(row);
    const Index lane = i - position * box.lanes, bw = position - row * box.w, bh = row - slab * box.h, bt = slab;
    Place<Index> here = place;
    here.inner += lane * V;
    here.t = t0 + bt;
    here.h = h0 + bh;
    here.w = w0 + bw;
    if (here.inner >= pool.inner || here.t >= at.size || here.h >= ah.size || here.w >= aw.size) continue;
    const auto beta = lanes_of<V>([&](int v) { return pool.beta_at(here, v); });
    const Vec<T, V> value = load<V>(x + pool.input(here));
    bool usual = true;
#pragma unroll
    for (int v = 0; v < V; ++v) usual &= is_usual(beta[v]) && is_finite(static_cast<Acc>(value.of[v]));
    Lanes<Acc, V> sum = {};
    for (Index ot = over_t[2 * bt]; ot < over_t[2 * bt + 1]; ++ot) {
      if (!at.holds(ot, here.t)) continue;
      for (Index oh = over_h[2 * bh]; oh < over_h[2 * bh + 1]; ++oh) {
        if (!ah.holds(oh, here.h)) continue;
        for (Index ow = over_w[2 * bw]; ow < over_w[2 * bw + 1]; ++ow) {
          if (!aw.holds(ow, here.w)) continue;
          const Acc* from;
          if constexpr (kReady) {
            from = ready + pool.output.plane(here) + pool.output.in_plane(ot, oh, ow);
          } else {
            const Index window =
                ((ot - first_t) * box.windows_h + (oh - first_h)) * box.windows_w + (ow - first_w);
            from = stats + (window * box.lanes + lane) * V;
          }
          const int64_t step = kReady ? apart : per_array;
          const Vec<Acc, V> pivot = load<V>(from), share = load<V>(from + step), offset = load<V>(from + 2 * step);
#pragma unroll
          for (int v = 0; v < V; ++v) {
            const Stats<Acc> window = {pivot.of[v], share.of[v], offset.of[v]};
            const Acc x_v = static_cast<Acc>(value.of[v]);
            sum[v] += usual ? window.gradient_usual(x_v, Acc(1), beta[v]) : window.gradient(x_v, Acc(1), beta[v]);
          }
        }
      }
    }
    Vec<T, V> result;
#pragma unroll
    for (int v = 0; v < V; ++v) result.of[v] = static_cast<T>(sum[v]);
    store<V>(x_grad + pool.input_grad(here), result);
  }
}

// --- dL/dbeta of each channel: two stages, each in a fixed order ----------------------------------------------------

// One block adds up the outputs of one slice of planes n, c for V x `lanes` inner elements: shares[n, slice][channel].
template <class T, class Index, int V>
__global__ void __launch_bounds__(kThreads, 2)
    beta_shares(const T* x, const T* y_grad, AccOf<T>* shares, Pool<T, Index> pool, Split<Index> split,
                Divider<Index> by_h, Divider<Index> by_w, int slices, Index per_slice, int lanes) {
  using Acc = AccOf<T>;
  SOFTPOOL_SHARED(shared);
  const Index block = static_cast<Index>(blockIdx.x) / slices;
  const int slice = static_cast<int>(blockIdx.x % slices);
  const int lane = threadIdx.x % lanes, row = threadIdx.x / lanes, rows = blockDim.x / lanes;
  Place<Index> at = split(block, V * lanes);
  at.inner += lane * V;
  const bool active = at.inner < pool.inner;
  const Index outputs = pool.axes.t.out * pool.axes.h.out * pool.axes.w.out;
  const Index begin = slice * per_slice, end = min_of(begin + per_slice, outputs);

  const auto beta = lanes_of<V>([&](int v) { return active ? pool.beta_at(at, v) : Acc(0); });
  Lanes<Acc, V> share = {};
  for (Index o = begin + row; active && o < end; o += rows) {
    const Index o_h = by_w(o);
    at.t = by_h(o_h);
    at.h = o_h - at.t * by_h.by;
    at.w = o - o_h * by_w.by;
    const auto sums = sums_of<V, T>(Any::Window<T, Index, V>(x + pool.input.plane(at), pool, at), beta);
    const Vec<T, V> g = load<V>(y_grad + pool.output(at));
#pragma unroll
    for (int v = 0; v < V; ++v) share[v] += static_cast<Acc>(g.of[v]) * sums[v].variance();
  }
  auto* const sums = reinterpret_cast<Lanes<Acc, V>*>(shared);
  sums[threadIdx.x] = share;
  for (int step = rows / 2; step > 0; step /= 2) {
    __syncthreads();
    if (row < step)
      for (int v = 0; v < V; ++v) sums[threadIdx.x][v] += sums[threadIdx.x + step * lanes][v];
  }
  if (row > 0 || !active) return;
  shares += (static_cast<int64_t>(at.n) * slices + slice) * pool.channels();
  for (int v = 0; v < V; ++v) shares[pool.channel(at, v)] = sums[threadIdx.x][v];
}

template <class Acc>
__global__ void __launch_bounds__(kThreads)
    sum_shares(const Acc* shares, Acc* sums, int64_t rows, int64_t channels) {
  const int64_t channel = global_id<int64_t>();
  if (channel >= channels) return;
  Acc sum = 0;
  for (int64_t row = 0; row < rows; ++row) sum += shares[row * channels + channel];
  sums[channel] = sum;
}

}  // namespace softpool3d::cuda
