// From columns to windows along W, and from windows back to the columns they hold: a type for each way in which windows
// lie, with
//
//     gather    out[o] = sum of column[o stride + tap dilation] over the taps
//     spread    its transpose: column[o stride + tap dilation] = sum of row[o]. The row has zeros before it, and after
//               it up to the end of the next vector.

#pragma once

#include "cpu_plan.h"

namespace softpool3d {
namespace SOFTPOOL_LEVEL {

// row[at...], zero from n on.
template <class Acc>
SOFTPOOL_INLINE typename Vec<Acc>::type load_before(const Acc* row, int64_t at, int64_t n) {
  return at < n ? load(row + at) : typename Vec<Acc>::type{};
}

// Single numbers at any stride.
struct Strided {
  template <class T, class Acc>
  static void gather(const Plan<T, Acc>& plan, const Acc* column, Acc* out) {
    const Axis<int64_t> w = plan.call.geometry.w;
    const int64_t n = plan.need_w.size();
    for (int64_t o = 0; o < n; ++o) {
      Acc sum = 0;
      for (int64_t k = 0; k < w.kernel; ++k) sum += column[o * w.stride + k * w.dilation];
      out[o] = sum;
    }
  }

  template <class T, class Acc>
  static void spread(const Plan<T, Acc>& plan, const Acc* row, Acc* column) {
    const Axis<int64_t> w = plan.call.geometry.w;
    fill_zeros(column, plan.column_pitch);
    const int64_t n = plan.need_w.size();
    for (int64_t o = 0; o < n; ++o)
      for (int64_t k = 0; k < w.kernel; ++k) column[o * w.stride + k * w.dilation] += row[o];
  }
};

// Single numbers at stride 1.
struct Unit {
  template <class T, class Acc>
  static void gather(const Plan<T, Acc>& plan, const Acc* column, Acc* out) {
    const Axis<int64_t> w = plan.call.geometry.w;
    const int64_t n = plan.need_w.size();
    for (int64_t o = 0; o < n; o += Vec<Acc>::lanes) {
      typename Vec<Acc>::type sum{};
      for (int64_t k = 0; k < w.kernel; ++k) sum += load(column + o + k * w.dilation);
      store(out + o, sum);
    }
  }

  template <class T, class Acc>
  static void spread(const Plan<T, Acc>& plan, const Acc* row, Acc* column) {
    const Axis<int64_t> w = plan.call.geometry.w;
    const int64_t n = plan.need_w.size(), size = plan.own_w.end - plan.first_column;
    const int64_t held = min_of(size, n + (w.kernel - 1) * w.dilation);
    int64_t j = 0;
    for (; j < held; j += Vec<Acc>::lanes) {
      typename Vec<Acc>::type sum{};
      for (int64_t k = 0; k < w.kernel; ++k) sum += load_before(row, j - k * w.dilation, n);
      store(column + j, sum);
    }
    fill_zeros(column + j, size - j);
  }
};

// Single numbers at stride 2.
struct Pairs {
  template <class T, class Acc>
  static void gather(const Plan<T, Acc>& plan, const Acc* column, Acc* out) {
    constexpr int lanes = Vec<Acc>::lanes;
    const Axis<int64_t> w = plan.call.geometry.w;
    const int64_t n = plan.need_w.size();
    for (int64_t o = 0; o < n; o += lanes) {
      typename Vec<Acc>::type sum{};
      for (int64_t k = 0; k < w.kernel; ++k) {
        const Acc* from = column + o * 2 + k * w.dilation;
        sum += even_lanes(load(from), load(from + lanes), std::make_integer_sequence<int, lanes>());
      }
      store(out + o, sum);
    }
  }

  template <class T, class Acc>
  static void spread(const Plan<T, Acc>& plan, const Acc* row, Acc* column) {
    using V = typename Vec<Acc>::type;
    constexpr int lanes = Vec<Acc>::lanes;
    const Axis<int64_t> w = plan.call.geometry.w;
    if (w.dilation != 1) return Strided::spread(plan, row, column);
    // Column 2 m is tap 0 of window m, tap 2 of window m - 1, ...; column 2 m + 1 its tap 1, 3, ...
    const int64_t n = plan.need_w.size(), size = plan.own_w.end - plan.first_column;
    const int64_t held = min_of(size, 2 * n + w.kernel);
    int64_t j = 0;
    for (; j < held; j += 2 * lanes) {
      V even{}, odd{};
      for (int64_t k = 0; k < w.kernel; k += 2) {
        const V v = load_before(row, (j - k) / 2, n);
        even += v;
        if (k + 1 < w.kernel) odd += v;
      }
      store(column + j, interleave(even, odd, 0, std::make_integer_sequence<int, lanes>()));
      store(column + j + lanes, interleave(even, odd, 1, std::make_integer_sequence<int, lanes>()));
    }
    fill_zeros(column + j, size - j);
  }
};

// All channels at each position. What a last vector writes beyond its position is overwritten by the next position, or
// lies after the row.
struct Joined {
  template <class T, class Acc>
  static void gather(const Plan<T, Acc>& plan, const Acc* column, Acc* out) {
    const Axis<int64_t> w = plan.call.geometry.w;
    const int64_t n = plan.need_w.size(), inner = plan.inner;
    for (int64_t o = 0; o < n; ++o)
      for (int64_t c = 0; c < inner; c += Vec<Acc>::lanes) {
        typename Vec<Acc>::type sum{};
        const Acc* from = column + o * w.stride * inner + c;
        for (int64_t k = 0; k < w.kernel; ++k, from += w.dilation * inner) sum += load(from);
        store(out + o * inner + c, sum);
      }
  }

  template <class T, class Acc>
  static void spread(const Plan<T, Acc>& plan, const Acc* row, Acc* column) {
    const Axis<int64_t> w = plan.call.geometry.w;
    const int64_t inner = plan.inner;
    for (int64_t i = plan.own_w.begin; i < plan.own_w.end; ++i) {
      const auto over = plan.call.w.over[i];
      const int64_t first = max_of(over.begin, plan.need_w.begin), end = min_of(over.end, plan.need_w.end);
      for (int64_t c = 0; c < inner; c += Vec<Acc>::lanes) {
        typename Vec<Acc>::type sum{};
        for (int64_t wo = first; wo < end; ++wo)
          if (w.holds(wo, i)) sum += load(row + (wo - plan.need_w.begin) * inner + c);
        store(column + (i - plan.first_column) * inner + c, sum);
      }
    }
  }
};

// Calls f with the type that says how the plan's windows lie.
template <class T, class Acc, class F>
SOFTPOOL_INLINE void with_along(const Plan<T, Acc>& plan, const F& f) {
  const int64_t stride = plan.call.geometry.w.stride;
  if (plan.inner > 1) f(Joined());
  else if (stride == 1) f(Unit());
  else if (stride == 2) f(Pairs());
  else f(Strided());
}

}  // namespace SOFTPOOL_LEVEL
}  // namespace softpool3d
