// How the CUDA kernels share out windows of many values: network heads, global pools, bins.
//
// A block holds `teams` x `rows` x `lanes` threads, lanes next to each other. The rows of a team take turns along the
// taps of its windows: every tap of a row is V elements. Where there is an inner dimension, these belong to V windows
// side by side, and a team has V x lanes of them. Without one (kAcross) they belong to the team's only window. A window
// may be cut into segments, a team for each.
//
// Taps that lie at equal distances (kRun) are only counted; others are numbered along t, h and w, as if the window lay
// inside the input.

#pragma once

#include "soft_pool_sums.cuh"
#include "soft_pool_window.cuh"

namespace softpool3d::cuda {

// Taps that a thread reads at a time, 32 or 64 bytes of most types. With two blocks or more on a multiprocessor, enough
// reads are in flight.
template <int V>
constexpr int kChunk = V == 1 ? 8 : 4;

template <class Index>
struct Teams {
  Index windows;            // groups of windows that a team takes at once
  Index taps, per_segment;  // of the largest window
  Index segments;
  int teams, rows, lanes;
  Index taps_h, taps_w;          // along these axes
  Index step_t, step_h, step_w;  // from a thread's tap to its next
  Divider<Index> by_segments, by_taps_h, by_taps_w;
  Divider<int32_t> by_rows, by_lanes;
};

// Returns the number, but hides it from the compiler: what follows from it is computed anew, not kept in registers.
__device__ __forceinline__ int recomputed(int number) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(number));
#endif
  return number;
}

// A thread's part of a window, or of V windows side by side.
template <class T, class Index, int V, bool kAcross, bool kRun>
class Member {
 public:
  using Acc = AccOf<T>;
  static constexpr bool kIsAcross = kAcross;
  static constexpr int kWindows = kAcross ? 1 : V, kTaps = kChunk<V>;

  // A tap's position in the input.
  struct Spot {
    Index t, h, w;
    bool inside;
  };

  // The tap at which a thread is, by its number in all and, but for runs, along each axis.
  struct Cursor {
    Index tap, t, h, w;
  };

  __device__ __forceinline__ Member(int thread, const Pool<T, Index>& pool, const Split<Index>& split,
                                    const Teams<Index>& teams)
      : pool_(pool), teams_(teams) {
    const int rest = teams.by_lanes(thread);
    lane = thread - rest * teams.lanes;
    team = teams.by_rows(rest);
    // Threads left over belong to no team, and are in no row.
    row = team < teams.teams ? rest - team * teams.rows : teams.rows;
    const auto block = static_cast<Index>(blockIdx.x), blocks = teams.by_segments(block);
    const Index segment = block - blocks * teams.segments;
    const Index window = blocks * teams.teams + team;
    at = split(window, kAcross ? 1 : V * teams.lanes);
    at.inner += kAcross ? 0 : V * lane;
    active = team < teams.teams && window < teams.windows && at.inner < pool.inner;
    t_ = pool.axes.t.window(at.t), h_ = pool.axes.h.window(at.h), w_ = pool.axes.w.window(at.w);
    const Index taps = kRun ? w_.end - w_.begin : teams.taps;
    first_ = segment * teams.per_segment + row;
    end_ = active ? min_of((segment + 1) * teams.per_segment, taps) : Index(0);
  }

  __device__ __forceinline__ Lanes<Acc, kWindows> betas() const {
    return cuda::lanes_of<kWindows>([&](int v) { return active ? pool_.beta_at(at, v) : Acc(0); });
  }

  // Calls f(values, spots) for kCount taps at a time; values outside the window are -inf.
  template <int kCount, class F>
  __device__ __forceinline__ void each_chunk(const T* x, F f) const {
    x += pool_.input.plane(at);
    Cursor cursor = start();
    const auto chunk = [&](auto whole) {
      Vec<T, V> values[kCount];
      Spot spots[kCount];
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        spots[k] = spot(cursor);
        advance(cursor);
        if constexpr (decltype(whole)::value) spots[k].inside = true;
        if (spots[k].inside) {
          values[k] = load<V>(x + pool_.input.in_plane(spots[k].t, spots[k].h, spots[k].w));
        } else {
#pragma unroll
          for (int v = 0; v < V; ++v) values[k].of[v] = static_cast<T>(-Limits<Acc>::inf);
        }
      }
      f(values, spots);
    };
    if constexpr (kRun)
      while (cursor.tap + (kCount - 1) * teams_.rows < end_) chunk(std::true_type());
    while (cursor.tap < end_) chunk(std::false_type());
  }

  // The sums of the v-th window, whatever its values and beta; values are read one by one.
  __device__ __forceinline__ Sums<Acc> general_sums(const T* x, int v, Acc beta) const {
    x += pool_.input.plane(at) + (kAcross ? 0 : v);
    const auto each = [&](auto f) {
#pragma unroll 1
      for (Cursor cursor = start(); cursor.tap < end_; advance(cursor)) {
        const Spot s = spot(cursor);
        if (!s.inside) continue;
        const T* const from = x + pool_.input.in_plane(s.t, s.h, s.w);
#pragma unroll 1
        for (int e = 0; e < (kAcross ? V : 1); ++e) f(static_cast<Acc>(from[e]));
      }
    };
    Extent<Acc> extent;
    each([&](Acc value) { extent.add(value); });
    Sums<Acc> sums(extent, beta);
    each([&](Acc value) { sums.add(value); });
    return sums;
  }

  int team, row, lane;
  Place<Index> at;
  bool active;

 private:
  __device__ __forceinline__ Cursor start() const {
    if constexpr (kRun) return {first_, 0, 0, 0};
    const Index tap_h = teams_.by_taps_w(first_), tap_t = teams_.by_taps_h(tap_h);
    return {first_, tap_t, tap_h - tap_t * teams_.taps_h, first_ - tap_h * teams_.taps_w};
  }

  __device__ __forceinline__ void advance(Cursor& cursor) const {
    cursor.tap += teams_.rows;
    if constexpr (kRun) return;
    cursor.w += teams_.step_w;
    const bool next_h = cursor.w >= teams_.taps_w;
    cursor.w -= next_h ? teams_.taps_w : 0;
    cursor.h += teams_.step_h + next_h;
    const bool next_t = cursor.h >= teams_.taps_h;
    cursor.h -= next_t ? teams_.taps_h : 0;
    cursor.t += teams_.step_t + next_t;
  }

  __device__ __forceinline__ Spot spot(const Cursor& cursor) const {
    if constexpr (kRun) return {0, 0, w_.begin + cursor.tap, cursor.tap < end_};
    const Index t = t_.begin + cursor.t * t_.step, h = h_.begin + cursor.h * h_.step,
                w = w_.begin + cursor.w * w_.step;
    return {t, h, w, cursor.tap < end_ && t < t_.end && h < h_.end && w < w_.end};
  }

  const Pool<T, Index>& pool_;
  const Teams<Index>& teams_;
  Range<Index> t_, h_, w_;
  Index first_, end_;
};

}  // namespace softpool3d::cuda
