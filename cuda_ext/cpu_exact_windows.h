// Which windows cpu_exact.h computes at once, and how it reads them: a type for each way. Each has
//
//     width              how many windows along W the next ones are away
//     output, channel    of a lane
//     visit(row, f)      calls f(x, there) for the taps in a row of inputs; `there` are the lanes that have one
//     taps()             how many those are
//     join_*             what remains to be done where lanes are taps of one window
//     add_gradient(...)  what a row of outputs contributes to the gradient of a row of inputs

#pragma once

#include "cpu_exp2.h"
#include "cpu_plan.h"

namespace softpool3d {
namespace SOFTPOOL_LEVEL {

template <class T>
SOFTPOOL_INLINE auto load_some(const T* p, int n) {
  constexpr int lanes = sizeof(load(p)) / sizeof(load(p)[0]);
  return n == lanes ? load(p) : load_part(p, n);
}

// The same as Stats::gradient, with g in inverse_sum already.
template <class Acc, class V>
SOFTPOOL_INLINE V exact_gradient(V x, V pivot, V inverse_sum, V half_offset, V beta, V scale) {
  const V half_distance = Acc(0.5) * x - Acc(0.5) * pivot;
  const V weight = exp2_of_vector<Acc>(Acc(2) * (scale * half_distance)) * inverse_sum;
  const V most = splat<V>(Limits<Acc>::max), inf = splat<V>(Limits<Acc>::inf);
  V slope = Acc(2) * (beta * (half_distance - half_offset));
  slope = slope > most ? most : slope < -most ? -most : slope;
  return ((inverse_sum == 0) | (x == inf) | (x == -inf)) ? V{} : weight * (Acc(1) + slope);
}

// channels_last: lanes are channels of one window.
template <class T, class Acc>
class ChannelsOfOne {
  using V = typename Vec<Acc>::type;
  using I = typename Vec<Acc>::ints;
  static constexpr int lanes = Vec<Acc>::lanes;

 public:
  static constexpr int64_t width = 1;
  static int64_t output(int64_t wo, int) { return wo; }
  static int64_t channel(int64_t c, int lane) { return c + lane; }

  ChannelsOfOne(const Plan<T, Acc>& plan, int64_t wo, int64_t c)
      : plan_(plan), window_(plan.call.geometry.w.window(wo)), c_(c) {}

  int count() const { return count_of(plan_, c_); }
  int64_t taps() const { return window_.end - window_.begin; }
  V beta() const { return load(plan_.beta + c_); }
  V scale() const { return load(plan_.scale + c_); }

  template <class F>
  SOFTPOOL_INLINE void visit(const T* row, const F& f) const {
    const int n = count();
    for (int64_t w = window_.begin; w < window_.end; w += window_.step)
      f(load_some(row + w * plan_.call.x_stride[4] + c_, n), ~I{});
  }

  static void join_extents(V&, V&) {}
  static void join_sums(V (&)[3]) {}

  static void add_gradient(const Plan<T, Acc>& plan, const T* x, const RowSums<Acc>& sums) {
    const auto& axis = plan.call.geometry.w;
    for (int64_t w = plan.own_w.begin; w < plan.own_w.end; ++w) {
      const auto over = plan.call.w.over[w];
      for (int64_t wo = max_of(over.begin, plan.need_w.begin); wo < min_of(over.end, plan.need_w.end); ++wo) {
        if (!axis.holds(wo, w)) continue;
        for (int64_t c = 0; c < plan.channels; c += lanes) {
          const int count = count_of(plan, c);
          const int64_t i = plan.sum_index(wo, c);
          const V part = exact_gradient<Acc>(load_some(x + w * plan.call.x_stride[4] + c, count), load(sums[2] + i),
                                             load(sums[0] + i), load(sums[1] + i), load(plan.beta + c),
                                             load(plan.scale + c));
          Acc* to = plan.line + (w - plan.own_w.begin) * plan.channels + c;
          store_part(to, load(to) + part, count);
        }
      }
    }
  }

 private:
  static int count_of(const Plan<T, Acc>& plan, int64_t c) {
    return static_cast<int>(min_of(plan.channels - c, int64_t{lanes}));
  }

  const Plan<T, Acc>& plan_;
  const Range<int64_t> window_;
  const int64_t c_;
};

// Contiguous, wide: lanes are taps of one window.
template <class T, class Acc>
class TapsOfOne {
  using V = typename Vec<Acc>::type;
  using I = typename Vec<Acc>::ints;
  static constexpr int lanes = Vec<Acc>::lanes;

 public:
  static constexpr int64_t width = 1;
  static int64_t output(int64_t wo, int) { return wo; }
  static int64_t channel(int64_t, int) { return 0; }

  TapsOfOne(const Plan<T, Acc>& plan, int64_t wo, int64_t)
      : plan_(plan), window_(plan.call.geometry.w.window(wo)) {}

  int count() const { return 1; }
  int64_t taps() const { return (window_.end - window_.begin) / lanes; }
  V beta() const { return splat<V>(*plan_.beta); }
  V scale() const { return splat<V>(*plan_.scale); }

  template <class F>
  SOFTPOOL_INLINE void visit(const T* row, const F& f) const {
    for (int64_t w = window_.begin; w < window_.end; w += lanes) {
      const int n = static_cast<int>(min_of(window_.end - w, int64_t{lanes}));
      I there{};
      for (int l = 0; l < n; ++l) there[l] = -1;
      f(load_some(row + w, n), there);
    }
  }

  SOFTPOOL_INLINE static void join_extents(V& lo, V& hi) {
    Acc top = hi[0], bottom = lo[0];
    for (int l = 1; l < lanes; ++l) top = max_of<Acc>(top, hi[l]), bottom = min_of<Acc>(bottom, lo[l]);
    hi = splat<V>(top), lo = splat<V>(bottom);
  }
  SOFTPOOL_INLINE static void join_sums(V (&sums)[3]) {
    for (V& sum : sums) sum[0] = sum_of_lanes(sum);  // the only lane that is looked at
  }

  static void add_gradient(const Plan<T, Acc>& plan, const T* x, const RowSums<Acc>& sums) {
    const V beta = splat<V>(*plan.beta), scale = splat<V>(*plan.scale);
    for (int64_t wo = plan.need_w.begin; wo < plan.need_w.end; ++wo) {
      const auto window = plan.call.geometry.w.window(wo);
      const int64_t i = plan.sum_index(wo, 0), end = min_of(window.end, plan.own_w.end);
      for (int64_t w = max_of(window.begin, plan.own_w.begin); w < end; w += lanes) {
        const int count = static_cast<int>(min_of(end - w, int64_t{lanes}));
        const V part = exact_gradient<Acc>(load_some(x + w, count), splat<V>(sums[2][i]), splat<V>(sums[0][i]),
                                           splat<V>(sums[1][i]), beta, scale);
        Acc* to = plan.line + (w - plan.own_w.begin);
        store_part(to, load(to) + part, count);
      }
    }
  }

 private:
  const Plan<T, Acc>& plan_;
  const Range<int64_t> window_;
};

// Contiguous, other windows: lanes are windows next to each other.
template <class T, class Acc>
class SideBySide {
  using V = typename Vec<Acc>::type;
  using I = typename Vec<Acc>::ints;
  static constexpr int lanes = Vec<Acc>::lanes;

 public:
  static constexpr int64_t width = lanes;
  static int64_t output(int64_t wo, int lane) { return wo + lane; }
  static int64_t channel(int64_t, int) { return 0; }

  SideBySide(const Plan<T, Acc>& plan, int64_t wo, int64_t)
      : plan_(plan), wo_(wo), count_(static_cast<int>(min_of(plan.need_w.end - wo, width))) {}

  int count() const { return count_; }
  int64_t taps() const { return plan_.call.geometry.w.kernel; }
  V beta() const { return splat<V>(*plan_.beta); }
  V scale() const { return splat<V>(*plan_.scale); }

  template <class F>
  SOFTPOOL_INLINE void visit(const T* row, const F& f) const {
    for (int64_t k = 0; k < plan_.call.geometry.w.kernel; ++k) {
      V x;
      const I there = tap(row, k, x);
      f(x, there);
    }
  }

  static void join_extents(V&, V&) {}
  static void join_sums(V (&)[3]) {}

  static void add_gradient(const Plan<T, Acc>& plan, const T* x, const RowSums<Acc>& sums) {
    for (int64_t wo = plan.need_w.begin; wo < plan.need_w.end; wo += lanes) {
      const SideBySide windows(plan, wo, 0);
      const V beta = windows.beta(), scale = windows.scale();
      const int64_t i = plan.sum_index(wo, 0);
      for (int64_t k = 0; k < plan.call.geometry.w.kernel; ++k) {
        V at;
        const I there = windows.tap(x, k, at);
        const V part =
            exact_gradient<Acc>(at, load(sums[2] + i), load(sums[0] + i), load(sums[1] + i), beta, scale);
        for (int l = 0; l < windows.count(); ++l) {
          const int64_t w = windows.position(l, k);
          if (there[l] && w >= plan.own_w.begin && w < plan.own_w.end) plan.line[w - plan.own_w.begin] += part[l];
        }
      }
    }
  }

 private:
  int64_t position(int lane, int64_t k) const {
    const auto& axis = plan_.call.geometry.w;
    return (wo_ + lane) * axis.stride - axis.padding + k * axis.dilation;
  }

  // Tap k of each window; returns the lanes that lie inside the input.
  SOFTPOOL_INLINE I tap(const T* row, int64_t k, V& x) const {
    x = V{};
    I there{};
    for (int l = 0; l < count_; ++l) {
      const int64_t w = position(l, k);
      if (w < 0 || w >= plan_.call.geometry.w.size) continue;
      x[l] = load_one(row + w);
      there[l] = -1;
    }
    return there;
  }

  const Plan<T, Acc>& plan_;
  const int64_t wo_;
  const int count_;
};

}  // namespace SOFTPOOL_LEVEL
}  // namespace softpool3d
