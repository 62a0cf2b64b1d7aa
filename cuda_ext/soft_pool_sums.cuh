// The sums of the windows of a thread. `window` is of one of the classes in soft_pool_window.cuh.
//
// There are three ways. *Plain* sums have no pivot: where a window's sum of exponentials is neither tiny nor huge,
// e = exp(beta x) itself has full relative precision, and with
//
//     S = sum e,   M = sum e x,   y = M / S,   dy/dx = (e / S) (beta x + 1 - beta y)
//
// nothing has to be known before the sums begin. is_tame() says when that holds. *Usual* ones take the largest value
// as the pivot. *General* ones are window.h's, for any values.

#pragma once

#include "soft_pool_index.cuh"

namespace softpool3d::cuda {

// The sums of the v-th of the windows side by side, whatever its values and beta.
template <class T, class Window>
__device__ __forceinline__ Sums<AccOf<T>> general_sums(const Window& window, int v, AccOf<T> beta) {
  using Acc = AccOf<T>;
  Extent<Acc> extent;
  window.each([&](const auto& x) { extent.add(x[v]); });
  extent.any = window.any();
  Sums<Acc> sums(extent, beta);
  window.each([&](const auto& x) { sums.add(x[v]); });
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
  window.each([&](const Lanes<Acc, V>& x) {
#pragma unroll
    for (int v = 0; v < V; ++v) hi[v] = larger(hi[v], x[v]);
  });
  bool usual = true;
#pragma unroll
  for (int v = 0; v < V; ++v) usual &= is_usual(hi[v], beta[v]);
  auto sums = lanes_of<V>([&](int v) { return Sums<Acc>(hi[v], beta[v]); });
  if (usual) {
    window.each([&](const Lanes<Acc, V>& x) {
#pragma unroll
      for (int v = 0; v < V; ++v) sums[v].add_usual(x[v]);
    });
  } else {
#pragma unroll
    for (int v = 0; v < V; ++v) sums[v] = general_sums<T>(window, v, beta[v]);
  }
  return {sums, usual};
}

// --- plain sums ------------------------------------------------------------------------------------------------------

// An exponent whose power of 2 is 0, and the largest one of a position.
constexpr float kNothing = -200.f, kMostPower = 127.f;

__device__ __forceinline__ float power_of_2(float exponent) {
#ifndef __CUDA_ARCH__
  if (exponent > kMostPower) return Limits<float>::inf;
#endif
  return exp2_of(exponent);
}

// 1 / x, for a sum of exponentials that is tame.
__device__ __forceinline__ float reciprocal(float x) {
#ifdef __CUDA_ARCH__
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));  // to within 1 ulp, and without guards
  return result;
#else
  return 1 / x;
#endif
}

__device__ __forceinline__ float scale_of(float beta) { return to_finite(static_cast<float>(kLog2e) * beta); }

// Whether a sum of exponentials and its moment are precise. With a NaN or an infinity in the window they never are:
// even an infinity that weighs nothing makes the moment NaN.
__device__ __forceinline__ bool is_tame(float weight, float moment) {
  return weight >= 0x1p-58f && weight <= 0x1p62f && is_finite(moment);
}

// Whether a thread sums its windows up without pivots first. Long sums are more precise relative to one.
template <class T, class Window>
constexpr bool kPlain = Window::kTaps > 0 && Window::kTaps <= 9 && std::is_same_v<AccOf<T>, float>;

template <int V, int kTaps>
struct PlainSums {
  Lanes<float, V> power[kTaps], weight = {}, moment = {};
  bool tame = true;  // all of them
};

template <int V, class T, class Window>
__device__ __forceinline__ PlainSums<V, Window::kTaps> plain_sums(const Window& window,
                                                                  const Lanes<float, V>& scale) {
  PlainSums<V, Window::kTaps> sums;
  int tap = 0;  // known to the compiler, as all loops are unrolled
  window.each([&](const Lanes<float, V>& x) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float value = x[v], power = power_of_2(scale[v] * value);
      sums.power[tap][v] = power;
      sums.weight[v] += power;
      // -inf, whose weight is 0, would make the moment NaN
      sums.moment[v] += power * (Window::kPadded ? larger(value, -Limits<float>::max) : value);
    }
    ++tap;
  });
#pragma unroll
  for (int v = 0; v < V; ++v) sums.tame &= is_tame(sums.weight[v], sums.moment[v]);
  return sums;
}

// y of V windows side by side.
template <int V, class T, class Window>
__device__ __forceinline__ Vec<T, V> means_of(const Window& window, const Lanes<AccOf<T>, V>& beta) {
  Vec<T, V> result;
  if constexpr (kPlain<T, Window>) {
    const auto sums = plain_sums<V, T>(window, lanes_of<V>([&](int v) { return scale_of(beta[v]); }));
#pragma unroll
    for (int v = 0; v < V; ++v) result.of[v] = static_cast<T>(sums.moment[v] * reciprocal(sums.weight[v]));
    if (sums.tame) return result;
#pragma unroll
    for (int v = 0; v < V; ++v) result.of[v] = static_cast<T>(general_sums<T>(window, v, beta[v]).mean());
  } else {
    const auto sums = sums_of<V, T>(window, beta);
#pragma unroll
    for (int v = 0; v < V; ++v) result.of[v] = static_cast<T>(sums[v].mean());
  }
  return result;
}

// What the gradients of V windows side by side need, with their g in it.
template <int V, int kTaps>
struct PlainSlopes {
  const PlainSums<V, kTaps>& sums;
  Lanes<float, V> scale, slope, level;
  bool tame;  // the sums, and all of g / S in the middle of the range of floats

  template <class T>
  __device__ __forceinline__ PlainSlopes(const PlainSums<V, kTaps>& of_windows, const Lanes<float, V>& beta,
                                         const Vec<T, V>& g)
      : sums(of_windows), tame(sums.tame) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float inverse = reciprocal(sums.weight[v]), share = static_cast<float>(g.of[v]) * inverse;
      scale[v] = scale_of(beta[v]);
      slope[v] = static_cast<float>(1 / kLog2e) * share;
      level[v] = share * (1.f - beta[v] * (sums.moment[v] * inverse));
      const float size = fabsf(share);
      tame &= size <= 0x1p100f && (size >= 0x1p-100f || static_cast<float>(g.of[v]) == 0);
    }
  }

  // g dy/dx at a tap of the v-th window, where it holds x.
  __device__ __forceinline__ float operator()(int tap, int v, float x) const {
    const float exponent = larger(scale[v] * x, kNothing);  // so that a power of 0 is not multiplied by an infinity
    return sums.power[tap][v] * (exponent * slope[v] + level[v]);
  }
};

// Calls write(f, whole) once, where f(tap, v, x) is the gradient at a tap of the v-th window, where it holds x, and
// `whole` a type that says whether all of the windows is known to lie inside the input.
template <int V, class T, class Window, class Write>
__device__ __forceinline__ void write_gradients(const Window& window, const Lanes<AccOf<T>, V>& beta, const Vec<T, V>& g,
                                                Write write) {
  using Acc = AccOf<T>;
  const auto slope = [&](int v) { return static_cast<Acc>(g.of[v]); };
  if constexpr (kPlain<T, Window>) {
    const auto sums = plain_sums<V, T>(window, lanes_of<V>([&](int v) { return scale_of(beta[v]); }));
    const PlainSlopes<V, Window::kTaps> slopes(sums, beta, g);
    static_assert(!Window::kPadded);  // so that a tame window lies inside: outside, moments would be NaN
    if (slopes.tame) return write(slopes, std::true_type());
    const auto stats = lanes_of<V>([&](int v) { return general_sums<T>(window, v, beta[v]).stats(); });
    write([&](int, int v, Acc x) { return stats[v].gradient(x, slope(v), beta[v]); }, std::false_type());
  } else {
    const auto sums = sums_of<V, T>(window, beta);
    const auto stats = lanes_of<V>([&](int v) { return sums[v].stats(); });
    bool usual = sums.usual;
#pragma unroll
    for (int v = 0; v < V; ++v) usual &= !is_nan(stats[v].inverse_sum);
    if (usual)
      write([&](int, int v, Acc x) { return stats[v].gradient_usual(x, slope(v), beta[v]); }, std::false_type());
    else
      write([&](int, int v, Acc x) { return stats[v].gradient(x, slope(v), beta[v]); }, std::false_type());
  }
}

}  // namespace softpool3d::cuda
