// Rows of outputs by the definition, with the maximum subtracted: those whose inputs leave the range in which weights
// need none. Vectors of windows where values are finite and not very large, else one by one with window.h.

#pragma once

#include "cpu_exact_windows.h"
#include "cpu_moments.h"

namespace softpool3d {
namespace SOFTPOOL_LEVEL {

// `Windows`: one of the types of cpu_exact_windows.h.
template <class T, class Acc, template <class, class> class Windows>
class Exact {
  using V = typename Vec<Acc>::type;
  using I = typename Vec<Acc>::ints;
  static constexpr int lanes = Vec<Acc>::lanes;

 public:
  explicit Exact(const Plan<T, Acc>& plan) : plan_(plan) {}

  SOFTPOOL_APART void forward(int64_t to, int64_t ho, T* y) const {
    each(to, ho, [&](const Results& of, int64_t wo, int64_t c, int count) SOFTPOOL_LAMBDA {
      store_part(y + plan_.y_index(wo, c), of.mean, count);
    });
  }

  // Leaves g / S, (y - pivot) / 2 and the pivot in `sums`, for add_gradient(). Adds to beta_grad, unless it is null.
  SOFTPOOL_APART void backward(int64_t to, int64_t ho, const T* g, const RowSums<Acc>& sums, double* beta_grad) const {
    each(to, ho, [&](const Results& of, int64_t wo, int64_t c, int count) SOFTPOOL_LAMBDA {
      const V gradient = load_some(g + plan_.y_index(wo, c), count);
      for (int l = 0; beta_grad && l < count; ++l) {
        const int64_t o = Windows<T, Acc>::output(wo, l);
        if (o >= plan_.tile.w.begin && o < plan_.tile.w.end)
          beta_grad[Windows<T, Acc>::channel(c, l)] += double(gradient[l]) * of.variance[l];
      }
      const int64_t i = plan_.sum_index(wo, c);
      store_part(sums[0] + i, gradient * of.inverse_sum, count);
      store_part(sums[1] + i, of.half_offset, count);
      store_part(sums[2] + i, of.pivot, count);
    });
  }

  // Adds to the plan's line what a row of outputs contributes to the gradient of the row of inputs x.
  SOFTPOOL_APART void add_gradient(const T* x, const RowSums<Acc>& sums) const {
    Windows<T, Acc>::add_gradient(plan_, x, sums);
  }

 private:
  struct Results {
    V mean, variance, pivot, inverse_sum, half_offset;
  };

  // Calls f(results, wo, channel, count) for the windows of a row of outputs, `count` neighbours in y at a time.
  template <class F>
  void each(int64_t to, int64_t ho, const F& f) const {
    const auto wt = plan_.call.geometry.t.window(to), wh = plan_.call.geometry.h.window(ho);
    const auto each_row = [&](const auto& visit) SOFTPOOL_LAMBDA {
      for (int64_t t = wt.begin; t < wt.end; t += wt.step)
        for (int64_t h = wh.begin; h < wh.end; h += wh.step) visit(plan_.x_row(t, h));
    };
    const int64_t rows = ceil_div(wt.end - wt.begin, wt.step) * ceil_div(wh.end - wh.begin, wh.step);
    for (int64_t wo = plan_.need_w.begin; wo < plan_.need_w.end; wo += Windows<T, Acc>::width)
      for (int64_t c = 0; c < plan_.channels; c += lanes) {
        const Windows<T, Acc> windows(plan_, wo, c);
        const auto each_tap = [&](const auto& visit) SOFTPOOL_LAMBDA {
          each_row([&](const T* row) SOFTPOOL_LAMBDA { windows.visit(row, visit); });
        };
        Results results{};
        // Long sums need double precision.
        if (rows * windows.taps() <= 4096 && vector_of(each_tap, windows.beta(), windows.scale(), results)) {
          f(results, wo, c, windows.count());
          continue;
        }
        for (int l = 0; l < windows.count(); ++l) {
          const int64_t o = Windows<T, Acc>::output(wo, l), channel = Windows<T, Acc>::channel(c, l);
          const auto window = plan_.call.geometry.w.window(o);
          const auto each_number = [&](const auto& visit) {
            each_row([&](const T* row) {
              for (int64_t w = window.begin; w < window.end; w += window.step)
                visit(load_one(row + w * plan_.call.x_stride[4] + channel));
            });
          };
          f(one_of(each_number, plan_.beta[channel]), o, channel, 1);
        }
      }
  }

  // Computes a vector of windows. each(f) calls f(x, there) for every tap; `there` are the lanes that have one. Returns
  // false if a value is infinite, NaN or very large.
  template <class Each>
  SOFTPOOL_INLINE static bool vector_of(const Each& each, V beta, V scale, Results& results) {
    V lo = splat<V>(Limits<Acc>::inf), hi = -lo;
    Largest<Acc> largest;
    each([&](V x, I there) SOFTPOOL_LAMBDA {
      hi = (there & (x > hi)) != 0 ? x : hi;
      lo = (there & (x < lo)) != 0 ? x : lo;
      largest.add(bit_cast<V>(there & bit_cast<I>(x)));
    });
    if (!(largest.value() <= Limits<Acc>::large)) return false;
    Windows<T, Acc>::join_extents(lo, hi);
    const V pivot = hi < lo ? V{} : beta >= 0 ? hi : lo;  // hi < lo: the window is empty
    Moments<Acc, 3> sum;
    each([&](V x, I there) SOFTPOOL_LAMBDA {
      const V distance = there != 0 ? x - pivot : V{};
      sum.add_weighted(there != 0 ? exp2_of_vector<Acc>(scale * distance) : V{}, distance);
    });
    Windows<T, Acc>::join_sums(sum.of);
    const V inverse = inverse_of<Acc>(sum.of[0]), offset = sum.of[1] * inverse;
    results = {pivot + offset, sum.of[2] * inverse - offset * offset, pivot, inverse, Acc(0.5) * offset};
    return true;
  }

  // The same for one window in double precision, whatever its values are.
  template <class Each>
  static Results one_of(const Each& each, Acc beta) {
    Extent<double> extent;
    each([&](double x) { extent.add(x); });
    Sums<double> sums(extent, beta);
    each([&](double x) { sums.add(x); });
    const Stats<double> stats = sums.stats();
    const auto of = [](double x) { return splat<V>(static_cast<Acc>(x)); };
    return {of(sums.mean()), of(sums.variance()), of(stats.pivot), of(stats.inverse_sum), of(stats.half_offset)};
  }

  const Plan<T, Acc>& plan_;
};

// Calls f with the Exact that reads the plan's windows.
template <class T, class Acc, class F>
SOFTPOOL_INLINE void with_exact(const Plan<T, Acc>& plan, const F& f) {
  if (plan.call.channels_last) f(Exact<T, Acc, ChannelsOfOne>(plan));
  else if (plan.reading == Reading::wide) f(Exact<T, Acc, TapsOfOne>(plan));
  else f(Exact<T, Acc, SideBySide>(plan));
}

}  // namespace SOFTPOOL_LEVEL
}  // namespace softpool3d
