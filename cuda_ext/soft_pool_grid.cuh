// How threads and blocks share out a pool: boxes of positions, and teams for large windows. Host code.

#pragma once

#include "soft_pool_kernels.cuh"
#include "soft_pool_teams.cuh"
#include "soft_pool_view.cuh"

namespace softpool3d::cuda {

// Every GPU has 48 KB of shared memory to a block; less leaves room for several blocks.
constexpr int64_t kMostShared = 48 << 10, kGoodShared = 24 << 10;

template <class Index>
Split<Index> split_of(int64_t c, int64_t t, int64_t h, int64_t w, int64_t groups) {
  const auto by = [](int64_t n) { return Divider<Index>(static_cast<Index>(n)); };
  return {by(c), by(t), by(h), by(w), by(groups)};
}

// --- boxes, for backward_gather -------------------------------------------------------------------------------------

// How many threads read next to each other along `inner`, V elements each: a power of two, up to a cache line of 128
// bytes or, where a block has to keep much for each, a part of it.
inline int inner_lanes(int64_t inner, int V, int part = 1) {
  const int most = V > 1 ? 8 / part : kMostLanes;
  int lanes = 1;
  while (2 * lanes <= most && 2 * lanes * V <= inner) lanes *= 2;
  return lanes;
}

// How many windows lie over `positions` next to each other, at most.
inline int64_t most_windows(const Axis<int64_t>& a, int64_t positions) {
  if (a.kernel == 0) return min_of(a.out, ceil_div(positions * a.out, a.size) + 1);
  return min_of(a.out, (positions - 1 + (a.kernel - 1) * a.dilation) / a.stride + 1);
}

inline Box<int64_t> box_over(const Geometry<int64_t>& g, int64_t t, int64_t h, int64_t w) {
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
template <class T>
Box<int64_t> box_of(const Pool<T, int64_t>& pool, int V, bool with_stats) {
  const Geometry<int64_t>& g = pool.axes;
  int64_t lanes = inner_lanes(pool.inner, V, 2);
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

// --- teams, for large windows ---------------------------------------------------------------------------------------

template <int V, bool kAcross, class T, class Index>
Teams<Index> teams_of(const Pool<T, Index>& pool, int64_t enough_blocks) {
  const Geometry<Index>& g = pool.axes;
  const auto taps_along = [](const Axis<Index>& a) {
    return View<T>::most_taps(Axis<int64_t>{a.size, a.out, a.kernel, a.stride, a.padding, a.dilation});
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
  const int64_t windows = pool.outputs / pool.inner * groups;
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

// The places of the teams: of windows and, not across, of groups of lanes.
template <int V, bool kAcross, class T, class Index>
Split<Index> split_for(const Pool<T, Index>& pool, const Teams<Index>& teams) {
  const int64_t groups = kAcross ? 1 : ceil_div<int64_t>(pool.inner, V * teams.lanes);
  return split_of<Index>(pool.outer_channels, pool.axes.t.out, pool.axes.h.out, pool.axes.w.out, groups);
}

}  // namespace softpool3d::cuda
