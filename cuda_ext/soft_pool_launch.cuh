// Which CUDA kernel runs for a call, and on what grid. Host code without torch, so that the tests run all of it.

#pragma once

#include "soft_pool_grid.cuh"
#include "soft_pool_kernels.cuh"
#include "soft_pool_overlap.cuh"
#include "soft_pool_overlap_backward.cuh"
#include "soft_pool_reduce.cuh"
#include "soft_pool_table.cuh"
#include "soft_pool_tile.cuh"
#include "soft_pool_view.cuh"

namespace softpool3d::cuda {

#ifdef __CUDACC__
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared, Stream stream,
            const Arguments&... arguments) {
  kernel<<<static_cast<unsigned>(blocks), threads, shared, stream>>>(arguments...);
}
#endif

template <class T>
class Launcher {
  using Acc = AccOf<T>;
  static constexpr int kWide = View<T>::kWide;

 public:
  explicit Launcher(const Call<T>& call) : call_(call), view_(call) {}

  void forward(T* y) const {
    const Pool<T, int64_t> pool = view_.folded();
    if (view_.by_teams(pool)) return reduce(pool, {.y = y});
    if (!view_.fits_32_bits(pool)) return columns<Any, int64_t, 1>(pool, y);
    if constexpr (kSpecialised) {
      if (OverlappingTable::any([&](auto line) { return overlapping(line, pool, y); })) return;
      if (RegistersTable::any([&](auto line) { return in_registers(line, pool, y); })) return;
    }
    const auto narrow = View<T>::narrowed(pool);
    if (view_.columns_of_16_bytes(pool, y)) return columns<Any, int32_t, kWide>(narrow, y);
    columns<Any, int32_t, 1>(narrow, y);
  }

  void backward(const T* y_grad, T* x_grad) const {
    const Pool<T, int64_t> pool = view_.folded();
    const bool narrow_fits = view_.fits_32_bits(pool);
    const bool wide = narrow_fits && view_.columns_of_16_bytes(pool, y_grad, x_grad);
    const bool in_shared_memory = box_of(pool, 1, true).positions() > 0;
    if ((view_.partition() ? view_.by_teams(pool) : view_.large()) || !in_shared_memory) {
      // Few windows for many positions, or more windows over a position than shared memory holds: a kernel of its own
      // computes their stats first.
      const int64_t apart = (pool.outputs + kWide - 1) / kWide * kWide;
      auto* const stats = static_cast<Acc*>(call_.workspace(3 * apart * sizeof(Acc)));
      reduce(pool, {.stats = stats, .apart = apart, .y_grad = y_grad});
      if (view_.partition()) return spread(pool, x_grad, stats, apart);
      if (!narrow_fits) return gather<int64_t, 1, true>(pool, y_grad, x_grad, stats, apart);
      if (wide) return gather<int32_t, kWide, true>(View<T>::narrowed(pool), y_grad, x_grad, stats, apart);
      return gather<int32_t, 1, true>(View<T>::narrowed(pool), y_grad, x_grad, stats, apart);
    }
    if (!narrow_fits) return gather<int64_t, 1, false>(pool, y_grad, x_grad, nullptr, 0);
    const auto narrow = View<T>::narrowed(pool);
    if (view_.tiled()) {
      if constexpr (kSpecialised)
        if (RegistersTable::any([&](auto line) { return in_registers(line, pool, y_grad, x_grad); })) return;
      return wide ? tiled_columns<Any, kWide>(narrow, y_grad, x_grad) : tiled_columns<Any, 1>(narrow, y_grad, x_grad);
    }
    if constexpr (kSpecialised)
      if (OverlappingTable::any([&](auto line) { return overlapping(line, pool, y_grad, x_grad); })) return;
    if (wide && box_of(pool, kWide, true).positions() > 0)
      return gather<int32_t, kWide, false>(narrow, y_grad, x_grad, nullptr, 0);
    gather<int32_t, 1, false>(narrow, y_grad, x_grad, nullptr, 0);
  }

  // dL/dbeta of each channel
  void beta_gradient(const T* y_grad, Acc* sums) const {
    const Pool<T, int64_t> pool = view_.unfolded();
    const int64_t outputs = call_.axes.t.out * call_.axes.h.out * call_.axes.w.out;
    int64_t rows;
    Acc* shares;
    if (view_.large() || (view_.by_teams(pool) && call_.batch * outputs <= kFewRows)) {
      rows = call_.batch * outputs;
      shares = static_cast<Acc*>(call_.workspace(rows * call_.channels * sizeof(Acc)));
      reduce(pool, {.beta_shares = shares, .y_grad = y_grad});
    } else {
      const bool narrow_fits = view_.fits_32_bits(pool);
      const bool wide = narrow_fits && view_.columns_of_16_bytes(pool, y_grad);
      const int lanes = inner_lanes(pool.inner, wide ? kWide : 1);
      const int64_t per_slice = kThreads / lanes * kWindowsPerThread;
      const int64_t slices = ceil_div(outputs, per_slice);
      rows = call_.batch * slices;
      shares = static_cast<Acc*>(call_.workspace(rows * call_.channels * sizeof(Acc)));
      if (!narrow_fits)
        share<int64_t, 1>(pool, y_grad, shares, slices, per_slice, lanes);
      else if (wide)
        share<int32_t, kWide>(View<T>::narrowed(pool), y_grad, shares, slices, per_slice, lanes);
      else
        share<int32_t, 1>(View<T>::narrowed(pool), y_grad, shares, slices, per_slice, lanes);
    }
    launch(sum_shares<Acc>, ceil_div<int64_t>(call_.channels, kThreads), kThreads, 0, call_.stream, shares, sums, rows,
           call_.channels);
  }

 private:
  // Speed matters little in float64, so it has no specialised kernels.
  static constexpr bool kSpecialised = !std::is_same_v<T, double>;
  static constexpr int64_t kFewRows = 4096, kWindowsPerThread = 16;
  // As many blocks as keep the largest GPUs busy to the end. More would cost more merging for sums; gradients need
  // none.
  static constexpr int64_t kBlocksOfSums = 2640, kBlocksOfGradients = 10560;

  // --- a line of a table: runs its kernel for `pointers` (y, or y_grad and x_grad) if these are its windows, and
  // returns whether they are

  template <class Line, class... Pointers>
  bool overlapping(Line, const Pool<T, int64_t>& pool, Pointers*... pointers) const {
    using WideRows = typename Line::template Kind<WideRow>;
    constexpr int kLanes = 2;
    if (!WideRows::is(pool.axes)) return false;
    const auto narrow = View<T>::narrowed(pool);
    const Axis<int64_t>& w = pool.axes.w;
    if (pool.inner == 1 && (pool.input.w == 1 || w.size == 1)) {
      const bool whole = w.size % WideRows::kCellColumns == 0 && w.out * w.stride == w.size;
      if (whole && view_.vectors_of(WideRows::kCellColumns, pool, pointers...))
        overlap<WideRows>(narrow, pointers...);
      else
        overlap<typename Line::template Kind<Row>>(narrow, pointers...);
    } else if (pool.inner % kLanes == 0 && pool.input.w % kLanes == 0 && view_.vectors_of(kLanes, pool, pointers...)) {
      overlap<typename Line::template Kind<Inner<kLanes>>>(narrow, pointers...);
    } else {
      overlap<typename Line::template Kind<Inner<1>>>(narrow, pointers...);
    }
    return true;
  }

  template <class Line>
  bool in_registers(Line, const Pool<T, int64_t>& pool, T* y) const {
    using Kind = Fixed<Line::kT, Line::kH, Line::kW>;
    constexpr int V = Line::kForward < kWide ? Line::kForward : kWide;
    if (!view_.has_kernel(Line::kT, Line::kH, Line::kW)) return false;
    const auto narrow = View<T>::narrowed(pool);
    if constexpr (Line::kRows)
      if (view_.rows_of_16_bytes(y)) return rows<Rows<Line::kT, Line::kH, Line::kW>>(narrow, y), true;
    if (view_.columns_of_16_bytes(pool, y)) {
      if constexpr (V > 0) return columns<Kind, int32_t, V>(narrow, y), true;
    } else if constexpr (Line::kForwardSingle) {
      return columns<Kind, int32_t, 1>(narrow, y), true;
    }
    return false;
  }

  template <class Line>
  bool in_registers(Line, const Pool<T, int64_t>& pool, const T* y_grad, T* x_grad) const {
    using Kind = Fixed<Line::kT, Line::kH, Line::kW>;
    constexpr int V = Line::kBackward < kWide ? Line::kBackward : kWide;
    if (!view_.has_kernel(Line::kT, Line::kH, Line::kW)) return false;
    const auto narrow = View<T>::narrowed(pool);
    if constexpr (Line::kRows)
      if (view_.rows_of_16_bytes(y_grad, x_grad))
        return tiled_rows<Rows<Line::kT, Line::kH, Line::kW>>(narrow, y_grad, x_grad), true;
    if (view_.columns_of_16_bytes(pool, y_grad, x_grad)) {
      if constexpr (V > 0) return tiled_columns<Kind, V>(narrow, y_grad, x_grad), true;
    } else if constexpr (Line::kBackwardSingle) {
      return tiled_columns<Kind, 1>(narrow, y_grad, x_grad), true;
    }
    return false;
  }

  // --- launches

  template <class Kind, class Index, int V>
  void columns(const Pool<T, Index>& pool, T* y) const {
    const Geometry<Index>& g = pool.axes;
    const int64_t count = pool.outputs / V;
    launch(forward_windows<T, Index, V, Kind>, ceil_div<int64_t>(count, kThreads), kThreads, 0, call_.stream, call_.x,
           y, pool, split_of<Index>(pool.outer_channels, g.t.out, g.h.out, g.w.out, pool.inner / V),
           static_cast<Index>(count));
  }

  template <class Kind>
  void rows(const Pool<T, int32_t>& pool, T* y) const {
    const Geometry<int32_t>& g = pool.axes;
    const int32_t groups = g.w.size / kWide;
    const int64_t count = call_.batch * pool.outer_channels * g.t.out * g.h.out * groups;
    launch(forward_windows<T, int32_t, Kind::template kWindows<T>, Kind>, ceil_div<int64_t>(count, kThreads), kThreads,
           0, call_.stream, call_.x, y, pool, split_of<int32_t>(pool.outer_channels, g.t.out, g.h.out, groups, 1),
           static_cast<int32_t>(count));
  }

  template <class Kind>
  void overlap(const Pool<T, int32_t>& pool, T* y) const {
    const Geometry<int32_t>& g = pool.axes;
    const int32_t h = ceil_div(g.h.out, Kind::kH), w = ceil_div(g.w.out, Kind::kW), groups = pool.inner / Kind::kLanes;
    const int64_t count = call_.batch * pool.outer_channels * g.t.out * h * w * groups;
    launch(forward_overlap<T, Kind>, ceil_div<int64_t>(count, kOverlapThreads), kOverlapThreads, 0, call_.stream,
           call_.x, y, pool, split_of<int32_t>(pool.outer_channels, g.t.out, h, w, groups),
           static_cast<int32_t>(count));
  }

  template <class Kind>
  void overlap(const Pool<T, int32_t>& pool, const T* y_grad, T* x_grad) const {
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
    const Geometry<int32_t>& g = pool.axes;
    const int32_t t = ceil_div(g.t.size, g.t.kernel), h = ceil_div(g.h.size, g.h.kernel),
                  w = ceil_div(g.w.size, g.w.kernel);
    const int64_t count = call_.batch * pool.outer_channels * t * h * w * (pool.inner / V);
    launch(backward_windows<T, int32_t, V, Kind>, ceil_div<int64_t>(count, kThreads), kThreads, 0, call_.stream,
           call_.x, y_grad, x_grad, pool, split_of<int32_t>(pool.outer_channels, t, h, w, pool.inner / V),
           static_cast<int32_t>(count));
  }

  template <class Kind>
  void tiled_rows(const Pool<T, int32_t>& pool, const T* y_grad, T* x_grad) const {
    const Geometry<int32_t>& g = pool.axes;
    const int32_t t = ceil_div(g.t.size, g.t.kernel), h = ceil_div(g.h.size, g.h.kernel), w = g.w.size / kWide;
    const int64_t count = call_.batch * pool.outer_channels * t * h * w;
    launch(backward_windows<T, int32_t, Kind::template kWindows<T>, Kind>, ceil_div<int64_t>(count, kThreads), kThreads,
           0, call_.stream, call_.x, y_grad, x_grad, pool, split_of<int32_t>(pool.outer_channels, t, h, w, 1),
           static_cast<int32_t>(count));
  }

  template <class Index, int V, bool kReady>
  void gather(const Pool<T, Index>& pool, const T* y_grad, T* x_grad, const Acc* ready, int64_t apart) const {
    const Box<int64_t> plan = box_of(view_.folded(), V, !kReady);
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
    const Pool<T, int64_t> pool = View<T>::as_run(any_pool);
    const bool wide = view_.columns_of_16_bytes(pool, others...), run = View<T>::is_run(pool);
    if (!view_.fits_32_bits(pool)) {
      if (pool.inner == 1) return f.template operator()<int64_t, 1, true, false>(pool);
      return f.template operator()<int64_t, 1, false, false>(pool);
    }
    const Pool<T, int32_t> narrow = View<T>::narrowed(pool);
    if (pool.inner == 1) {
      if (run && view_.runs_of_16_bytes(pool, others...))
        return f.template operator()<int32_t, kWide, true, true>(View<T>::narrowed(View<T>::in_vectors(pool)));
      if (run) return f.template operator()<int32_t, 1, true, true>(narrow);
      return f.template operator()<int32_t, 1, true, false>(narrow);
    }
    if (wide && run) return f.template operator()<int32_t, kWide, false, true>(narrow);
    if (wide) return f.template operator()<int32_t, kWide, false, false>(narrow);
    f.template operator()<int32_t, 1, false, false>(narrow);
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
    const Teams<Index> teams = teams_of<V, kAcross>(pool, kBlocksOfSums);
    Sums<Acc>* parts = nullptr;
    if (teams.segments > 1)
      parts = static_cast<Sums<Acc>*>(call_.workspace(teams.segments * pool.outputs * sizeof(Sums<Acc>)));
    launch(reduce_windows<T, Index, V, kAcross, kRun, kSquares>,
           ceil_div<int64_t>(teams.windows, teams.teams) * teams.segments, kThreads,
           reduce_bytes<T>(V, kAcross, kSquares), call_.stream, call_.x, pool,
           split_for<V, kAcross>(pool, teams), teams, wanted, parts);
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
      const Teams<Index> teams = teams_of<V, kAcross>(pool, kBlocksOfGradients);
      launch(spread_gradient<T, Index, V, kAcross, kRun>,
             ceil_div<int64_t>(teams.windows, teams.teams) * teams.segments, kThreads, 0, call_.stream, call_.x,
             x_grad, pool, split_for<V, kAcross>(pool, teams), teams, stats, apart);
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
  const View<T> view_;
};

}  // namespace softpool3d::cuda
