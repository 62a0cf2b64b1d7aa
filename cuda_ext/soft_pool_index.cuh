// How the CUDA kernels read and write memory, and which place in a pool a thread has.
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

// `values`, or what is read outside the input: -inf, which weighs nothing.
template <int V, class T>
__device__ __forceinline__ Vec<T, V> if_inside(bool inside, Vec<T, V> values) {
  const T nothing = static_cast<T>(-Limits<AccOf<T>>::inf);
  if constexpr (sizeof(T) == 2 && V % 2 == 0) {  // in pairs, as widen() takes them: the compiler keeps them so then
    const Vec<T, 2> nothings = {nothing, nothing};
    uint32_t pairs[V / 2], pair;
    memcpy(pairs, &values, sizeof pairs);
    memcpy(&pair, &nothings, sizeof pair);
#pragma unroll
    for (int i = 0; i < V / 2; ++i) pairs[i] = inside ? pairs[i] : pair;
    memcpy(&values, pairs, sizeof pairs);
  } else {
#pragma unroll
    for (int v = 0; v < V; ++v) values.of[v] = inside ? values.of[v] : nothing;
  }
  return values;
}

// The values in the type that sums are kept in.
template <int V, class T>
__device__ __forceinline__ Lanes<AccOf<T>, V> widen(const Vec<T, V>& x) {
  Lanes<AccOf<T>, V> wide;
  if constexpr (std::is_same_v<T, torch::headeronly::BFloat16> && V % 2 == 0) {
    uint32_t pairs[V / 2];  // one instruction each, where the compiler would take a value out of its pair first
    memcpy(pairs, &x, sizeof pairs);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const uint32_t bits = v % 2 == 0 ? pairs[v / 2] << 16 : pairs[v / 2] & 0xffff0000u;
      memcpy(&wide[v], &bits, sizeof bits);
    }
  } else {
#pragma unroll
    for (int v = 0; v < V; ++v) wide[v] = static_cast<AccOf<T>>(x.of[v]);
  }
  return wide;
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
  uint32_t factor = 1u << 31, shift = 0;

  Divider() = default;

  explicit Divider(int32_t divisor) : by(divisor) {
    while ((int64_t{1} << shift) < divisor) ++shift;
    factor = static_cast<uint32_t>(((uint64_t{1} << (31 + shift)) + divisor - 1) / divisor);
  }

  __host__ __device__ int32_t operator()(int32_t n) const {
    const auto product = static_cast<uint64_t>(2 * static_cast<uint32_t>(n)) * factor;
    return static_cast<int32_t>(static_cast<uint32_t>(product >> 32) >> shift);
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

}  // namespace softpool3d::cuda
