// Overlapping windows whose size, stride and padding the compiler knows.
//
// Exponentials without a pivot. Where a window's sum of exponentials is neither tiny nor huge, e = exp(beta x) itself
// has full relative precision, and one e serves all windows that hold x. With g the output's gradient,
//
//     S = sum e,   M = sum e x,   y = M / S,   dL/dx = e (beta x A + B)
//     A = sum of g / S,   B = sum of (g / S) (1 - beta y)         over the windows that hold x
//
// so that a window is two numbers, and sums over windows are sums of sums. `is_tame` says when that holds. Other
// windows are computed by window.h, with the maximum subtracted: in the forward these alone, in the backward all
// windows of a block that has one.
//
// Cells. Along an axis of stride s, cell j is the positions [j s, j s + s). Which windows lie over the r-th position of
// a cell is known to the compiler: from j + first(r) to j + last(r). A thread takes a run of kH x kW windows, or cells,
// and reads what they share once.

#pragma once

#include "soft_pool_sums.cuh"
#include "soft_pool_window.cuh"

namespace softpool3d::cuda {

#ifdef __CUDACC__
constexpr int kOverlapThreads = 256;
#endif

// Windows along one axis, without dilation.
template <int K, int S, int P>
struct Along {
  static constexpr int kKernel = K, kStride = S, kPadding = P;

  __host__ __device__ static constexpr int first(int r) {
    const int spare = K - 1 - P - r;
    return spare >= 0 ? -(spare / S) : (S - 1 - spare) / S;
  }
  __host__ __device__ static constexpr int last(int r) { return (r + P) / S; }
  // How many windows over cell j come before window j, and after it.
  static constexpr int kBefore = -first(0), kAfter = last(S - 1);

  static bool is(const Axis<int64_t>& a) {
    return a.kernel == K && a.stride == S && a.padding == P && (a.dilation == 1 || K == 1);
  }
};

// What lies side by side: V inner elements (Inner), or positions along w, read one by one (Row) or a run of cells at
// once (WideRow).
template <int V>
struct Inner {
  static constexpr int kLanes = V;
  static constexpr bool kAlongW = false, kAtOnce = false;
};
struct Row {
  static constexpr int kLanes = 1;
  static constexpr bool kAlongW = true, kAtOnce = false;
};
struct WideRow {
  static constexpr int kLanes = 1;
  static constexpr bool kAlongW = true, kAtOnce = true;
};

// How a thread goes over windows along T, H and W.
template <class T, class H, class W, class Beside>
struct Overlap {
  using AlongT = T;
  using AlongH = H;
  using AlongW = W;
  static constexpr int kLanes = Beside::kLanes;
  static constexpr bool kAlongW = Beside::kAlongW, kAtOnce = Beside::kAtOnce;
  static constexpr int kH = H::kStride == 1 && kLanes == 1 ? 4 : 2,
                       kW = kAtOnce ? 4 / W::kStride : kLanes == 1 || W::kStride == 1 ? 2 : 1;
  // For __launch_bounds__; fewer registers would make the compiler keep values in memory.
  static constexpr int kBlocks = kLanes == 1 && (T::kKernel == 1 || (kAtOnce && H::kStride > 1)) ? 3 : 2;
  // The inputs of a run of windows, and the positions of a run of cells.
  static constexpr int kRows = (kH - 1) * H::kStride + H::kKernel, kColumns = (kW - 1) * W::kStride + W::kKernel;
  static constexpr int kCellRows = kH * H::kStride, kCellColumns = kW * W::kStride;
  // How many windows before its first cell a tile begins: runs that are read at once start where a run of cells does.
  static constexpr int kLead = kAtOnce ? (W::kBefore + kW - 1) / kW * kW : W::kBefore;

  static bool is(const Geometry<int64_t>& g) { return T::is(g.t) && H::is(g.h) && W::is(g.w); }
};

// Vectors at N places next to each other along w; a wide row reads and writes them as one.
template <class T, class Kind, int N>
struct Vectors {
  Vec<T, Kind::kLanes> of[N];

  // Reads the first `count` of them.
  __device__ __forceinline__ void read(const T* from, int32_t step, int32_t count) {
    if constexpr (Kind::kAtOnce) {
      if (count <= 0) return;
      const auto wide = load<N>(from);
#pragma unroll
      for (int p = 0; p < N; ++p) of[p].of[0] = wide.of[p];
    } else {
#pragma unroll
      for (int p = 0; p < N; ++p)
        if (p < count) of[p] = load<Kind::kLanes>(from + p * step);
    }
  }

  __device__ __forceinline__ void write(T* to, int32_t step, int32_t count) const {
    if constexpr (Kind::kAtOnce) {
      if (count <= 0) return;
      Vec<T, N> wide;
#pragma unroll
      for (int p = 0; p < N; ++p) wide.of[p] = of[p].of[0];
      store<N>(to, wide);
    } else {
#pragma unroll
      for (int p = 0; p < N; ++p)
        if (p < count) store<Kind::kLanes>(to + p * step, of[p]);
    }
  }
};

// --- sums of a run of windows ----------------------------------------------------------------------------------------

template <class Kind>
struct RunSums {
  float weight[Kind::kH][Kind::kW][Kind::kLanes] = {}, moment[Kind::kH][Kind::kW][Kind::kLanes] = {};
};

// The columns of a run's rows. For a column outside the input the nearest one inside is read, which such a window holds
// too, and `penalty` makes its weight 0.
template <class T, class Kind>
struct Columns {
  static constexpr int V = Kind::kLanes, kCount = Kind::kColumns;
  // Columns that are read at once.
  static constexpr int kBegin = Kind::AlongW::kPadding, kEnd = kBegin + (Kind::kAtOnce ? Kind::kCellColumns : 0);

  int32_t at[kCount];
  float penalty[kCount];

  __device__ __forceinline__ Columns(const Axis<int32_t>& axis, int32_t first, int32_t step) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const int32_t inside = min_of(max_of(first + k, 0), axis.size - 1);
      at[k] = !Kind::kAlongW ? inside * step : inside;
      penalty[k] = inside == first + k || is_wide(k) ? 0.f : kNothing;
    }
  }

  __host__ __device__ static constexpr bool is_wide(int k) { return k >= kBegin && k < kEnd; }

  __device__ __forceinline__ void read(const T* row, Vec<T, V> (&values)[kCount]) const {
    if constexpr (Kind::kAtOnce) {
      const auto wide = load<Kind::kCellColumns>(row + at[kBegin]);
#pragma unroll
      for (int k = 0; k < kCount; ++k)
        if (is_wide(k)) values[k].of[0] = wide.of[k - kBegin];
    }
#pragma unroll
    for (int k = 0; k < kCount; ++k)
      if (!is_wide(k)) values[k] = load<V>(row + at[k]);
  }
};

// Adds one row of inputs to the windows that hold it; `counts` is 0 for a row that stands in for one outside the input.
template <class T, class Kind>
__device__ __forceinline__ void add_row(RunSums<Kind>& sums, int row,
                                        const Vec<T, Kind::kLanes> (&values)[Kind::kColumns],
                                        const Columns<T, Kind>& columns, float counts,
                                        const Lanes<float, Kind::kLanes>& scale) {
  using H = typename Kind::AlongH;
  using W = typename Kind::AlongW;
#pragma unroll
  for (int v = 0; v < Kind::kLanes; ++v) {
    float weight[Kind::kColumns], moment[Kind::kColumns];
#pragma unroll
    for (int k = 0; k < Kind::kColumns; ++k) {
      const float x = static_cast<float>(values[k].of[v]);
      weight[k] = power_of_2(scale[v] * x + columns.penalty[k]);
      moment[k] = weight[k] * x;
    }
#pragma unroll
    for (int w = 0; w < Kind::kW; ++w) {
      float row_weight = weight[w * W::kStride], row_moment = moment[w * W::kStride];
#pragma unroll
      for (int k = 1; k < W::kKernel; ++k) {
        row_weight += weight[w * W::kStride + k];
        row_moment += moment[w * W::kStride + k];
      }
#pragma unroll
      for (int h = 0; h < Kind::kH; ++h) {
        if (row < h * H::kStride || row >= h * H::kStride + H::kKernel) continue;
        sums.weight[h][w][v] += counts * row_weight;
        sums.moment[h][w][v] += counts * row_moment;
      }
    }
  }
}

// The sums of the run whose first window is `at`, without pivots.
template <class T, class Kind>
__device__ __forceinline__ RunSums<Kind> sums_of_run(const T* plane, const Pool<T, int32_t>& pool,
                                                     const Place<int32_t>& at,
                                                     const Lanes<float, Kind::kLanes>& scale) {
  using AlongT = typename Kind::AlongT;
  using H = typename Kind::AlongH;
  using W = typename Kind::AlongW;
  const Columns<T, Kind> columns(pool.axes.w, at.w * W::kStride - W::kPadding, pool.input.w);
  const int32_t t0 = at.t * AlongT::kStride - AlongT::kPadding, h0 = at.h * H::kStride - H::kPadding;
  RunSums<Kind> sums;
#pragma unroll 1
  for (int kt = 0; kt < AlongT::kKernel; ++kt) {
    const int32_t t = min_of(max_of(t0 + kt, 0), pool.axes.t.size - 1);
#pragma unroll
    for (int kh = 0; kh < Kind::kRows; ++kh) {
      const int32_t h = min_of(max_of(h0 + kh, 0), pool.axes.h.size - 1);
      Vec<T, Kind::kLanes> values[Kind::kColumns];
      columns.read(plane + pool.input.in_plane(t, h, 0), values);
      add_row<T, Kind>(sums, kh, values, columns, t == t0 + kt && h == h0 + kh ? 1.f : 0.f, scale);
    }
  }
  return sums;
}

// --- forward ---------------------------------------------------------------------------------------------------------

// A thread computes a run of windows. `split` counts runs along h and w.
template <class T, class Kind>
__global__ void __launch_bounds__(kOverlapThreads, Kind::kBlocks)
    forward_overlap(const T* x, T* y, Pool<T, int32_t> pool, Split<int32_t> split, int32_t count) {
  constexpr int V = Kind::kLanes;
  const int32_t id = global_id<int32_t>();
  if (id >= count) return;
  Place<int32_t> at = split(id, V);
  at.h *= Kind::kH;
  at.w *= Kind::kW;
  const auto beta = lanes_of<V>([&](int v) { return pool.beta_at(at, v); });
  const auto scale = lanes_of<V>([&](int v) { return scale_of(beta[v]); });
  const T* const plane = x + pool.input.plane(at);
  const auto sums = sums_of_run<T, Kind>(plane, pool, at, scale);
  y += pool.output(at);
  uint32_t wild = 0;  // windows that are not tame, one bit for each
#pragma unroll
  for (int h = 0; h < Kind::kH; ++h) {
    Vectors<T, Kind, Kind::kW> result;
#pragma unroll
    for (int w = 0; w < Kind::kW; ++w)
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float weight = sums.weight[h][w][v], moment = sums.moment[h][w][v];
        wild |= is_tame(weight, moment) ? 0 : 1u << (h * Kind::kW + w);
        result.of[w].of[v] = static_cast<T>(moment * reciprocal(weight));
      }
    const int32_t count = at.h + h < pool.axes.h.out ? pool.axes.w.out - at.w : 0;
    result.write(y + pool.output.in_plane(0, h, 0), pool.output.w, count);
  }
#pragma unroll 1
  for (int i = 0; wild != 0; ++i, wild >>= 1) {
    Place<int32_t> here = at;
    here.h += i / Kind::kW;
    here.w += i % Kind::kW;
    if (wild % 2 == 0 || here.h >= pool.axes.h.out || here.w >= pool.axes.w.out) continue;
    const Any::Window<T, int32_t, V> window(plane, pool, here);
    Vec<T, V> result;
#pragma unroll
    for (int v = 0; v < V; ++v) result.of[v] = static_cast<T>(general_sums<T>(window, v, beta[v]).mean());
    store<V>(y + pool.output.in_plane(0, i / Kind::kW, i % Kind::kW), result);
  }
}

}  // namespace softpool3d::cuda
