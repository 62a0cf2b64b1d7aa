// The CUDA kernels for windows of many values: sums by teams of threads, and the gradient from them.

#pragma once

#include "soft_pool_teams.cuh"

namespace softpool3d::cuda {

// What is wanted of a window's sums, and where it goes; null for what is not wanted.
template <class T>
struct Wanted {
  T* y;
  AccOf<T>* stats;  // for the backward, `apart` elements between its arrays
  int64_t apart;
  AccOf<T>* beta_shares;  // what each window adds to dL/dbeta: [n, t, h, w][channel]
  const T* y_grad;
};

template <class T, class Index>
__device__ __forceinline__ void finish(const Wanted<T>& wanted, const Pool<T, Index>& pool, const Place<Index>& at,
                                       const Sums<AccOf<T>>& sums) {
  using Acc = AccOf<T>;
  const int64_t o = pool.output(at);
  if (wanted.y != nullptr) wanted.y[o] = static_cast<T>(sums.mean());
  const Acc g = wanted.y_grad != nullptr ? static_cast<Acc>(wanted.y_grad[o]) : Acc(0);
  if (wanted.stats != nullptr) store_stats<1, Acc>(wanted.stats + o, wanted.apart, {{sums.stats()}}, {{g}});
  if (wanted.beta_shares != nullptr) {
    const int64_t row = ((int64_t{at.n} * pool.axes.t.out + at.t) * pool.axes.h.out + at.h) * pool.axes.w.out + at.w;
    wanted.beta_shares[row * pool.channels() + pool.channel(at, 0)] = g * sums.variance();
  }
}

// How many blocks a multiprocessor shall hold at least: as many as let the compiler keep all it needs in registers.
template <class T, class Index, int V, bool kLean>
constexpr int kReduceBlocks = sizeof(AccOf<T>) > 4 ? 1 : sizeof(Index) > 4 ? 2 : V <= 4 ? 4 : kLean ? 3 : 2;
template <class T, class Index, int V, bool kLean>
constexpr int kSpreadBlocks = sizeof(AccOf<T>) + sizeof(Index) > 8 ? 1 : V <= 4 || kLean ? 3 : 2;

// Adds usual values to a thread's sums. The pivot is raised once for each chunk, so that every value is read only once.
template <bool kAcross, class T, int V, int kTaps, class Acc, int kWindows>
__device__ __forceinline__ void take(Lanes<RunningSums<Acc>, kWindows>& totals, const Vec<T, V> (&values)[kTaps],
                                     const Lanes<Acc, kWindows>& scale) {
#pragma unroll
  for (int window = 0; window < kWindows; ++window) {
    const auto each = [&](auto f) {
#pragma unroll
      for (int k = 0; k < kTaps; ++k)
#pragma unroll
        for (int v = kAcross ? 0 : window; v < (kAcross ? V : window + 1); ++v) f(static_cast<Acc>(values[k].of[v]));
    };
    Acc hi = totals[window].hi;
    each([&](Acc x) { hi = larger(hi, x); });
    totals[window].raise(hi, scale[window]);
    each([&](Acc x) { totals[window].add(x, scale[window]); });
  }
}

// Adds up the sums of `rows` neighbouring threads, a power of two.
template <bool kSquares, class Acc>
__device__ __forceinline__ void add_neighbours(RunningSums<Acc>& total, int rows, Acc scale) {
  constexpr unsigned kAll = 0xffffffff;
  Acc hi = total.hi;
  for (int step = 1; step < rows; step *= 2) hi = larger(hi, __shfl_xor_sync(kAll, hi, step));
  total.raise(hi, scale);
  for (int step = 1; step < rows; step *= 2) {
    total.weight += __shfl_xor_sync(kAll, total.weight, step);
    total.moment += __shfl_xor_sync(kAll, total.moment, step);
    if constexpr (kSquares) total.square += __shfl_xor_sync(kAll, total.square, step);
  }
}

// A block's sums in shared memory: one array for each number, of `rows` times `columns`; a column is a window.
template <bool kSquares, class Acc>
class SharedSums {
 public:
  static constexpr int kNumbers = kSquares ? 4 : 3;

  __device__ __forceinline__ SharedSums(Acc* memory, int rows, int columns)
      : memory_(memory), rows_(rows), columns_(columns) {}

  __device__ __forceinline__ void put(int row, int column, const RunningSums<Acc>& sums) const {
    Acc* const to = memory_ + row * columns_ + column;
    const int apart = rows_ * columns_;
    to[0] = sums.hi, to[apart] = sums.weight, to[2 * apart] = sums.moment;
    if constexpr (kSquares) to[3 * apart] = sums.square;
  }

  __device__ __forceinline__ RunningSums<Acc> total(int column, Acc scale) const {
    RunningSums<Acc> total = get(0, column);
    for (int row = 1; row < rows_; ++row) total.hi = larger(total.hi, memory_[row * columns_ + column]);
    const Acc hi = total.hi;
    total = get(0, column);
    total.raise(hi, scale);
    for (int row = 1; row < rows_; ++row) {
      RunningSums<Acc> sums = get(row, column);
      sums.raise(hi, scale);
      total.weight += sums.weight;
      total.moment += sums.moment;
      total.square += sums.square;
    }
    return total;
  }

 private:
  __device__ __forceinline__ RunningSums<Acc> get(int row, int column) const {
    const Acc* const from = memory_ + row * columns_ + column;
    const int apart = rows_ * columns_;
    return {from[0], from[apart], from[2 * apart], kSquares ? from[3 * apart] : Acc(0)};
  }

  Acc* const memory_;
  const int rows_, columns_;
};

// Merges the sums of all rows into row 0, in a fixed order. `apart`: threads from one row to the next.
template <class Acc>
__device__ __forceinline__ void merge_rows(Sums<Acc>* shared, const Sums<Acc>& mine, int row, int rows, int apart,
                                           Acc beta) {
  __syncthreads();  // what was there before has been read
  shared[threadIdx.x] = mine;
  while (rows > 1) {
    const int half = (rows + 1) / 2;
    __syncthreads();
    if (row + half < rows) shared[threadIdx.x].merge(shared[threadIdx.x + half * apart], beta);
    rows = half;
  }
}

// Hands the sums of usual windows to leave(at, sums). Returns false if any window of the block is not usual.
template <bool kSquares, class Part, class T, class Index, class Leave>
__device__ __forceinline__ bool reduce_usual(const T* x, const Pool<T, Index>& pool, const Split<Index>& split,
                                             const Teams<Index>& teams, unsigned char* shared, Leave leave) {
  using Acc = AccOf<T>;
  constexpr int kWindows = Part::kWindows;
  const int side_by_side = kWindows * teams.lanes, columns = teams.teams * side_by_side;
  // A team's sums: from neighbours by shuffles, from others through shared memory.
  const int neighbours = Part::kIsAcross ? min_of(teams.rows, kWarp) : 1;
  const SharedSums<kSquares, Acc> sums(reinterpret_cast<Acc*>(shared), teams.rows / neighbours, columns);
  {
    const Part part(threadIdx.x, pool, split, teams);
    const auto beta = part.betas();
    const auto scale = lanes_of<kWindows>([&](int w) { return to_finite(Acc(kLog2e) * beta[w]); });
    Lanes<RunningSums<Acc>, kWindows> totals;
    part.template each_chunk<Part::kTaps>(
        x, [&](const auto& values, const auto&) { take<Part::kIsAcross>(totals, values, scale); });
    if constexpr (Part::kIsAcross) add_neighbours<kSquares>(totals[0], neighbours, scale[0]);
    if (part.row < teams.rows && part.row % neighbours == 0)
#pragma unroll
      for (int w = 0; w < kWindows; ++w)
        sums.put(part.row / neighbours, part.team * side_by_side + part.lane * kWindows + w, totals[w]);
  }
  __syncthreads();
  bool usual = true;
  for (int column = recomputed(threadIdx.x); column < columns; column += blockDim.x) {
    const int team = column / side_by_side;
    const Index window = teams.by_segments(static_cast<Index>(blockIdx.x)) * teams.teams + team;
    Place<Index> at = split(window, side_by_side);
    at.inner += column - team * side_by_side;
    if (window >= teams.windows || at.inner >= pool.inner) continue;
    const Acc beta = pool.beta_at(at, 0);
    const RunningSums<Acc> total = sums.total(column, to_finite(Acc(kLog2e) * beta));
    if (is_usual(beta) && total.is_usual())
      leave(at, Sums<Acc>(total, beta));
    else
      usual = false;
  }
  return !__syncthreads_or(!usual);
}

// The same for any windows; those that lie side by side are computed one after the other.
template <class Part, class T, class Index, class Leave>
__device__ __forceinline__ void reduce_any(const T* x, const Pool<T, Index>& pool, const Split<Index>& split,
                                           const Teams<Index>& teams, unsigned char* shared, Leave leave) {
  using Acc = AccOf<T>;
  const Part part(recomputed(threadIdx.x), pool, split, teams);
  auto* const sums = reinterpret_cast<Sums<Acc>*>(shared);
#pragma unroll 1
  for (int w = 0; w < Part::kWindows; ++w) {
    Place<Index> at = part.at;
    const Acc beta = part.active ? pool.beta_at(at, w) : Acc(0);
    at.inner += w;
    merge_rows(sums, part.general_sums(x, w, beta), part.row, teams.rows, teams.lanes, beta);
    if (part.active && part.row == 0) leave(at, sums[threadIdx.x]);
  }
}

// Each window's sums, or those of one segment into `parts`. A block with a window that is not usual computes all of its
// windows again.
template <class T, class Index, int V, bool kAcross, bool kRun, bool kSquares>
__global__ void __launch_bounds__(kThreads, kReduceBlocks<T, Index, V, kRun && !kSquares>)
    reduce_windows(const T* x, Pool<T, Index> pool, Split<Index> split, Teams<Index> teams, Wanted<T> wanted,
                   Sums<AccOf<T>>* parts) {
  using Part = Member<T, Index, V, kAcross, kRun>;
  SOFTPOOL_SHARED(shared);
  const auto leave = [&](const Place<Index>& at, const Sums<AccOf<T>>& sums) {
    if (parts == nullptr) return finish(wanted, pool, at, sums);
    const auto block = static_cast<Index>(blockIdx.x);
    const Index segment = block - teams.by_segments(block) * teams.segments;
    parts[segment * pool.outputs + pool.output(at)] = sums;
  };
  if (!reduce_usual<kSquares, Part>(x, pool, split, teams, shared, leave))
    reduce_any<Part>(x, pool, split, teams, shared, leave);
}

// Shared memory of reduce_windows.
template <class T>
constexpr int64_t reduce_bytes(int V, bool across, bool squares) {
  const int64_t running = (squares ? 4 : 3) * sizeof(AccOf<T>) * (across ? 1 : V), general = sizeof(Sums<AccOf<T>>);
  return kThreads * (running > general ? running : general);
}

// Merges the segments of each output, with `rows` threads, a power of two.
template <class T, class Index>
__global__ void __launch_bounds__(kThreads, 2)
    merge_segments(Pool<T, Index> pool, Split<Index> split, Index segments, int rows, Wanted<T> wanted,
                   const Sums<AccOf<T>>* parts) {
  using Acc = AccOf<T>;
  SOFTPOOL_SHARED(shared);
  const int row = threadIdx.x % rows;
  const Index id = static_cast<Index>(blockIdx.x) * (blockDim.x / rows) + threadIdx.x / rows;
  const bool active = id < pool.outputs;
  const Place<Index> at = split(id, 1);
  const Acc beta = active ? pool.beta_at(at, 0) : Acc(0);
  Sums<Acc> sums(Extent<Acc>(), beta);
  for (Index segment = row; active && segment < segments; segment += rows)
    sums.merge(parts[segment * pool.outputs + pool.output(at)], beta);
  auto* const merged = reinterpret_cast<Sums<Acc>*>(shared);
  merge_rows(merged, sums, row, rows, 1, beta);
  if (active && row == 0) finish(wanted, pool, at, merged[threadIdx.x]);
}

// The gradient where each position lies in one window, whose stats are ready.
template <class T, class Index, int V, bool kAcross, bool kRun>
__global__ void __launch_bounds__(kThreads, kSpreadBlocks<T, Index, V, kAcross || kRun>)
    spread_gradient(const T* x, T* x_grad, Pool<T, Index> pool, Split<Index> split, Teams<Index> teams,
                    const AccOf<T>* ready, int64_t apart) {
  using Acc = AccOf<T>;
  using Part = Member<T, Index, V, kAcross, kRun>;
  constexpr int kWindows = Part::kWindows;
  const Part part(threadIdx.x, pool, split, teams);
  if (!part.active) return;
  const auto beta = part.betas();
  ready += pool.output(part.at);
  const auto pivot = load<kWindows>(ready), share = load<kWindows>(ready + apart),
             half_offset = load<kWindows>(ready + 2 * apart);
  // A window without a derivative has the largest number as its pivot: +inf would lie above it.
  bool usual = true;
#pragma unroll
  for (int w = 0; w < kWindows; ++w)
    usual &= is_usual(beta[w]) && is_finite(share.of[w]) && pivot.of[w] < Limits<Acc>::max;
  x_grad += pool.input_grad.plane(part.at);
  const auto write = [&](auto taps, auto gradient) {
    constexpr int kTaps = decltype(taps)::value;
    part.template each_chunk<kTaps>(x, [&](const auto& values, const auto& spots) {
#pragma unroll
      for (int k = 0; k < kTaps; ++k) {
        if (!spots[k].inside) continue;
        Vec<T, V> result;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const int w = kAcross ? 0 : v;
          const Stats<Acc> stats = {pivot.of[w], share.of[w], half_offset.of[w]};
          result.of[v] = static_cast<T>(gradient(stats, static_cast<Acc>(values[k].of[v]), beta[w]));
        }
        store<V>(x_grad + pool.input_grad.in_plane(spots[k].t, spots[k].h, spots[k].w), result);
      }
    });
  };
  // Half as many taps at a time where each of many windows has its stats in registers.
  constexpr int kTaps = kWindows > 4 ? kChunk<V> / 2 : kChunk<V>;
  if (usual)
    write(std::integral_constant<int, kTaps>(),
          [](const Stats<Acc>& s, Acc x, Acc beta) { return s.gradient_usual(x, Acc(1), beta); });
  else
    write(std::integral_constant<int, 1>(),
          [](const Stats<Acc>& s, Acc x, Acc beta) { return s.gradient(x, Acc(1), beta); });
}

}  // namespace softpool3d::cuda
