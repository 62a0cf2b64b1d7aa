// Contiguous rows whose windows along W are wider than vectors: each window is summed by itself.

#pragma once

#include "cpu_gradient.h"
#include "cpu_plan.h"

namespace softpool3d {
namespace SOFTPOOL_LEVEL {

// A batch is one row.
template <class T, class Acc>
class Wide {
  using V = typename Vec<Acc>::type;
  static constexpr int lanes = Vec<Acc>::lanes;

 public:
  explicit Wide(const Plan<T, Acc>& plan) : plan_(plan) {}

  // Sums the windows of n rows of inputs.
  template <int kSums>
  SOFTPOOL_APART void sum(int64_t n, int64_t i) {
    Largest<Acc> largest;
    for (int64_t wo = plan_.need_w.begin; wo < plan_.need_w.end; ++wo) {
      const auto window = plan_.call.geometry.w.window(wo);
      Acc total[kSums] = {};
      for (int64_t r = 0; r < n; ++r) {
        // In parts of some thousand numbers, so that rounding errors do not add up.
        constexpr int64_t kPart = 2 * 256 * lanes;
        for (int64_t part = window.begin; part < window.end; part += kPart)
          add_part(plan_.inputs[r], part, min_of(part + kPart, window.end), total, largest);
      }
      for (int s = 0; s < kSums; ++s) plan_.target(s, i)[wo - plan_.need_w.begin] = total[s];
    }
    largest_ = largest;
  }

  void gather(int64_t) const {}

  Acc share_of_limit(int64_t) const { return largest_.value() * *plan_.inverse_limit; }

  void spread(const RowSums<Acc>& uv, int64_t) { uv_ = uv; }

  // Goes by stretches of the row that lie in the same windows.
  template <class To>
  SOFTPOOL_APART void gradient(const T* x, int64_t, To* dx, int64_t) const {
    const auto& axis = plan_.call.geometry.w;
    const Span own = plan_.own_w;
    for (int64_t w = own.begin; w < own.end;) {
      const auto over = axis.windows_over(w);
      int64_t end = own.end;
      if (over.begin < over.end) end = min_of(end, axis.window(over.begin).end);
      if (over.end < axis.out) end = min_of(end, axis.window(over.end).begin);
      Acc a = 0, b = 0;
      for (int64_t wo = over.begin; wo < over.end; ++wo)
        a += uv_[0][wo - plan_.need_w.begin], b += uv_[1][wo - plan_.need_w.begin];
      if (over.begin >= over.end)
        store_zeros<Acc>(dx + (w - own.begin), end - w);
      else
        gradient_of_numbers(plan_, x + w, end - w, dx + (w - own.begin), [&](int64_t, V& va, V& vb) SOFTPOOL_LAMBDA {
          va = splat<V>(a);
          vb = splat<V>(b);
        });
      w = end;
    }
  }

 private:
  // Adds the numbers from `begin` to `end` of a row to a window's sums.
  template <int kSums>
  SOFTPOOL_INLINE void add_part(const T* x_row, int64_t begin, int64_t end, Acc (&total)[kSums],
                                Largest<Acc>& largest) const {
    const V scale = splat<V>(*plan_.scale);
    Moments<Acc, kSums> sum, odd;
    const auto step = [&](int64_t i, Moments<Acc, kSums>& into) SOFTPOOL_LAMBDA {
      prefetch(x_row + i);
      const V x = load(x_row + i);
      largest.add(x);
      into.add(x, scale);
    };
    int64_t i = begin;
    for (; i + 2 * lanes <= end; i += 2 * lanes) step(i, sum), step(i + lanes, odd);
    for (; i + lanes <= end; i += lanes) step(i, sum);
    sum.add(odd);
    for (int s = 0; s < kSums; ++s) total[s] += sum_of_lanes(sum.of[s]);
    if (i >= end) return;
    const int rest = static_cast<int>(end - i);
    const V x = load_part(x_row + i, rest);
    largest.add(x);
    Moments<Acc, kSums> tail;
    tail.add(x, scale);
    for (int s = 0; s < kSums; ++s)
      for (int l = 0; l < rest; ++l) total[s] += tail.of[s][l];
  }

  const Plan<T, Acc>& plan_;
  Largest<Acc> largest_;
  RowSums<Acc> uv_;
};

}  // namespace SOFTPOOL_LEVEL
}  // namespace softpool3d
