// The CUDA kernels. The arithmetic of indices is in geometry.h, that of a window in window.h. This file says which
// thread computes what, and how memory is read and written.
//
// Nothing in this file needs a GPU's compiler beyond its keywords: tests/cuda_ext compiles it with g++ and a launch
// shim and runs it under sanitizers.
//
// A pool is seen as (n, c, t, h, w, inner): `inner` elements lie side by side at each position and share its windows.
// They are the channels of a channels_last_3d tensor (whose c is then 1), the positions of a contiguous tensor along
// axes that are not pooled, or just one element. A thread takes V of them: as many as 16 bytes hold, where layout and
// alignment allow it.

#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "geometry.h"
#include "window.h"

namespace softpool3d::cuda {

#ifdef __CUDACC__
#define SOFTPOOL_SHARED(name) extern __shared__ __align__(32) unsigned char name[]
constexpr int kThreads = 256, kWarp = 32, kMostLanes = 32, kBoxElements = 8192;
#endif

template <class T>
using AccOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T, int V>
struct alignas(sizeof(T) * V) Vec {
  T of[V];
};

// The built-in type of kBytes bytes: loading one of these is sure to be one instruction, loading a Vec is not.
template <int kBytes>
struct BitsOf;
template <>
struct BitsOf<2> {
  using Type = unsigned short;
};
template <>
struct BitsOf<4> {
  using Type = unsigned;
};
template <>
struct BitsOf<8> {
  using Type = uint2;
};
template <>
struct BitsOf<16> {
  using Type = uint4;
};

template <int V, class T>
__device__ __forceinline__ Vec<T, V> load(const T* from) {
  constexpr int kBytes = sizeof(T) * V, kPart = kBytes < 16 ? kBytes : 16;
  using Bits = typename BitsOf<kPart>::Type;
  Vec<T, V> values;
#pragma unroll
  for (int part = 0; part < kBytes / kPart; ++part) {
    const Bits bits = reinterpret_cast<const Bits*>(from)[part];
    memcpy(reinterpret_cast<char*>(&values) + part * kPart, &bits, kPart);
  }
  return values;
}

// Stores to global memory, by assembly: the compiler would store the elements one by one as they become known.
template <class Bits>
__device__ __forceinline__ void store_bits(Bits* to, const Bits& bits) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(Bits) == 16) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
                 :: "l"(to), "r"(bits.x), "r"(bits.y), "r"(bits.z), "r"(bits.w) : "memory");
    return;
  } else if constexpr (sizeof(Bits) == 8) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" :: "l"(to), "r"(bits.x), "r"(bits.y) : "memory");
    return;
  }
#endif
  *to = bits;
}

template <int V, class T>
__device__ __forceinline__ void store(T* to, const Vec<T, V>& values) {
  constexpr int kBytes = sizeof(T) * V;
  static_assert(kBytes <= 16);
  typename BitsOf<kBytes>::Type bits;
  memcpy(&bits, &values, kBytes);
  store_bits(reinterpret_cast<typename BitsOf<kBytes>::Type*>(to), bits);
}

// --- who computes what -----------------------------------------------------------------------------------------------

// Division by a number that the host knows: a multiplication and a shift for 32-bit indices (0 <= n < 2^31).
template <class Index>
struct Divider {
  Index by = 1;

  Divider() = default;
  explicit Divider(Index divisor) : by(divisor) {}

  __host__ __device__ Index operator()(Index n) const { return n / by; }
};

template <>
struct Divider<int32_t> {
  int32_t by = 1;
  uint32_t factor = 0, shift = 0;

  Divider() = default;

  explicit Divider(int32_t divisor) : by(divisor) {
    if (divisor == 1) return;
    uint32_t log2 = 0;  // rounded up
    while ((int64_t{1} << log2) < divisor) ++log2;
    factor = static_cast<uint32_t>(((uint64_t{1} << (31 + log2)) + divisor - 1) / divisor);
    shift = log2 - 1;
  }

  __host__ __device__ int32_t operator()(int32_t n) const {
    const auto product = static_cast<uint64_t>(static_cast<uint32_t>(n)) * factor;
    return by == 1 ? n : static_cast<int32_t>(static_cast<uint32_t>(product >> 32) >> shift);
  }
};

template <class Index>
struct Place {
  Index n, c, t, h, w, inner;
};

// Splits a running number into a place; `inner` runs fastest, in steps of `lanes`.
template <class Index>
struct Split {
  Divider<Index> c, t, h, w, groups;

  __device__ __forceinline__ Place<Index> operator()(Index id, int lanes) const {
    Place<Index> at;
    const Index id_w = groups(id), id_h = w(id_w), id_t = h(id_h), id_c = t(id_t);
    at.inner = (id - id_w * groups.by) * lanes;
    at.w = id_w - id_h * w.by;
    at.h = id_h - id_t * h.by;
    at.t = id_t - id_c * t.by;
    at.n = c(id_c);
    at.c = id_c - at.n * c.by;
    return at;
  }
};

// Distances between neighbours, in elements. Across planes they take 64 bits whatever `Index` is: a plane with more
// than 2^31 elements is rare, a tensor is not.
template <class Index>
struct Strides {
  int64_t n, c;
  Index t, h, w;

  __device__ __forceinline__ int64_t plane(const Place<Index>& at) const { return at.n * n + at.c * c + at.inner; }
  __device__ __forceinline__ Index in_plane(Index it, Index ih, Index iw) const { return it * t + ih * h + iw * w; }
  __device__ __forceinline__ int64_t operator()(const Place<Index>& at) const {
    return plane(at) + in_plane(at.t, at.h, at.w);
  }
};

template <class T, class Index>
struct Pool {
  Geometry<Index> axes;
  Strides<Index> input, input_grad, output;  // the last two are dense
  Index outer_channels, inner;  // one of the two is the number of channels, or inner are positions
  bool inner_is_channels;
  int64_t outputs;        // in all
  const AccOf<T>* betas;  // one per channel, or null
  AccOf<T> beta;

  __device__ __forceinline__ Index channel(const Place<Index>& at, int lane) const {
    return inner_is_channels ? at.inner + lane : at.c;
  }
  __device__ __forceinline__ Index channels() const { return inner_is_channels ? inner : outer_channels; }
  __device__ __forceinline__ AccOf<T> beta_at(const Place<Index>& at, int lane) const {
    return betas == nullptr ? beta : to_finite(betas[channel(at, lane)]);
  }
};

template <class Index>
__device__ __forceinline__ Index global_id() {
  return static_cast<Index>(blockIdx.x) * static_cast<Index>(blockDim.x) + static_cast<Index>(threadIdx.x);
}

// --- one window's values ---------------------------------------------------------------------------------------------

// A window whose size the compiler knows, without dilation: read once into registers. What lies outside the input is
// read as -inf, which weighs nothing. Such a window is never empty, since padding is at most half of it.
template <int KT, int KH, int KW>
struct Fixed {
  // For __launch_bounds__: how many blocks a multiprocessor shall hold at least. Told 2, the compiler takes the
  // registers it needs; left to itself (0), it takes fewer, which suits short kernels, but makes long ones keep values
  // in memory. Nine vectors fit into a quarter of the registers if it is told so.
  static constexpr int blocks(int V) { return V > 1 && KT * KH * KW == 9 ? 4 : 0; }

  template <class T, class Index, int V>
  class Window {
   public:
    __device__ __forceinline__ Window(const T* x, const Pool<T, Index>& pool, const Place<Index>& at)
        : axes_(pool.axes),
          t_(at.t * axes_.t.stride - axes_.t.padding),
          h_(at.h * axes_.h.stride - axes_.h.padding),
          w_(at.w * axes_.w.stride - axes_.w.padding) {
      visit([&](int tap, Index t, Index h, Index w) {
        if (inside(t, h, w)) {
          values_[tap] = load<V>(x + pool.input.in_plane(t, h, w));
        } else {
#pragma unroll
          for (int v = 0; v < V; ++v) values_[tap].of[v] = static_cast<T>(-Limits<AccOf<T>>::inf);
        }
      });
    }

    __device__ __forceinline__ bool any() const { return true; }

    // f(values) of each position
    template <class F>
    __device__ __forceinline__ void each(F f) const {
#pragma unroll
      for (int tap = 0; tap < KT * KH * KW; ++tap) f(values_[tap]);
    }

    // f(t, h, w, values) of each position inside the input
    template <class F>
    __device__ __forceinline__ void each_place(F f) const {
      visit([&](int tap, Index t, Index h, Index w) {
        if (inside(t, h, w)) f(t, h, w, values_[tap]);
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
          for (Index w = w_.begin; w < w_.end; w += w_.step) f(load<V>(x_ + strides_.in_plane(t, h, w)));
    }

    template <class F>
    __device__ __forceinline__ void each_place(F f) const {
      for (Index t = t_.begin; t < t_.end; t += t_.step)
        for (Index h = h_.begin; h < h_.end; h += h_.step)
          for (Index w = w_.begin; w < w_.end; w += w_.step) f(t, h, w, load<V>(x_ + strides_.in_plane(t, h, w)));
    }

   private:
    const T* const x_;
    const Strides<Index>& strides_;
    const Range<Index> t_, h_, w_;
  };
};

// One value for each of V windows that a thread computes at once.
template <class U, int V>
struct Lanes {
  U of[V];

  __device__ __forceinline__ U& operator[](int v) { return of[v]; }
  __device__ __forceinline__ const U& operator[](int v) const { return of[v]; }
};

template <int V, class F>
__device__ __forceinline__ auto lanes_of(F f) {
  return [&]<int... v>(std::integer_sequence<int, v...>) {
    return Lanes<decltype(f(0)), V>{{f(v)...}};
  }(std::make_integer_sequence<int, V>());
}

// The sums of the v-th of the windows side by side, whatever its values and beta.
template <class T, class Window>
__device__ __forceinline__ Sums<AccOf<T>> general_sums(const Window& window, int v, AccOf<T> beta) {
  using Acc = AccOf<T>;
  Extent<Acc> extent;
  window.each([&](const auto& x) { extent.add(static_cast<Acc>(x.of[v])); });
  extent.any = window.any();
  Sums<Acc> sums(extent, beta);
  window.each([&](const auto& x) { sums.add(static_cast<Acc>(x.of[v])); });
  return sums;
}

template <class Acc, int V>
struct LanesOfSums {
  Lanes<Sums<Acc>, V> of;
  bool usual;  // all of them

  __device__ __forceinline__ const Sums<Acc>& operator[](int v) const { return of[v]; }
};

// The sums of V windows side by side.
template <int V, class T, class Window>
__device__ __forceinline__ LanesOfSums<AccOf<T>, V> sums_of(const Window& window, const Lanes<AccOf<T>, V>& beta) {
  using Acc = AccOf<T>;
  Lanes<Acc, V> hi;
#pragma unroll
  for (int v = 0; v < V; ++v) hi[v] = -Limits<Acc>::inf;
  window.each([&](const Vec<T, V>& x) {
#pragma unroll
    for (int v = 0; v < V; ++v) hi[v] = larger(hi[v], static_cast<Acc>(x.of[v]));
  });
  bool usual = true;
#pragma unroll
  for (int v = 0; v < V; ++v) usual &= is_usual(hi[v], beta[v]);
  auto sums = lanes_of<V>([&](int v) { return Sums<Acc>(hi[v], beta[v]); });
  if (usual) {
    window.each([&](const Vec<T, V>& x) {
#pragma unroll
      for (int v = 0; v < V; ++v) sums[v].add_usual(static_cast<Acc>(x.of[v]));
    });
  } else {
#pragma unroll
    for (int v = 0; v < V; ++v) sums[v] = general_sums<T>(window, v, beta[v]);
  }
  return {sums, usual};
}

// --- windows over an inner dimension: channels_last_3d, axes that are not pooled, and whatever else there is ------------

template <class T, class Index, int V, class Kind>
__global__ void __launch_bounds__(kThreads, Kind::blocks(V))
    forward_columns(const T* x, T* y, Pool<T, Index> pool, Split<Index> split, Index count) {
  const Index id = global_id<Index>();
  if (id >= count) return;
  const Place<Index> at = split(id, V);
  const auto beta = lanes_of<V>([&](int v) { return pool.beta_at(at, v); });
  const typename Kind::template Window<T, Index, V> window(x + pool.input.plane(at), pool, at);
  const auto sums = sums_of<V, T>(window, beta);
  Vec<T, V> result;
#pragma unroll
  for (int v = 0; v < V; ++v) result.of[v] = static_cast<T>(sums[v].mean());
  store<V>(y + pool.output(at), result);
}

// The gradient where windows tile the input: every thread computes its window once more and writes the gradient of all
// of it. `split` also counts a last, incomplete window on an axis where there is one, so that all of the gradient is
// written; where the output has none, it is 0.
template <class T, class Index, int V, class Kind>
__global__ void __launch_bounds__(kThreads, Kind::blocks(V))
    backward_columns(const T* x, const T* y_grad, T* x_grad, Pool<T, Index> pool, Split<Index> split, Index count) {
  using Acc = AccOf<T>;
  const Index id = global_id<Index>();
  if (id >= count) return;
  const Place<Index> at = split(id, V);
  const bool has_output = at.t < pool.axes.t.out && at.h < pool.axes.h.out && at.w < pool.axes.w.out;
  const auto beta = lanes_of<V>([&](int v) { return pool.beta_at(at, v); });
  const typename Kind::template Window<T, Index, V> window(x + pool.input.plane(at), pool, at);
  const auto sums = sums_of<V, T>(window, beta);
  const auto stats = lanes_of<V>([&](int v) { return sums[v].stats(); });
  bool usual = sums.usual;
#pragma unroll
  for (int v = 0; v < V; ++v) usual &= !is_nan(stats[v].inverse_sum);
  Vec<T, V> g = {};
  if (has_output) g = load<V>(y_grad + pool.output(at));
  x_grad += pool.input_grad.plane(at);
  const auto write = [&](auto gradient) {
    window.each_place([&](Index t, Index h, Index w, const Vec<T, V>& values) {
      Vec<T, V> result;
#pragma unroll
      for (int v = 0; v < V; ++v)
        result.of[v] = static_cast<T>(gradient(stats[v], static_cast<Acc>(values.of[v]), static_cast<Acc>(g.of[v]), beta[v]));
      store<V>(x_grad + pool.input_grad.in_plane(t, h, w), result);
    });
  };
  if (!has_output)
    write([](const Stats<Acc>&, Acc, Acc, Acc) { return Acc(0); });
  else if (usual)
    write([](const Stats<Acc>& s, Acc x, Acc g, Acc beta) { return s.gradient_usual(x, g, beta); });
  else
    write([](const Stats<Acc>& s, Acc x, Acc g, Acc beta) { return s.gradient(x, g, beta); });
}

// --- windows along contiguous rows ----------------------------------------------------------------------------------------

// The values of V = (16 bytes of T) / KW windows next to each other along w, from one load of 16 bytes of each row.
// Needs rows of whole 16 bytes, and windows that lie side by side along w.
template <class T, int KT, int KH, int KW>
class Rows {
 public:
  static constexpr int kWide = 16 / sizeof(T), kWindows = kWide / KW, kRows = KT * KH;
  static_assert(kWide % KW == 0);

  __device__ __forceinline__ Rows(const T* x, const Pool<T, int32_t>& pool, const Place<int32_t>& at)
      : axes_(pool.axes),
        t_(at.t * axes_.t.stride - axes_.t.padding),
        h_(at.h * axes_.h.stride - axes_.h.padding) {
    const T outside = static_cast<T>(-Limits<AccOf<T>>::inf);
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const int32_t t = t_ + row / KH, h = h_ + row % KH;
      const T* from = x + pool.input.in_plane(t, h, at.w * kWide);
      if (inside(t, h)) {
        wide_[row] = load<kWide>(from);
      } else {
#pragma unroll
        for (int e = 0; e < kWide; ++e) wide_[row].of[e] = outside;
      }
    }
  }

  // As a window for sums_of: the values of all windows at the same tap.
  __device__ __forceinline__ bool any() const { return true; }

  template <class F>
  __device__ __forceinline__ void each(F f) const {
#pragma unroll
    for (int row = 0; row < kRows; ++row)
#pragma unroll
      for (int k = 0; k < KW; ++k) {
        Vec<T, kWindows> values;
#pragma unroll
        for (int v = 0; v < kWindows; ++v) values.of[v] = wide_[row].of[v * KW + k];
        f(values);
      }
  }

  // f(t, h, values) of each row inside the input
  template <class F>
  __device__ __forceinline__ void each_row(F f) const {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const int32_t t = t_ + row / KH, h = h_ + row % KH;
      if (inside(t, h)) f(t, h, wide_[row]);
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

template <class T, int KT, int KH, int KW>
__global__ void __launch_bounds__(kThreads)
    forward_rows(const T* x, T* y, Pool<T, int32_t> pool, Split<int32_t> split, int32_t count) {
  using Windows = Rows<T, KT, KH, KW>;
  constexpr int V = Windows::kWindows;
  const int32_t id = global_id<int32_t>();
  if (id >= count) return;
  const Place<int32_t> at = split(id, 1);
  const auto beta = lanes_of<V>([&](int) { return pool.beta_at(at, 0); });
  const Windows windows(x + pool.input.plane(at), pool, at);
  const auto sums = sums_of<V, T>(windows, beta);
  Vec<T, V> result;
#pragma unroll
  for (int v = 0; v < V; ++v) result.of[v] = static_cast<T>(sums[v].mean());
  store<V>(y + pool.output.plane(at) + pool.output.in_plane(at.t, at.h, at.w * V), result);
}

// The same as backward_columns, with Rows.
template <class T, int KT, int KH, int KW>
__global__ void __launch_bounds__(kThreads) backward_rows(const T* x, const T* y_grad, T* x_grad,
                                                          Pool<T, int32_t> pool, Split<int32_t> split, int32_t count) {
  using Acc = AccOf<T>;
  using Windows = Rows<T, KT, KH, KW>;
  constexpr int V = Windows::kWindows;
  const int32_t id = global_id<int32_t>();
  if (id >= count) return;
  const Place<int32_t> at = split(id, 1);
  const bool has_output = at.t < pool.axes.t.out && at.h < pool.axes.h.out;
  const auto beta = lanes_of<V>([&](int) { return pool.beta_at(at, 0); });
  const Windows windows(x + pool.input.plane(at), pool, at);
  const auto sums = sums_of<V, T>(windows, beta);
  const auto stats = lanes_of<V>([&](int v) { return sums[v].stats(); });
  bool usual = sums.usual;
#pragma unroll
  for (int v = 0; v < V; ++v) usual &= !is_nan(stats[v].inverse_sum);
  Vec<T, V> g = {};
  if (has_output) g = load<V>(y_grad + pool.output.plane(at) + pool.output.in_plane(at.t, at.h, at.w * V));
  x_grad += pool.input_grad.plane(at);
  const auto write = [&](auto gradient) {
    windows.each_row([&](int32_t t, int32_t h, const Vec<T, V * KW>& values) {
      Vec<T, V * KW> result;
#pragma unroll
      for (int e = 0; e < V * KW; ++e)
        result.of[e] = static_cast<T>(
            gradient(stats[e / KW], static_cast<Acc>(values.of[e]), static_cast<Acc>(g.of[e / KW]), beta[e / KW]));
      store<V * KW>(x_grad + pool.input_grad.in_plane(t, h, at.w * V * KW), result);
    });
  };
  if (!has_output)
    write([](const Stats<Acc>&, Acc, Acc, Acc) { return Acc(0); });
  else if (usual)
    write([](const Stats<Acc>& s, Acc x, Acc g, Acc beta) { return s.gradient_usual(x, g, beta); });
  else
    write([](const Stats<Acc>& s, Acc x, Acc g, Acc beta) { return s.gradient(x, g, beta); });
}

// --- any backward: a gather over the windows that hold a position ---------------------------------------------------------

// What a block of backward_gather computes: the gradient of a box of positions times `lanes` vectors of inner elements.
// windows_*: the most windows that lie over a box along that axis.
template <class Index>
struct Box {
  Index t, h, w, windows_t, windows_h, windows_w, lanes;
  Divider<Index> by_lanes, by_h, by_w, by_windows_h, by_windows_w;

  __host__ __device__ Index positions() const { return t * h * w; }
  __host__ __device__ Index windows() const { return windows_t * windows_h * windows_w; }
};

// Stats of windows as three arrays: pivot, g / sum of the weights, half_offset. `apart`: elements from one array to the
// next.
template <int V, class Acc>
__device__ __forceinline__ void store_stats(Acc* to, int64_t apart, const Lanes<Stats<Acc>, V>& stats,
                                            const Lanes<Acc, V>& g) {
  Vec<Acc, V> pivot, share, half_offset;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    pivot.of[v] = stats[v].pivot;
    share.of[v] = stats[v].inverse_sum * g[v];
    half_offset.of[v] = stats[v].half_offset;
  }
  *reinterpret_cast<Vec<Acc, V>*>(to) = pivot;
  *reinterpret_cast<Vec<Acc, V>*>(to + apart) = share;
  *reinterpret_cast<Vec<Acc, V>*>(to + 2 * apart) = half_offset;
}

// Shared memory: the windows over each coordinate of the box (t, then h, then w), then the stats of its windows.
template <class T, class Index>
__host__ __device__ constexpr int64_t gather_bytes(const Box<Index>& box, int V, bool with_stats) {
  const int64_t ranges = (box.t + box.h + box.w) * sizeof(Index) * 2;
  const int64_t stats = with_stats ? int64_t{3} * box.windows() * box.lanes * V * sizeof(AccOf<T>) : 0;
  return (ranges + 31) / 32 * 32 + stats;
}

// The gradient of every position, from the stats of all windows over it. The stats were computed before (`ready`:
// arrays as long as the output, `apart` elements from one to the next), or are computed here first, into shared memory.
// Windows over two boxes are then computed twice, but neither stats nor x go through global memory once more.
template <class T, class Index, int V, bool kReady>
__global__ void __launch_bounds__(kThreads, 2)
    backward_gather(const T* x, const T* y_grad, T* x_grad, Pool<T, Index> pool, Split<Index> split, Box<Index> box,
                    const AccOf<T>* ready, int64_t apart) {
  using Acc = AccOf<T>;
  SOFTPOOL_SHARED(shared);
  const Axis<Index>&at = pool.axes.t, &ah = pool.axes.h, &aw = pool.axes.w;
  const Place<Index> place = split(static_cast<Index>(blockIdx.x), box.lanes * V);
  const Index t0 = place.t * box.t, h0 = place.h * box.h, w0 = place.w * box.w;
  // Windows over the box: all from the first over its first position to the last over its last.
  const Index first_t = at.windows_over(t0).begin, first_h = ah.windows_over(h0).begin,
              first_w = aw.windows_over(w0).begin;

  auto* const over_t = reinterpret_cast<Index*>(shared);
  auto* const over_h = over_t + 2 * box.t;
  auto* const over_w = over_h + 2 * box.h;
  const auto list = [&](Index* over, const Axis<Index>& axis, Index begin, Index extent) {
    for (Index i = threadIdx.x; i < extent; i += blockDim.x) {
      const Range<Index> range = begin + i < axis.size ? axis.windows_over(begin + i) : Range<Index>{0, 0, 1};
      over[2 * i] = range.begin;
      over[2 * i + 1] = range.end;
    }
  };
  list(over_t, at, t0, box.t);
  list(over_h, ah, h0, box.h);
  list(over_w, aw, w0, box.w);

  auto* const stats = reinterpret_cast<Acc*>(shared + gather_bytes<T>(box, V, false));
  const Index per_array = box.windows() * box.lanes * V;
  if constexpr (!kReady) {
    const Index end_t = at.windows_over(min_of(t0 + box.t, at.size) - 1).end,
                end_h = ah.windows_over(min_of(h0 + box.h, ah.size) - 1).end,
                end_w = aw.windows_over(min_of(w0 + box.w, aw.size) - 1).end;
    for (Index i = threadIdx.x; i < box.windows() * box.lanes; i += blockDim.x) {
      const Index window = box.by_lanes(i), row = box.by_windows_w(window), slab = box.by_windows_h(row);
      Place<Index> o = place;
      o.inner += (i - window * box.lanes) * V;
      o.w = first_w + window - row * box.windows_w;
      o.h = first_h + row - slab * box.windows_h;
      o.t = first_t + slab;
      if (o.inner >= pool.inner || o.t >= end_t || o.h >= end_h || o.w >= end_w) continue;
      const auto beta = lanes_of<V>([&](int v) { return pool.beta_at(o, v); });
      const auto sums = sums_of<V, T>(Any::Window<T, Index, V>(x + pool.input.plane(o), pool, o), beta);
      const Vec<T, V> g = load<V>(y_grad + pool.output(o));
      store_stats<V, Acc>(stats + i * V, per_array, lanes_of<V>([&](int v) { return sums[v].stats(); }),
                          lanes_of<V>([&](int v) { return static_cast<Acc>(g.of[v]); }));
    }
  }
  __syncthreads();

  for (Index i = threadIdx.x; i < box.positions() * box.lanes; i += blockDim.x) {
    const Index position = box.by_lanes(i), row = box.by_w(position), slab = box.by_h(row);
    const Index lane = i - position * box.lanes, bw = position - row * box.w, bh = row - slab * box.h, bt = slab;
    Place<Index> here = place;
    here.inner += lane * V;
    here.t = t0 + bt;
    here.h = h0 + bh;
    here.w = w0 + bw;
    if (here.inner >= pool.inner || here.t >= at.size || here.h >= ah.size || here.w >= aw.size) continue;
    const auto beta = lanes_of<V>([&](int v) { return pool.beta_at(here, v); });
    const Vec<T, V> value = load<V>(x + pool.input(here));
    bool usual = true;
#pragma unroll
    for (int v = 0; v < V; ++v) usual &= is_usual(beta[v]) && is_finite(static_cast<Acc>(value.of[v]));
    Lanes<Acc, V> sum = {};
    for (Index ot = over_t[2 * bt]; ot < over_t[2 * bt + 1]; ++ot) {
      if (!at.holds(ot, here.t)) continue;
      for (Index oh = over_h[2 * bh]; oh < over_h[2 * bh + 1]; ++oh) {
        if (!ah.holds(oh, here.h)) continue;
        for (Index ow = over_w[2 * bw]; ow < over_w[2 * bw + 1]; ++ow) {
          if (!aw.holds(ow, here.w)) continue;
          const Acc* from;
          if constexpr (kReady) {
            from = ready + pool.output.plane(here) + pool.output.in_plane(ot, oh, ow);
          } else {
            const Index window =
                ((ot - first_t) * box.windows_h + (oh - first_h)) * box.windows_w + (ow - first_w);
            from = stats + (window * box.lanes + lane) * V;
          }
          const int64_t step = kReady ? apart : per_array;
          const Vec<Acc, V> pivot = load<V>(from), share = load<V>(from + step), offset = load<V>(from + 2 * step);
#pragma unroll
          for (int v = 0; v < V; ++v) {
            const Stats<Acc> window = {pivot.of[v], share.of[v], offset.of[v]};
            const Acc x_v = static_cast<Acc>(value.of[v]);
            sum[v] += usual ? window.gradient_usual(x_v, Acc(1), beta[v]) : window.gradient(x_v, Acc(1), beta[v]);
          }
        }
      }
    }
    Vec<T, V> result;
#pragma unroll
    for (int v = 0; v < V; ++v) result.of[v] = static_cast<T>(sum[v]);
    store<V>(x_grad + pool.input_grad(here), result);
  }
}

// --- dL/dbeta of each channel: two stages, each in a fixed order ----------------------------------------------------------

// One block adds up the outputs of one slice of planes n, c for V x `lanes` inner elements: shares[n, slice][channel].
template <class T, class Index, int V>
__global__ void __launch_bounds__(kThreads, 2)
    beta_shares(const T* x, const T* y_grad, AccOf<T>* shares, Pool<T, Index> pool, Split<Index> split,
                Divider<Index> by_h, Divider<Index> by_w, int slices, Index per_slice, int lanes) {
  using Acc = AccOf<T>;
  SOFTPOOL_SHARED(shared);
  const Index block = static_cast<Index>(blockIdx.x) / slices;
  const int slice = static_cast<int>(blockIdx.x % slices);
  const int lane = threadIdx.x % lanes, row = threadIdx.x / lanes, rows = blockDim.x / lanes;
  Place<Index> at = split(block, V * lanes);
  at.inner += lane * V;
  const bool active = at.inner < pool.inner;
  const Index outputs = pool.axes.t.out * pool.axes.h.out * pool.axes.w.out;
  const Index begin = slice * per_slice, end = min_of(begin + per_slice, outputs);

  const auto beta = lanes_of<V>([&](int v) { return active ? pool.beta_at(at, v) : Acc(0); });
  Lanes<Acc, V> share = {};
  for (Index o = begin + row; active && o < end; o += rows) {
    const Index o_h = by_w(o);
    at.t = by_h(o_h);
    at.h = o_h - at.t * by_h.by;
    at.w = o - o_h * by_w.by;
    const auto sums = sums_of<V, T>(Any::Window<T, Index, V>(x + pool.input.plane(at), pool, at), beta);
    const Vec<T, V> g = load<V>(y_grad + pool.output(at));
#pragma unroll
    for (int v = 0; v < V; ++v) share[v] += static_cast<Acc>(g.of[v]) * sums[v].variance();
  }
  auto* const sums = reinterpret_cast<Lanes<Acc, V>*>(shared);
  sums[threadIdx.x] = share;
  for (int step = rows / 2; step > 0; step /= 2) {
    __syncthreads();
    if (row < step)
      for (int v = 0; v < V; ++v) sums[threadIdx.x][v] += sums[threadIdx.x + step * lanes][v];
  }
  if (row > 0 || !active) return;
  shares += (static_cast<int64_t>(at.n) * slices + slice) * pool.channels();
  for (int v = 0; v < V; ++v) shares[pool.channel(at, v)] = sums[threadIdx.x][v];
}

template <class Acc>
__global__ void __launch_bounds__(kThreads)
    sum_shares(const Acc* shares, Acc* sums, int64_t rows, int64_t channels) {
  const int64_t channel = global_id<int64_t>();
  if (channel >= channels) return;
  Acc sum = 0;
  for (int64_t row = 0; row < rows; ++row) sum += shares[row * channels + channel];
  sums[channel] = sum;
}

}  // namespace softpool3d::cuda
