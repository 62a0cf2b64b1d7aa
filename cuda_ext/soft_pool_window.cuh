// The windows of the CUDA kernels: classes that read the values of one window, or of V side by side, and write their
// gradients.
//
// A window class has any(), each(f) with f(the values of its windows at a tap, widened), and these constants:
//
//     kTaps          how many taps there are, if it has read them all into registers; else 0
//     kPadded        much of it may lie outside the input, where each() gives -inf
//
// Kind::Window is the one for a `Kind` of windows. Kernels for any kind use besides:
//
//     Kind::blocks(V)    for __launch_bounds__: how many blocks a multiprocessor shall hold at least; 0 leaves it open
//     kInner             how many inner elements lie from one thread to the next
//     betas(pool, at)    of the V windows
//     output(pool, at)   where their outputs lie
//     has_output(...)    false for an incomplete window at the end of an axis
//     write(...)         the gradient of all positions: gradient(tap, v, x) at a tap of the v-th window, where it holds
//                        x. `whole` is a type that says whether all of them are known to lie inside the input

#pragma once

#include "soft_pool_index.cuh"

namespace softpool3d::cuda {

// --- V windows over an inner dimension ------------------------------------------------------------------------------

// The position inside the input that is nearest to `i`. What lies there is read in place of what lies outside, so that
// loads need no branch.
template <class Index>
__device__ __forceinline__ Index nearest(Index i, const Axis<Index>& axis) {
  return min_of(max_of(i, Index(0)), axis.size - 1);
}

// What such windows share.
template <class T, class Index, int V>
struct OverInner {
  static constexpr int kInner = V;

  __device__ __forceinline__ static auto betas(const Pool<T, Index>& pool, const Place<Index>& at) {
    return lanes_of<V>([&](int v) { return pool.beta_at(at, v); });
  }
  __device__ __forceinline__ static int64_t output(const Pool<T, Index>& pool, const Place<Index>& at) {
    return pool.output(at);
  }
  __device__ __forceinline__ static bool has_output(const Pool<T, Index>& pool, const Place<Index>& at) {
    return at.t < pool.axes.t.out && at.h < pool.axes.h.out && at.w < pool.axes.w.out;
  }

  // Writes the gradients at one tap.
  template <class Gradient>
  __device__ __forceinline__ static void write_tap(T* to, const Gradient& gradient, int tap,
                                                   const Lanes<AccOf<T>, V>& values) {
    Vec<T, V> result;
#pragma unroll
    for (int v = 0; v < V; ++v) result.of[v] = static_cast<T>(gradient(tap, v, values[v]));
    store<V>(to, result);
  }
};

// A window whose size the compiler knows, without dilation: read once into registers. What lies outside the input is
// read as -inf, which weighs nothing. Such a window is never empty, since padding is at most half of it.
template <int KT, int KH, int KW>
struct Fixed {
  // Told 2, the compiler takes the registers it needs; left to itself, it takes fewer, which suits short kernels, but
  // makes long ones keep values in memory. Nine vectors fit into a third of the registers if it is told so.
  static constexpr int blocks(int V) { return V > 1 && KT * KH * KW == 9 ? 3 : 0; }

  template <class T, class Index, int V>
  class Window : public OverInner<T, Index, V> {
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

    template <class Gradient, bool whole>
    __device__ __forceinline__ void write(T* plane, const Strides<Index>& strides, const Gradient& gradient,
                                          std::bool_constant<whole>) const {
      visit([&](int tap, Index t, Index h, Index w) {
        if (whole || inside(t, h, w))
          this->write_tap(plane + strides.in_plane(t, h, w), gradient, tap, widen(values_[tap]));
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
  class Window : public OverInner<T, Index, V> {
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

    template <class Gradient>
    __device__ __forceinline__ void write(T* plane, const Strides<Index>& strides, const Gradient& gradient,
                                          std::false_type) const {
      for (Index t = t_.begin; t < t_.end; t += t_.step)
        for (Index h = h_.begin; h < h_.end; h += h_.step)
          for (Index w = w_.begin; w < w_.end; w += w_.step)
            this->write_tap(plane + strides.in_plane(t, h, w), gradient, 0,
                            widen(load<V>(x_ + strides_.in_plane(t, h, w))));
    }

   private:
    const T* const x_;
    const Strides<Index>& strides_;
    const Range<Index> t_, h_, w_;
  };
};

// --- V windows side by side along a contiguous row ------------------------------------------------------------------

// As many as 16 bytes of T hold, from one load of each row. Needs rows of whole 16 bytes, and windows that lie side by
// side along w.
template <int KT, int KH, int KW>
struct Rows {
  template <class T>
  static constexpr int kWindows = 16 / sizeof(T) / KW;

  static constexpr int blocks(int) { return 0; }

  template <class T, class Index, int V>
  class Window {
    static constexpr int kWide = V * KW, kRows = KT * KH;
    static_assert(V == kWindows<T>);

   public:
    static constexpr int kTaps = kRows * KW, kInner = 1;
    static constexpr bool kPadded = false;

    __device__ __forceinline__ static auto betas(const Pool<T, Index>& pool, const Place<Index>& at) {
      const AccOf<T> of_all = pool.beta_at(at, 0);
      return lanes_of<V>([&](int) { return of_all; });
    }
    __device__ __forceinline__ static int64_t output(const Pool<T, Index>& pool, const Place<Index>& at) {
      return pool.output.plane(at) + pool.output.in_plane(at.t, at.h, at.w * V);
    }
    __device__ __forceinline__ static bool has_output(const Pool<T, Index>& pool, const Place<Index>& at) {
      return at.t < pool.axes.t.out && at.h < pool.axes.h.out;
    }

    __device__ __forceinline__ Window(const T* x, const Pool<T, Index>& pool, const Place<Index>& at)
        : axes_(pool.axes),
          t_(at.t * axes_.t.stride - axes_.t.padding),
          h_(at.h * axes_.h.stride - axes_.h.padding),
          w_(at.w * kWide) {
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        const Index t = t_ + row / KH, h = h_ + row % KH;
        const Index offset = pool.input.in_plane(nearest(t, axes_.t), nearest(h, axes_.h), w_);
        wide_[row] = if_inside(inside(t, h), load<kWide>(x + offset));
      }
    }

    __device__ __forceinline__ bool any() const { return true; }

    template <class F>
    __device__ __forceinline__ void each(F f) const {
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        const auto wide = widen(wide_[row]);
#pragma unroll
        for (int k = 0; k < KW; ++k) f(lanes_of<V>([&](int v) { return wide[v * KW + k]; }));
      }
    }

    template <class Gradient, bool whole>
    __device__ __forceinline__ void write(T* plane, const Strides<Index>& strides, const Gradient& gradient,
                                          std::bool_constant<whole>) const {
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        const Index t = t_ + row / KH, h = h_ + row % KH;
        if (!whole && !inside(t, h)) continue;
        const auto values = widen(wide_[row]);
        Vec<T, kWide> result;
#pragma unroll
        for (int e = 0; e < kWide; ++e)
          result.of[e] = static_cast<T>(gradient(row * KW + e % KW, e / KW, values[e]));
        store<kWide>(plane + strides.in_plane(t, h, w_), result);
      }
    }

   private:
    __device__ __forceinline__ bool inside(Index t, Index h) const {
      return t >= 0 && t < axes_.t.size && h >= 0 && h < axes_.h.size;
    }

    const Geometry<Index>& axes_;
    const Index t_, h_, w_;
    Vec<T, kWide> wide_[kRows];
  };
};

}  // namespace softpool3d::cuda
