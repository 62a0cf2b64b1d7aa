// Rows read as numbers: summed column by column, then along W to windows. In a contiguous tensor a row is W numbers of
// one channel; in channels_last, with `in_rows`, it is W times all channels.

#pragma once

#include "cpu_along.h"
#include "cpu_gradient.h"
#include "cpu_plan.h"

namespace softpool3d {
namespace SOFTPOOL_LEVEL {

template <class T, class Acc>
class Columns {
  using V = typename Vec<Acc>::type;
  static constexpr int lanes = Vec<Acc>::lanes;

 public:
  explicit Columns(const Plan<T, Acc>& plan) : plan_(plan), in_place_(plan.column_pitch == 0) {}

  // Sums the columns of n rows of inputs, up to four at a time, for row i of a batch: to where it belongs if windows
  // are columns themselves, else for gather().
  template <int kSums>
  SOFTPOOL_APART void sum(int64_t n, int64_t i) {
    Acc* to[kSums];
    for (int s = 0; s < kSums; ++s)
      to[s] = in_place_ ? plan_.target(s, i)
                        : plan_.columns_of(plan_.column, s, i) +
                              (plan_.columns.begin - plan_.first_column) * plan_.inner;
    Largest<Acc> largest;
    if (n == 0) add_rows<0>(plan_.inputs, true, to, largest);
    for (int64_t r = 0; r < n;) {
      const bool first = r == 0;
      const T* const* rows = plan_.inputs + r;
      if (n - r >= 4) add_rows<4>(rows, first, to, largest), r += 4;
      else if (n - r == 3) add_rows<3>(rows, first, to, largest), r += 3;
      else if (n - r == 2) add_rows<2>(rows, first, to, largest), r += 2;
      else add_rows<1>(rows, first, to, largest), r += 1;
    }
    if (!in_place_) store(to[0] + plan_.columns.size() * plan_.inner, V{});  // load_part's zeros got weights of 1
    largest_[i] = largest;
  }

  // Sums the columns of `rows` rows along W.
  SOFTPOOL_APART void gather(int64_t rows) const {
    if (in_place_) return;
    const int sums = plan_.sums();
    with_along(plan_, [&](auto along) SOFTPOOL_LAMBDA {
      for (int64_t i = 0; i < rows; ++i)
        for (int s = 0; s < sums; ++s)
          along.gather(plan_, plan_.columns_of(plan_.column, s, i), plan_.target(s, i));
    });
  }

  // The largest |x| of row i, in shares of what weights bear without a maximum.
  Acc share_of_limit(int64_t i) const { return largest_[i].value() * *plan_.inverse_limit; }

  // Prepares gradient(..., i, ...): u and v of good windows, summed over T and H, are spread to the inputs they hold.
  SOFTPOOL_APART void spread(const RowSums<Acc>& uv, int64_t i) {
    for (int s = 0; s < 2; ++s) ab_[i][s] = uv[s];
    if (in_place_) return;
    with_along(plan_, [&](auto along) {
      for (int s = 0; s < 2; ++s) {
        Acc* to = plan_.columns_of(plan_.coefficient, s, i);
        along.spread(plan_, uv[s], to);
        ab_[i][s] = to + (plan_.own_w.begin - plan_.first_column) * plan_.inner;
      }
    });
  }

  template <class To>
  SOFTPOOL_APART void gradient(const T* x, int64_t i, To* dx, int64_t) const {
    const Acc *a_at = ab_[i][0], *b_at = ab_[i][1];
    gradient_of_numbers(plan_, x + plan_.own_w.begin * plan_.inner, plan_.own_w.size() * plan_.inner, dx,
                        [a_at, b_at](int64_t k, V& a, V& b) SOFTPOOL_LAMBDA {
                          a = load(a_at + k);
                          b = load(b_at + k);
                        });
  }

 private:
  template <int rows, int kSums>
  SOFTPOOL_INLINE void add_rows(const T* const* row, bool first, Acc* const (&to)[kSums],
                                Largest<Acc>& largest) const {
    const V scale = splat<V>(*plan_.scale);
    const int64_t begin = plan_.columns.begin * plan_.inner, size = plan_.columns.size() * plan_.inner;
    const T* from[rows > 0 ? rows : 1];
    for (int r = 0; r < rows; ++r) from[r] = row[r] + begin;
    const auto step = [&](int64_t i, auto load_x) SOFTPOOL_LAMBDA {
      Moments<Acc, kSums> sum;
      if (!first)
        for (int s = 0; s < kSums; ++s) sum.of[s] = load(to[s] + i);
      for (int r = 0; r < rows; ++r) {
        const T* p = from[r] + i;
        prefetch(p);
        const V x = load_x(p);
        largest.add(x);
        sum.add(x, scale);
      }
      for (int s = 0; s < kSums; ++s) store(to[s] + i, sum.of[s]);
    };
    int64_t i = 0;
    for (; i + lanes <= size; i += lanes) step(i, [](const T* p) SOFTPOOL_LAMBDA { return load(p); });
    const int rest = static_cast<int>(size - i);
    if (rest > 0) step(i, [rest](const T* p) SOFTPOOL_LAMBDA { return load_part(p, rest); });
  }

  const Plan<T, Acc>& plan_;
  const bool in_place_;
  Largest<Acc> largest_[Plan<T, Acc>::kMostRows];
  const Acc* ab_[Plan<T, Acc>::kMostRows][2];
};

}  // namespace SOFTPOOL_LEVEL
}  // namespace softpool3d
