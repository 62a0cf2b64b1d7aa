// The windows of the CUDA kernels: classes that read the values of one window, or of V side by side.
//
// A window class has any(), each(f) with f(the values of its windows at a tap, widened), and these constants:
//
//     kTaps          how many taps there are, if it has read them all into registers; else 0
//     kPadded        much of it may lie outside the input, where each() gives -inf

#pragma once

#include "soft_pool_index.cuh"

namespace softpool3d::cuda {

// --- one window's values ---------------------------------------------------------------------------------------------

// The position inside the input that is nearest to `i`. What lies there is read in place of what lies outside, so that
// loads need no branch.
template <class Index>
__device__ __forceinline__ Index nearest(Index i, const Axis<Index>& axis) {
  return min_of(max_of(i, Index(0)), axis.size - 1);
}

// A window whose size the compiler knows, without dilation: read once into registers. What lies outside the input is
// read as -inf, which weighs nothing. Such a window is never empty, since padding is at most half of it.
template <int KT, int KH, int KW>
struct Fixed {
  // For __launch_bounds__: how many blocks a multiprocessor shall hold at least. Told 2, the compiler takes the
  // registers it needs; left to itself (0), it takes fewer, which suits short kernels, but makes long ones keep values
  // in memory. Nine vectors fit into a third of the registers if it is told so.
  static constexpr int blocks(int V) { return V > 1 && KT * KH * KW == 9 ? 3 : 0; }

  template <class T, class Index, int V>
  class Window {
   public:
    static constexpr int kTaps = KT * KH * KW;
    static constexpr bool kPadded = KT == 3 || KH == 3 || KW == 3;

    __device__ __forceinline__ Window(const T* x, const Pool<T, Index>& pool, const Place<Index>& at)
        : axes_(pool.axes),
          t_(at.t * axes_.t.stride - axes_.t.padding),
          h_(at.h * axes_.h.stride - axes_.h.padding),
          w_(at.w * axes_.w.stride - axes_.w.padding) {
      visit([&](int tap, Index t, Index h, Index w) {
        const Index offset = pool.input.in_plane(nearest(t, axes_.t), nearest(h, axes_.h), nearest(w, axes_.w));
        values_[tap] = if_inside(inside(t, h, w), load<V>(x + offset));
      });
    }

    __device__ __forceinline__ bool any() const { return true; }

    // f(values) of each position
    template <class F>
    __device__ __forceinline__ void each(F f) const {
#pragma unroll
      for (int tap = 0; tap < KT * KH * KW; ++tap) f(widen(values_[tap]));
    }

    // f(tap, t, h, w, values) of each position inside the input; `whole`: they all are
    template <class F, bool whole>
    __device__ __forceinline__ void each_place(F f, std::bool_constant<whole>) const {
      visit([&](int tap, Index t, Index h, Index w) {
        if (whole || inside(t, h, w)) f(tap, t, h, w, widen(values_[tap]));
      });
    }

   private:
    template <class F>
    __device__ __forceinline__ void visit(F f) const {
#pragma unroll
      for (int tap = 0; tap < KT * KH * KW; ++tap)
        f(tap, t_ + tap / (KH * KW), h_ + tap / KW % KH, w_ + tap % KW);
    }

    __device__ __forceinline__ bool inside(Index t, Index h, Index w) const {
      return t >= 0 && t < axes_.t.size && h >= 0 && h < axes_.h.size && w >= 0 && w < axes_.w.size;
    }

    const Geometry<Index>& axes_;
    const Index t_, h_, w_;
    Vec<T, V> values_[KT * KH * KW];
  };
};

// Any other window: read for each pass, the second time from the L1 cache.
struct Any {
  static constexpr int blocks(int) { return 2; }

  template <class T, class Index, int V>
  class Window {
   public:
    static constexpr int kTaps = 0;
    static constexpr bool kPadded = true;

    __device__ __forceinline__ Window(const T* x, const Pool<T, Index>& pool, const Place<Index>& at)
        : x_(x),
          strides_(pool.input),
          t_(pool.axes.t.window(at.t)),
          h_(pool.axes.h.window(at.h)),
          w_(pool.axes.w.window(at.w)) {}

    __device__ __forceinline__ bool any() const { return t_.begin < t_.end && h_.begin < h_.end && w_.begin < w_.end; }

    template <class F>
    __device__ __forceinline__ void each(F f) const {
      for (Index t = t_.begin; t < t_.end; t += t_.step)
        for (Index h = h_.begin; h < h_.end; h += h_.step)
          for (Index w = w_.begin; w < w_.end; w += w_.step) f(widen(load<V>(x_ + strides_.in_plane(t, h, w))));
    }

    template <class F>
    __device__ __forceinline__ void each_place(F f, std::false_type) const {
      for (Index t = t_.begin; t < t_.end; t += t_.step)
        for (Index h = h_.begin; h < h_.end; h += h_.step)
          for (Index w = w_.begin; w < w_.end; w += w_.step)
            f(0, t, h, w, widen(load<V>(x_ + strides_.in_plane(t, h, w))));
    }

   private:
    const T* const x_;
    const Strides<Index>& strides_;
    const Range<Index> t_, h_, w_;
  };
};

// The values of V = (16 bytes of T) / KW windows next to each other along w, from one load of 16 bytes of each row.
// Needs rows of whole 16 bytes, and windows that lie side by side along w.
template <class T, int KT, int KH, int KW>
class Rows {
 public:
  static constexpr int kWide = 16 / sizeof(T), kWindows = kWide / KW, kRows = KT * KH;
  static constexpr int kTaps = kRows * KW;
  static constexpr bool kPadded = false;
  static_assert(kWide % KW == 0);

  __device__ __forceinline__ Rows(const T* x, const Pool<T, int32_t>& pool, const Place<int32_t>& at)
      : axes_(pool.axes),
        t_(at.t * axes_.t.stride - axes_.t.padding),
        h_(at.h * axes_.h.stride - axes_.h.padding) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const int32_t t = t_ + row / KH, h = h_ + row % KH;
      const int32_t offset = pool.input.in_plane(nearest(t, axes_.t), nearest(h, axes_.h), at.w * kWide);
      wide_[row] = if_inside(inside(t, h), load<kWide>(x + offset));
    }
  }

  // As a window for sums_of: the values of all windows at the same tap.
  __device__ __forceinline__ bool any() const { return true; }

  template <class F>
  __device__ __forceinline__ void each(F f) const {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const auto wide = widen(wide_[row]);
#pragma unroll
      for (int k = 0; k < KW; ++k) f(lanes_of<kWindows>([&](int v) { return wide[v * KW + k]; }));
    }
  }

  // f(row, t, h, values) of each row inside the input; its values are those of taps row * KW and on
  template <class F, bool whole>
  __device__ __forceinline__ void each_row(F f, std::bool_constant<whole>) const {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const int32_t t = t_ + row / KH, h = h_ + row % KH;
      if (whole || inside(t, h)) f(row, t, h, widen(wide_[row]));
    }
  }

 private:
  __device__ __forceinline__ bool inside(int32_t t, int32_t h) const {
    return t >= 0 && t < axes_.t.size && h >= 0 && h < axes_.h.size;
  }

  const Geometry<int32_t>& axes_;
  const int32_t t_, h_;
  Vec<T, kWide> wide_[kRows];
};

}  // namespace softpool3d::cuda
