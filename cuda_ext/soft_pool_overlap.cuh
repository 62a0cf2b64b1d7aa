// Overlapping windows whose size, stride and padding the compiler knows.
//
// Exponentials without a pivot. Where a window's sum of exponentials is neither tiny nor huge, e = exp(beta x) itself has
// full relative precision, and one e serves all windows that hold x. With g the output's gradient,
//
//     S = sum e,   M = sum e x,   y = M / S,   dL/dx = e (beta x A + B)
//     A = sum of g / S,   B = sum of (g / S) (1 - beta y)         over the windows that hold x
//
// so that a window is two numbers, and sums over windows are sums of sums. `is_tame` says when that holds; a block (in
// the forward a thread) with any other window computes all of its windows by window.h, with the maximum subtracted.
//
// Cells. Along an axis of stride s, cell j is the positions [j s, j s + s). Which windows lie over the r-th position of a
// cell is known to the compiler: from j + first(r) to j + last(r). A thread takes a run of kH x kW windows, or cells,
// and reads what they share once.

#pragma once

#include "soft_pool_kernels.cuh"

namespace softpool3d::cuda {

#ifdef __CUDACC__
constexpr int kOverlapThreads = 256;
constexpr int64_t kTileBytes = 48 << 10;  // of shared memory, which every GPU has
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
  // Windows over a cell, before and behind the window of its number.
  static constexpr int kBefore = -first(0), kAfter = last(S - 1);

  static bool is(const Axis<int64_t>& a) {
    return a.kernel == K && a.stride == S && a.padding == P && (a.dilation == 1 || K == 1);
  }
};

// What lies side by side: V inner elements, or positions along w, which are read one by one or a run of cells at once.
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
  // The first window of a tile, before its first cell: runs that are read at once start where a run of cells does.
  static constexpr int kLead = kAtOnce ? (W::kBefore + kW - 1) / kW * kW : W::kBefore;

  static bool is(const Geometry<int64_t>& g) { return T::is(g.t) && H::is(g.h) && W::is(g.w); }
};

// Vectors at N places next to each other along w, which a wide row has in one.
template <class T, class Kind, int N>
struct Vectors {
  Vec<T, Kind::kLanes> of[N];

  // The first `count` of them.
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

// The exponent of what lies outside the input; and the largest a position may have. 2^kNothing is 0.
constexpr float kNothing = -200.f, kMostPower = 127.f;

__device__ __forceinline__ float power_of_2(float exponent) {
#ifndef __CUDA_ARCH__
  if (exponent > kMostPower) return Limits<float>::inf;
#endif
  return exp2_of(exponent);
}

// Of a sum of exponentials that is tame.
__device__ __forceinline__ float reciprocal(float x) {
#ifdef __CUDA_ARCH__
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));  // to within 1 ulp, and without guards
  return result;
#else
  return 1 / x;
#endif
}

// Negative beta is not for exponentials without a pivot: an infinity would weigh nothing.
__device__ __forceinline__ float scale_of(float beta) {
  return beta >= 0 ? to_finite(static_cast<float>(kLog2e) * beta) : Limits<float>::inf - Limits<float>::inf;
}

// Whether sums of exponentials and their moments are precise. Any NaN and most infinities end here; -inf with weight 0
// makes its moment NaN.
__device__ __forceinline__ bool is_tame(float weight, float moment) {
  return weight >= 0x1p-58f && weight <= 0x1p62f && is_finite(moment);
}

// --- sums of a run of windows ----------------------------------------------------------------------------------------

template <class Kind>
struct RunSums {
  float weight[Kind::kH][Kind::kW][Kind::kLanes] = {}, moment[Kind::kH][Kind::kW][Kind::kLanes] = {};
};

// The columns of a run's rows. Outside the input the nearest value inside stands in, which such a window holds too, and
// `penalty` takes its weight.
template <class T, class Kind>
struct Columns {
  static constexpr int V = Kind::kLanes, kCount = Kind::kColumns;
  // Columns that are read at once.
  static constexpr int kBegin = Kind::kAtOnce ? Kind::AlongW::kPadding : 0, kEnd = Kind::kAtOnce ? kBegin + Kind::kCellColumns : 0;

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
__device__ __forceinline__ void add_row(RunSums<Kind>& sums, int row, const Vec<T, Kind::kLanes> (&values)[Kind::kColumns],
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
    result.write(y + pool.output.in_plane(0, h, 0), pool.output.w, at.h + h < pool.axes.h.out ? pool.axes.w.out - at.w : 0);
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

// --- backward --------------------------------------------------------------------------------------------------------

// What a block of backward_overlap computes: the gradient of t x h x w cells of `lanes` inner vectors, from the windows
// over them, which are whole runs.
struct Tile {
  int32_t t, h, w, windows_t, windows_h, windows_w, lanes;
  Split<int32_t> window_runs, cell_runs;
  int32_t window_run_count, cell_run_count;

  int64_t bytes(int V) const { return int64_t{12} * windows_t * windows_h * windows_w * lanes * V; }
};

// Which tile a block takes: the one that costs the fewest instructions, of those that fit into shared memory.
template <class Kind>
class Tiling {
  using AlongT = typename Kind::AlongT;
  using H = typename Kind::AlongH;
  using W = typename Kind::AlongW;

 public:
  template <class T>
  Tiling(const Pool<T, int32_t>& pool, int64_t planes)
      : t_(ceil_div(pool.axes.t.size, AlongT::kStride)),
        h_(ceil_div(pool.axes.h.size, H::kStride)),
        w_(ceil_div(pool.axes.w.size, W::kStride)),
        inner_(pool.inner),
        planes_(planes) {}

  Tile best() const {
    Tile best = {};
    for (int32_t lanes = lanes_at_most(); lanes > 0; lanes /= 2) {
      for (int32_t t = t_;; t = ceil_div(t, 2)) {
        for (int32_t w = round_up(w_, kStep);; w = round_up(ceil_div(w, 2), kStep)) {
          const Tile tile = with_most_rows(t, w, lanes);
          if (tile.h > 0 && (best.h == 0 || cost(tile) < cost(best))) best = tile;
          if (w == kStep) break;
        }
        if (t == 1) break;
      }
      // Narrower than 16 bytes only where nothing else fits.
      if (best.h > 0 && lanes * Kind::kLanes <= 8) break;
    }
    return best;
  }

 private:
  static int32_t round_up(int32_t n, int32_t to) { return ceil_div(n, to) * to; }

  // 32 bytes and more of a line; an eighth of them are not worth a warp's threads for themselves.
  int32_t lanes_at_most() const {
    if (Kind::kAlongW) return 1;
    int32_t lanes = 1;
    while (lanes < (Kind::kLanes == 1 ? 8 : 4) && 2 * lanes * Kind::kLanes <= inner_) lanes *= 2;
    return lanes;
  }

  // Runs of windows that are not needed make no difference, so that rows are as many as runs and memory allow.
  Tile with_most_rows(int32_t t, int32_t w, int32_t lanes) const {
    Tile tile = {};
    for (int32_t rows = round_up(h_ + kRowsAround, Kind::kH); rows > kRowsAround; rows -= Kind::kH) {
      tile = with(t, min_of(rows - kRowsAround, h_), w, lanes);
      const int64_t bytes = tile.bytes(Kind::kLanes);
      if (bytes <= kTileBytes) return tile;
      const int32_t fitting = static_cast<int32_t>(kTileBytes * tile.windows_h / bytes);
      rows = min_of(rows, round_up(fitting, Kind::kH) + Kind::kH);
    }
    return {};
  }

  Tile with(int32_t t, int32_t h, int32_t w, int32_t lanes) const {
    Tile tile = {};
    tile.t = t;
    tile.h = h;
    tile.w = w;
    tile.lanes = lanes;
    tile.windows_t = t + AlongT::kBefore + AlongT::kAfter;
    const int32_t runs_h = ceil_div(h + kRowsAround, Kind::kH), runs_w = ceil_div(Kind::kLead + w + W::kAfter, Kind::kW);
    const int32_t cell_runs_h = ceil_div(h, Kind::kH), cell_runs_w = ceil_div(w, Kind::kW);
    // The last run of cells may read windows that nobody writes, for positions beyond the tile.
    tile.windows_h = max_of(runs_h * Kind::kH, cell_runs_h * Kind::kH + kRowsAround);
    tile.windows_w = max_of(runs_w * Kind::kW, Kind::kLead + cell_runs_w * Kind::kW + W::kAfter);
    const auto by = [](int32_t n) { return Divider<int32_t>(n); };
    tile.window_runs = {by(1), by(tile.windows_t), by(runs_h), by(runs_w), by(lanes)};
    tile.cell_runs = {by(1), by(t), by(cell_runs_h), by(cell_runs_w), by(lanes)};
    tile.window_run_count = tile.windows_t * runs_h * runs_w * lanes;
    tile.cell_run_count = t * cell_runs_h * cell_runs_w * lanes;
    return tile;
  }

  // Of all tiles, about in instructions. The numbers are a reading of the machine code.
  double cost(const Tile& tile) const {
    constexpr int V = Kind::kLanes, kTaps = AlongT::kKernel * Kind::kRows * Kind::kColumns,
                  kPositions = AlongT::kStride * Kind::kCellRows * Kind::kCellColumns,
                  kWindowsOver = (1 + AlongT::kBefore + AlongT::kAfter) * (Kind::kH + kRowsAround) *
                                 (Kind::kW + W::kBefore + W::kAfter);
    constexpr double kWindowRun = 90 + V * (9 * kTaps + 40 * Kind::kH * Kind::kW),
                     kCellRun = 90 + V * (14 * kPositions + 4 * kWindowsOver);
    const int32_t tiles_t = ceil_div(t_, tile.t);
    const double tiles = static_cast<double>(planes_) * ceil_div(h_, tile.h) * ceil_div(w_, tile.w) *
                         ceil_div(inner_, tile.lanes * Kind::kLanes);
    // Windows before and behind the input cost nothing.
    const double slabs = tiles_t - static_cast<double>(AlongT::kBefore + AlongT::kAfter) / tile.windows_t;
    // Fewer blocks than a GPU holds leave some of it idle.
    const double idle = max_of(1., kEnoughBlocks / (tiles * tiles_t));
    return idle * tiles * (slabs * tile.window_run_count * kWindowRun + tiles_t * tile.cell_run_count * kCellRun);
  }

  static constexpr double kEnoughBlocks = 400;
  static constexpr int32_t kRowsAround = H::kBefore + H::kAfter;
  static constexpr int32_t kStep = Kind::kAtOnce ? Kind::kW : 1;  // of a tile's width

  const int32_t t_, h_, w_, inner_;
  const int64_t planes_;
};

// The tile of one block, and where its windows keep their numbers in shared memory: slots of some vectors each.
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

  // f(first window or cell, its slot)
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

  __device__ __forceinline__ int32_t lanes() const { return !Kind::kAlongW ? tile.lanes : 1; }
  __device__ __forceinline__ int32_t slot(int32_t t, int32_t h, int32_t w) const {
    return ((t * tile.windows_h + h) * tile.windows_w + w) * lanes();
  }
  // A and B of windows in shared memory, from the slot of a run's first window on: next to each other for each window,
  // or, where a run of windows is read at once, in two arrays.
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

// Of the row of windows from `from` on, summed over those of them along t that lie over the position `rt` of a cell.
template <class T, class Kind>
__device__ __forceinline__ RowShares<Kind> shares_of_row(const Block<T, Kind>& block, const float* from, int row, int rt) {
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

// e (beta x A + B). A position in no window may hold anything, and its gradient is 0.
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

// --- backward of a tile with a window that is not tame: by window.h ------------------------------------------------------

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

// No atomics and no workspace: windows that two tiles share are computed twice.
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
