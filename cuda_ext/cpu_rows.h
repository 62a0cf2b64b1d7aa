// Which rows of inputs are summed to which rows of outputs, and which rows of outputs make the gradient of which rows
// of inputs.

#pragma once

#include "cpu_gradient.h"
#include "cpu_outputs.h"
#include "cpu_plan.h"

namespace softpool3d {
namespace SOFTPOOL_LEVEL {

// Computes a tile. `Read` is Columns, Wide or Channels, and has
//
//     sum<kSums>(n, i)            sums n rows of inputs for row i of a batch, as far as may be before gather(rows)
//     share_of_limit(i)           above 1, or NaN: the row leaves the range in which weights need no maximum
//     spread(uv, i)               prepares gradient(x, i, dx, stride) of a row of inputs
template <class T, class Acc, template <class, class> class Read>
class Rows {
  static constexpr int lanes = Vec<Acc>::lanes;

 public:
  Rows(const Plan<T, Acc>& plan, double* beta_grad) : plan_(plan), read_(plan), outputs_(plan, beta_grad) {}

  void run() {
    plan_.clear_all();
    plan_.direct ? run_direct() : run_shared();
  }

 private:
  // Where no two windows share a row of inputs: a row of outputs is made at once from all of its rows.
  void run_direct() {
    const auto& g = plan_.call.geometry;
    const Tile& tile = plan_.tile;
    for (int64_t to = tile.t.begin; to < tile.t.end; ++to) {
      const auto wt = g.t.window(to);
      for (int64_t first = tile.h.begin; first < tile.h.end; first += plan_.batch) {
        const int64_t rows = min_of(plan_.batch, tile.h.end - first);
        for (int64_t i = 0; i < rows; ++i) {
          const auto wh = g.h.window(first + i);
          int64_t n = 0;
          for (int64_t t = wt.begin; t < wt.end; ++t)
            for (int64_t h = wh.begin; h < wh.end; ++h) plan_.inputs[n++] = plan_.x_row(t, h);
          sum(n, i);
        }
        read_.gather(rows);
        for (int64_t i = 0; i < rows; ++i) {
          plan_.bad[i] = is_bad(i);
          outputs_.finish(to, first + i, i);
        }
        if (!plan_.backward || !plan_.call.input_grad) continue;
        for (int64_t i = 0; i < rows; ++i)
          if (!plan_.bad[i]) read_.spread(plan_.sum(i), i);
        for (int64_t i = 0; i < rows; ++i) write_gradients(to, first + i, i);
      }
    }
  }

  // The gradient of all rows of inputs that belong to one row of outputs.
  void write_gradients(int64_t to, int64_t ho, int64_t i) {
    const auto& g = plan_.call.geometry;
    const auto wt = g.t.window(to), wh = g.h.window(ho);
    const Span own_t = owned_inputs(g.t, {to, to + 1}), own_h = owned_inputs(g.h, {ho, ho + 1});
    for (int64_t t = own_t.begin; t < own_t.end; ++t)
      for (int64_t h = own_h.begin; h < own_h.end; ++h) {
        const bool inside = t >= wt.begin && t < wt.end && h >= wh.begin && h < wh.end;
        const bool bad = inside && plan_.bad[i];
        const T* x = plan_.x_row(t, h);
        T* dx = plan_.dx_row(t, h);
        begin_gradient(x, dx, inside && !bad ? i : kNone, bad);
        if (!bad) continue;
        outputs_.add_exact_gradient(x, i);
        store_line(plan_, dx);
      }
  }

  // Where windows share rows of inputs: each row is summed along W once, and added to all the rows of outputs that it
  // belongs to.
  void run_shared() {
    const auto& g = plan_.call.geometry;
    plan_.clear_sums();
    const Span in_t = inputs_of(g.t, plan_.need_t), in_h = inputs_of(g.h, plan_.need_h);
    for (int64_t t = in_t.begin; t < in_t.end; ++t) {
      const Span ts = needed_over(g.t, plan_.need_t, t);
      if (ts.size() <= 0) continue;
      each_batch(in_h, [&](int64_t first, int64_t rows) {
        plan_.call.beta_grad ? add_rows<3>(ts, t, first, rows) : add_rows<2>(ts, t, first, rows);
      });
    }

    for (int64_t to = plan_.need_t.begin; to < plan_.need_t.end; ++to)
      for (int64_t ho = plan_.need_h.begin; ho < plan_.need_h.end; ++ho) outputs_.finish(to, ho, index(to, ho));
    if (!plan_.backward || !plan_.call.input_grad) return;

    const Span own_t = owned_inputs(g.t, plan_.tile.t), own_h = owned_inputs(g.h, plan_.tile.h);
    for (int64_t t = own_t.begin; t < own_t.end; ++t) {
      const Span ts = needed_over(g.t, plan_.need_t, t);
      each_batch(own_h, [&](int64_t first, int64_t rows) { gather_gradients(ts, t, first, rows); });
    }
  }

  template <int kSums>
  void add_rows(Span ts, int64_t t, int64_t first, int64_t rows) {
    for (int64_t i = 0; i < rows; ++i) {
      plan_.inputs[0] = plan_.x_row(t, first + i);
      read_.template sum<kSums>(1, i);
    }
    read_.gather(rows);
    for (int64_t i = 0; i < rows; ++i) {
      const bool bad = is_bad(i);
      const RowSums<Acc> from = plan_.row(i);
      each_window(ts, t, first + i, [&](int64_t r) SOFTPOOL_LAMBDA {
        plan_.bad[r] |= bad;
        add<kSums>(from, plan_.sum(r));
      });
    }
  }

  void gather_gradients(Span ts, int64_t t, int64_t first, int64_t rows) {
    bool bad[Plan<T, Acc>::kMostRows], good[Plan<T, Acc>::kMostRows];
    for (int64_t i = 0; i < rows; ++i) {
      const RowSums<Acc> to = plan_.row(i);
      bool any_good = false, any_bad = false;
      each_window(ts, t, first + i, [&](int64_t r) SOFTPOOL_LAMBDA {
        if (plan_.bad[r]) {
          any_bad = true;
          return;
        }
        any_good ? add<2>(plan_.sum(r), to) : copy<2>(plan_.sum(r), to);
        any_good = true;
      });
      bad[i] = any_bad, good[i] = any_good;
    }
    for (int64_t i = 0; i < rows; ++i)
      if (good[i]) read_.spread(plan_.row(i), i);
    for (int64_t i = 0; i < rows; ++i) {
      const T* x = plan_.x_row(t, first + i);
      T* dx = plan_.dx_row(t, first + i);
      begin_gradient(x, dx, good[i] ? i : kNone, bad[i]);
      if (!bad[i]) continue;
      each_window(ts, t, first + i, [&](int64_t r) {
        if (plan_.bad[r]) outputs_.add_exact_gradient(x, r);
      });
      store_line(plan_, dx);
    }
  }

  // Calls f(first, rows) for rows that go through each step together, so that what one step has stored is there when
  // the next one loads it with another alignment.
  template <class F>
  SOFTPOOL_INLINE void each_batch(Span all, const F& f) const {
    for (int64_t first = all.begin; first < all.end; first += plan_.batch)
      f(first, min_of(plan_.batch, all.end - first));
  }

  // Calls f(index) for each needed row of outputs whose windows hold input row (t, h); `ts`: needed_over of t.
  template <class F>
  SOFTPOOL_INLINE void each_window(Span ts, int64_t t, int64_t h, const F& f) const {
    const auto& g = plan_.call.geometry;
    const Span hs = needed_over(g.h, plan_.need_h, h);
    for (int64_t to = ts.begin; to < ts.end; ++to) {
      if (!g.t.holds(to, t)) continue;
      const int64_t first = index(to, 0);
      for (int64_t ho = hs.begin; ho < hs.end; ++ho)
        if (g.h.holds(ho, h)) f(first + ho);
    }
  }

  int64_t index(int64_t to, int64_t ho) const {
    return (to - plan_.need_t.begin) * plan_.need_h.size() + (ho - plan_.need_h.begin);
  }

  void sum(int64_t n, int64_t i) {
    plan_.call.beta_grad ? read_.template sum<3>(n, i) : read_.template sum<2>(n, i);
  }

  bool is_bad(int64_t i) const { return !(read_.share_of_limit(i) <= 1); }

  template <int kSums>
  SOFTPOOL_INLINE void add(const RowSums<Acc> from, const RowSums<Acc> to) const {
    const int64_t length = plan_.length;
    for (int64_t i = 0; i < length; i += lanes)
      for (int s = 0; s < kSums; ++s) store(to[s] + i, load(to[s] + i) + load(from[s] + i));
  }
  template <int kSums>
  SOFTPOOL_INLINE void copy(const RowSums<Acc> from, const RowSums<Acc> to) const {
    const int64_t length = plan_.length;
    for (int64_t i = 0; i < length; i += lanes)
      for (int s = 0; s < kSums; ++s) store(to[s] + i, load(from[s] + i));
  }

  // Computes the gradient of a row of inputs from what spread(..., i) prepared; without (kNone) it is 0. It goes into
  // dx, or into the plan's line if something will be added to it.
  void begin_gradient(const T* x, T* dx, int64_t i, bool to_line) {
    if (i == kNone) {
      for (int64_t k = 0; k < plan_.own_w.size() * plan_.channels; ++k) plan_.line[k] = 0;
      if (!to_line) store_line(plan_, dx);
    } else if (to_line) {
      read_.gradient(x, i, plan_.line, plan_.channels);
    } else {
      read_.gradient(x, i, dx, plan_.call.dx_stride[4]);
    }
  }

  static constexpr int64_t kNone = -1;

  const Plan<T, Acc>& plan_;
  Read<T, Acc> read_;
  const Outputs<T, Acc> outputs_;
};

}  // namespace SOFTPOOL_LEVEL
}  // namespace softpool3d
