// The gradient of overlapping windows, with the arithmetic of soft_pool_overlap.cuh.
//
// A block takes a tile of cells. It computes A and B of every window over the tile into shared memory, then the
// gradient of each run of cells: no atomics and no workspace, but windows over two tiles are computed twice.

#pragma once

#include "soft_pool_overlap.cuh"
#include "soft_pool_tile.cuh"

namespace softpool3d::cuda {

// The tile of one block, and the places of its windows' numbers in shared memory: slots of a few vectors each.
template <class T, class Kind>
struct Block {
  static constexpr int V = Kind::kLanes;
  using AlongT = typename Kind::AlongT;
  using H = typename Kind::AlongH;
  using W = typename Kind::AlongW;

  const Pool<T, int32_t>& pool;
  const Tile& tile;
  Place<int32_t> cell;  // the first

  __device__ __forceinline__ Block(const Pool<T, int32_t>& pool, const Tile& tile, const Split<int32_t>& split)
      : pool(pool), tile(tile), cell(split(static_cast<int32_t>(blockIdx.x), tile.lanes * V)) {
    cell.t *= tile.t;
    cell.h *= tile.h;
    cell.w *= tile.w;
  }

  // Calls f(first window or cell, its slot) for each run of the thread.
  template <class F>
  __device__ __forceinline__ void each_run(bool of_windows, F f) const {
    const Split<int32_t>& split = of_windows ? tile.window_runs : tile.cell_runs;
    const int32_t count = of_windows ? tile.window_run_count : tile.cell_run_count;
    for (int32_t i = threadIdx.x; i < count; i += blockDim.x) {
      const Place<int32_t> run = split(i, 1);
      Place<int32_t> at = cell;
      at.inner += run.inner * V;
      if (at.inner >= pool.inner) continue;
      at.t += run.t - (of_windows ? AlongT::kBefore : 0);
      at.h += run.h * Kind::kH - (of_windows ? H::kBefore : 0);
      at.w += run.w * Kind::kW - (of_windows ? Kind::kLead : 0);
      // A run of cells begins with the first of all windows over it.
      const int32_t skipped = of_windows ? 0 : Kind::kLead - W::kBefore;
      f(at, slot(run.t, run.h * Kind::kH, run.w * Kind::kW + skipped) + run.inner);
    }
  }

  // Slots count vectors of V elements.
  __device__ __forceinline__ int32_t lanes() const { return !Kind::kAlongW ? tile.lanes : 1; }
  __device__ __forceinline__ int32_t slot(int32_t t, int32_t h, int32_t w) const {
    return ((t * tile.windows_h + h) * tile.windows_w + w) * lanes();
  }

  // A and B of a run's windows begin at the slot of its first window. They lie next to each other for each window, or
  // in two arrays where a run of windows is read at once.
  static constexpr int kWindows = Kind::kW + W::kBefore + W::kAfter;  // over a run of cells
  using Share = Vec<float, 2 * V>;

  __device__ __forceinline__ int32_t apart() const { return slot(tile.windows_t, 0, 0); }

  __device__ __forceinline__ void write_shares(float* to, int h, const Share (&shares)[Kind::kW]) const {
    if constexpr (Kind::kAtOnce) {
      Vec<float, Kind::kW> a, b;
#pragma unroll
      for (int w = 0; w < Kind::kW; ++w) a.of[w] = shares[w].of[0], b.of[w] = shares[w].of[1];
      *reinterpret_cast<Vec<float, Kind::kW>*>(to + slot(0, h, 0)) = a;
      *reinterpret_cast<Vec<float, Kind::kW>*>(to + slot(0, h, 0) + apart()) = b;
    } else {
#pragma unroll
      for (int w = 0; w < Kind::kW; ++w) *reinterpret_cast<Share*>(to + slot(0, h, w) * (2 * V)) = shares[w];
    }
  }

  __device__ __forceinline__ void read_shares(const float* from, int t, int h, Share (&shares)[kWindows]) const {
    if constexpr (Kind::kAtOnce) {
      const auto read = [&](const float* row, int n) {
        const auto run = load<Kind::kW>(row + W::kBefore);
#pragma unroll
        for (int w = 0; w < kWindows; ++w) {
          const int own = w - W::kBefore;
          shares[w].of[n] = own >= 0 && own < Kind::kW ? run.of[own] : row[w];
        }
      };
      read(from + slot(t, h, 0), 0);
      read(from + slot(t, h, 0) + apart(), 1);
    } else {
#pragma unroll
      for (int w = 0; w < kWindows; ++w) shares[w] = load<2 * V>(from + slot(t, h, w) * (2 * V));
    }
  }

  __device__ __forceinline__ int32_t end_h() const { return min_of((cell.h + tile.h) * H::kStride, pool.axes.h.size); }
  __device__ __forceinline__ int32_t end_w() const { return min_of((cell.w + tile.w) * W::kStride, pool.axes.w.size); }
  __device__ __forceinline__ bool has_window(int32_t t, int32_t h, int32_t w) const {
    return t >= 0 && t < pool.axes.t.out && h >= 0 && h < pool.axes.h.out && w >= 0 && w < pool.axes.w.out;
  }
};

// Writes log2-scaled A and B of each window of a run; those of windows that do not exist are 0. Returns whether all are
// tame.
template <class T, class Kind>
__device__ __forceinline__ bool put_shares(const Block<T, Kind>& block, const Place<int32_t>& at, float* to, const T* x,
                                           const T* y_grad) {
  constexpr int V = Kind::kLanes;
  const Pool<T, int32_t>& pool = block.pool;
  const bool any = at.t >= 0 && at.t < pool.axes.t.out && at.h > -Kind::kH && at.h < pool.axes.h.out &&
                   at.w > -Kind::kW && at.w < pool.axes.w.out;
  const auto beta = lanes_of<V>([&](int v) { return pool.beta_at(at, v); });
  RunSums<Kind> sums;
  if (any) {
    const auto scale = lanes_of<V>([&](int v) { return scale_of(beta[v]); });
    sums = sums_of_run<T, Kind>(x + pool.input.plane(at), pool, at, scale);
  }
  y_grad += pool.output.plane(at);
  bool tame = true;
#pragma unroll
  for (int h = 0; h < Kind::kH; ++h) {
    Vec<float, 2 * V> shares[Kind::kW] = {};
#pragma unroll
    for (int w = 0; w < Kind::kW; ++w) {
      if (block.has_window(at.t, at.h + h, at.w + w)) {
        const Vec<T, V> g = load<V>(y_grad + pool.output.in_plane(at.t, at.h + h, at.w + w));
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const float slope = static_cast<float>(g.of[v]), inverse = reciprocal(sums.weight[h][w][v]);
          tame &= is_tame(sums.weight[h][w][v], sums.moment[h][w][v]) && slope <= 0x1p48f && slope >= -0x1p48f;
          shares[w].of[v] = static_cast<float>(1 / kLog2e) * slope * inverse;
          shares[w].of[V + v] = slope * inverse * (1.f - beta[v] * (sums.moment[h][w][v] * inverse));
        }
      }
    }
    block.write_shares(to, h, shares);
  }
  return tame;
}

// Sums of A and B over the windows of one row that lie over each position of a run of cells.
template <class Kind>
struct RowShares {
  float of[Kind::kCellColumns][2 * Kind::kLanes];
};

// The shares of one row of windows, each summed over the windows along t that lie over position `rt` of a cell; `from`
// is the slot of the run's first window.
template <class T, class Kind>
__device__ __forceinline__ RowShares<Kind> shares_of_row(const Block<T, Kind>& block, const float* from, int row,
                                                         int rt) {
  constexpr int N = 2 * Kind::kLanes;
  using AlongT = typename Kind::AlongT;
  using W = typename Kind::AlongW;
  Vec<float, N> windows[Block<T, Kind>::kWindows];
  block.read_shares(from, AlongT::first(rt) + AlongT::kBefore, row, windows);
#pragma unroll
  for (int t = AlongT::first(rt) + 1; t <= AlongT::last(rt); ++t) {
    Vec<float, N> more[Block<T, Kind>::kWindows];
    block.read_shares(from, t + AlongT::kBefore, row, more);
#pragma unroll
    for (int w = 0; w < Block<T, Kind>::kWindows; ++w)
#pragma unroll
      for (int n = 0; n < N; ++n) windows[w].of[n] += more[w].of[n];
  }
  RowShares<Kind> sums;
#pragma unroll
  for (int p = 0; p < Kind::kCellColumns; ++p) {
    const int first = p / W::kStride + W::first(p % W::kStride), last = p / W::kStride + W::last(p % W::kStride);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      sums.of[p][n] = windows[first + W::kBefore].of[n];
#pragma unroll
      for (int w = first + 1; w <= last; ++w) sums.of[p][n] += windows[w + W::kBefore].of[n];
    }
  }
  return sums;
}

// e (beta x A + B). The exponent is bounded: a position in no window may hold any value, and its gradient has to be 0.
__device__ __forceinline__ float gradient_of(float x, float scale, float a, float b) {
  const float exponent = -larger(-larger(scale * x, kNothing), -kMostPower);
  return power_of_2(exponent) * (exponent * a + b);
}

// The gradient of a run of cells from the shares of the windows over it.
template <class T, class Kind>
__device__ __forceinline__ void gather_run(const Block<T, Kind>& block, const Place<int32_t>& cell, const float* shares,
                                           const T* x, T* x_grad) {
  constexpr int V = Kind::kLanes;
  using AlongT = typename Kind::AlongT;
  using H = typename Kind::AlongH;
  using W = typename Kind::AlongW;
  const Pool<T, int32_t>& pool = block.pool;
  const bool inner = !Kind::kAlongW;
  const int32_t h0 = cell.h * H::kStride, w0 = cell.w * W::kStride, rows = block.end_h() - h0,
                columns = block.end_w() - w0;
  const auto scale = lanes_of<V>([&](int v) { return scale_of(pool.beta_at(cell, v)); });
  x += pool.input.plane(cell);
  x_grad += pool.input_grad.plane(cell);
#pragma unroll
  for (int rt = 0; rt < AlongT::kStride; ++rt) {
    const int32_t t = cell.t * AlongT::kStride + rt;
    if (t >= pool.axes.t.size) break;
    Vectors<T, Kind, Kind::kCellColumns> values[Kind::kCellRows];
#pragma unroll
    for (int p = 0; p < Kind::kCellRows; ++p)
      values[p].read(x + pool.input.in_plane(t, h0 + p, w0), inner ? pool.input.w : 1, p < rows ? columns : 0);
    RowShares<Kind> sums[Kind::kH + H::kBefore + H::kAfter];
#pragma unroll
    for (int row = 0; row < Kind::kH + H::kBefore + H::kAfter; ++row) {
      sums[row] = shares_of_row<T, Kind>(block, shares, row, rt);
#pragma unroll
      for (int p = 0; p < Kind::kCellRows; ++p) {
        const int first = p / H::kStride + H::first(p % H::kStride) + H::kBefore,
                  last = p / H::kStride + H::last(p % H::kStride) + H::kBefore;
        if (last != row) continue;  // not all windows over this row of positions are known yet, or it is done
        Vectors<T, Kind, Kind::kCellColumns> result;
#pragma unroll
        for (int q = 0; q < Kind::kCellColumns; ++q)
#pragma unroll
          for (int v = 0; v < V; ++v) {
            float a = 0, b = 0;
#pragma unroll
            for (int r = first; r <= last; ++r) a += sums[r].of[q][v], b += sums[r].of[q][V + v];
            result.of[q].of[v] = static_cast<T>(gradient_of(static_cast<float>(values[p].of[q].of[v]), scale[v], a, b));
          }
        result.write(x_grad + pool.input_grad.in_plane(t, h0 + p, w0), inner ? pool.input_grad.w : 1,
                     p < rows ? columns : 0);
      }
    }
  }
}

// --- a tile with a window that is not tame: by window.h ---------------------------------------------------------------

// Writes the stats of each window of a run.
template <class T, class Kind>
__device__ __forceinline__ void put_stats(const Block<T, Kind>& block, const Place<int32_t>& run, float* to, const T* x,
                                          const T* y_grad) {
  constexpr int V = Kind::kLanes;
  const Pool<T, int32_t>& pool = block.pool;
#pragma unroll 1
  for (int i = 0; i < Kind::kH * Kind::kW * V; ++i) {
    const int v = i % V, w = i / V % Kind::kW, h = i / (V * Kind::kW);
    Place<int32_t> at = run;
    at.inner += v;
    at.h += h;
    at.w += w;
    if (!block.has_window(at.t, at.h, at.w)) continue;
    const Any::Window<T, int32_t, 1> window(x + pool.input.plane(at), pool, at);
    const auto stats = general_sums<T>(window, 0, pool.beta_at(at, 0)).stats();
    store_stats<1, float>(to + block.slot(0, h, w) * (3 * V) + v, V, {{stats}},
                          {{static_cast<float>(y_grad[pool.output(at)])}});
  }
}

// The gradient of a run of cells from the stats of the windows over it.
template <class T, class Kind>
__device__ __forceinline__ void gather_run_exactly(const Block<T, Kind>& block, const Place<int32_t>& cell,
                                                   const float* stats, const T* x, T* x_grad) {
  constexpr int V = Kind::kLanes;
  using AlongT = typename Kind::AlongT;
  using H = typename Kind::AlongH;
  using W = typename Kind::AlongW;
  const Pool<T, int32_t>& pool = block.pool;
#pragma unroll 1
  for (int i = 0; i < AlongT::kStride * Kind::kCellRows * Kind::kCellColumns * V; ++i) {
    const int v = i % V, w = i / V % Kind::kCellColumns, h = i / (V * Kind::kCellColumns) % Kind::kCellRows,
              t = i / (V * Kind::kCellColumns * Kind::kCellRows);
    Place<int32_t> at = cell;
    at.inner += v;
    at.t = cell.t * AlongT::kStride + t;
    at.h = cell.h * H::kStride + h;
    at.w = cell.w * W::kStride + w;
    if (at.t >= pool.axes.t.size || at.h >= block.end_h() || at.w >= block.end_w()) continue;
    const float value = static_cast<float>(x[pool.input(at)]), beta = pool.beta_at(at, 0);
    const auto range = [](auto along, int position) {
      using A = decltype(along);
      return Range<int>{position / A::kStride + A::first(position % A::kStride),
                        position / A::kStride + A::last(position % A::kStride), 1};
    };
    const Range<int> over_t = range(AlongT(), t), over_h = range(H(), h), over_w = range(W(), w);
    float sum = 0;
#pragma unroll 1
    for (int ot = over_t.begin; ot <= over_t.end; ++ot)
#pragma unroll 1
      for (int oh = over_h.begin; oh <= over_h.end; ++oh)
#pragma unroll 1
        for (int ow = over_w.begin; ow <= over_w.end; ++ow) {
          if (!block.has_window(cell.t + ot, cell.h + oh, cell.w + ow)) continue;
          const int32_t slot = block.slot(ot + AlongT::kBefore, oh + H::kBefore, ow + W::kBefore);
          const float* const from = stats + slot * (3 * V) + v;
          sum += Stats<float>{from[0], from[V], from[2 * V]}.gradient(value, 1.f, beta);
        }
    x_grad[pool.input_grad(at)] = static_cast<T>(sum);
  }
}

template <class T, class Kind>
__global__ void __launch_bounds__(kOverlapThreads, Kind::kBlocks)
    backward_overlap(const T* x, const T* y_grad, T* x_grad, Pool<T, int32_t> pool, Split<int32_t> split, Tile tile) {
  SOFTPOOL_SHARED(shared);
  constexpr int V = Kind::kLanes;
  auto* const numbers = reinterpret_cast<float*>(shared);
  const Block<T, Kind> block(pool, tile, split);
  bool tame = true;
  constexpr int kShare = Kind::kAtOnce ? 1 : 2 * V;
  block.each_run(true, [&](const Place<int32_t>& window, int32_t slot) {
    tame &= put_shares(block, window, numbers + slot * kShare, x, y_grad);
  });
  if (!__syncthreads_or(!tame)) {
    block.each_run(false, [&](const Place<int32_t>& cell, int32_t slot) {
      gather_run(block, cell, numbers + slot * kShare, x, x_grad);
    });
    return;
  }
  block.each_run(true, [&](const Place<int32_t>& window, int32_t slot) {
    put_stats(block, window, numbers + slot * (3 * V), x, y_grad);
  });
  __syncthreads();
  block.each_run(false, [&](const Place<int32_t>& cell, int32_t slot) {
    gather_run_exactly(block, cell, numbers + slot * (3 * V), x, x_grad);
  });
}

}  // namespace softpool3d::cuda
