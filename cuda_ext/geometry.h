// Where windows lie: kernel, stride, padding and dilation (or torch's adaptive bins) -> output sizes and index ranges.
//
// Plain C++17 without torch, for host and device, so that g++, nvcc and the sanitizer tests compile the same index
// arithmetic. Sizes are checked on the host only, with the rules and the error messages of max_pool3d.

#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#ifdef __CUDACC__
#define SOFTPOOL_HD __host__ __device__ __forceinline__
#else
// Always inlined on the host too: files compiled for different instruction sets must not share out-of-line copies.
#define SOFTPOOL_HD inline __attribute__((always_inline))
#endif

namespace softpool3d {

template <class Index>
SOFTPOOL_HD Index min_of(Index a, Index b) {
  return a < b ? a : b;
}

template <class Index>
SOFTPOOL_HD Index max_of(Index a, Index b) {
  return a > b ? a : b;
}

// Rounds up; a >= 0, b > 0.
template <class Index>
SOFTPOOL_HD Index ceil_div(Index a, Index b) {
  return (a + b - 1) / b;
}

// for (Index i = begin; i < end; i += step)
template <class Index>
struct Range {
  Index begin, end, step;
};

// The windows along one axis. `Index` is int64_t, or int32_t on a GPU when everything fits: then the largest value
// formed is below (size + 1) * out for adaptive bins and below size + 2 * kernel * dilation + stride otherwise.
template <class Index>
struct Axis {
  Index size;    // of the input
  Index out;     // of the output
  Index kernel;  // taps of a window; 0: torch's adaptive bins, [floor(o size / out), ceil((o + 1) size / out))
  Index stride, padding, dilation;

  // The input positions of window `o` that lie inside the input: none (begin >= end) is possible with dilation.
  SOFTPOOL_HD Range<Index> window(Index o) const {
    if (kernel == 0) return {o * size / out, ceil_div((o + 1) * size, out), 1};
    const Index start = o * stride - padding;
    const Index begin = start < 0 ? start + ceil_div(-start, dilation) * dilation : start;
    return {begin, min_of(start + (kernel - 1) * dilation + 1, size), dilation};
  }

  // The outputs whose window spans input position `i`. With dilation above 1 some of them step over it: ask holds().
  SOFTPOOL_HD Range<Index> windows_over(Index i) const {
    if (kernel == 0) return {i * out / size, ceil_div((i + 1) * out, size), 1};
    const Index last = i + padding, first = last - (kernel - 1) * dilation;
    return {first <= 0 ? 0 : ceil_div(first, stride), min_of(last / stride + 1, out), 1};
  }

  // Whether window `o`, one of windows_over(i), has a tap at `i`.
  SOFTPOOL_HD bool holds(Index o, Index i) const {
    return dilation == 1 || (i + padding - o * stride) % dilation == 0;
  }

  // Whether windows are so long, and overlap so little, that each is best summed by itself.
  SOFTPOOL_HD bool wide() const { return kernel == 0 || (kernel >= 16 && dilation == 1 && stride * 2 >= kernel); }

  // Whether no input position lies in two windows.
  SOFTPOOL_HD bool disjoint() const {
    if (kernel == 0) return size % out == 0;
    return out == 1 || kernel == 1 || (dilation == 1 && kernel <= stride);
  }
};

template <class Index>
struct Geometry {
  Axis<Index> t, h, w;

  SOFTPOOL_HD bool disjoint() const { return t.disjoint() && h.disjoint() && w.disjoint(); }
};

// --- host: from arguments to a geometry ------------------------------------------------------------------------------

// max_pool3d's output size. Arguments have been checked.
inline int64_t pooled_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation,
                           bool ceil_mode) {
  const int64_t room = size + 2 * padding - dilation * (kernel - 1) - 1 + (ceil_mode ? stride - 1 : 0);
  int64_t out = (room >= 0 ? room / stride : -ceil_div(-room, stride)) + 1;
  // The last window has to start inside the input or its left padding.
  if (ceil_mode && (out - 1) * stride >= size + padding) --out;
  return out;
}

namespace detail {

inline std::string triple(const char* names[3], const int64_t* values) {
  std::string text;
  for (int a = 0; a < 3; ++a)
    text += (a ? " " : "") + std::string(names[a]) + ": " + std::to_string(values[a]);
  return text;
}

inline void require_positive(const char* what, const char* const (&prefixes)[3], const int64_t* values) {
  if (values[0] > 0 && values[1] > 0 && values[2] > 0) return;
  const char* names[3] = {prefixes[0], prefixes[1], prefixes[2]};
  throw std::runtime_error(std::string(what) + " should be greater than zero, but got " + triple(names, values));
}

inline std::string sizes(const int64_t channels, const int64_t* values) {
  std::string text = std::to_string(channels);
  for (int a = 0; a < 3; ++a) text += "x" + std::to_string(values[a]);
  return text;
}

}  // namespace detail

// The geometry of a pool over (channels, T, H, W); all arrays are (T, H, W).
//
// Throws std::runtime_error, with the text and in the order of torch.nn.functional.max_pool3d on CPU.
inline Geometry<int64_t> pool_geometry(int64_t channels, const int64_t* size, const int64_t* kernel,
                                       const int64_t* stride, const int64_t* padding, const int64_t* dilation,
                                       bool ceil_mode) {
  for (const int64_t* values : {kernel, stride, padding, dilation})
    for (int a = 0; a < 3; ++a)
      if (values[a] != static_cast<int32_t>(values[a]))
        throw std::runtime_error("value cannot be converted to type int without overflow");
  for (int a = 0; a < 3; ++a) {
    if (stride[a] == 0) throw std::runtime_error("stride should not be zero");
    if (padding[a] < 0)
      throw std::runtime_error("pad must be non-negative, but got pad: " + std::to_string(padding[a]));
    if (padding[a] > ((kernel[a] - 1) * dilation[a] + 1) / 2)
      throw std::runtime_error("pad should be at most half of effective kernel size, but got pad=" +
                               std::to_string(padding[a]) + ", kernel_size=" + std::to_string(kernel[a]) +
                               " and dilation=" + std::to_string(dilation[a]));
  }
  detail::require_positive("kernel size", {"kT", "kH", "kW"}, kernel);
  detail::require_positive("stride", {"dT", "dH", "dW"}, stride);
  detail::require_positive("dilation", {"dilationT", "dilationH", "dilationW"}, dilation);
  if (padding[0] > kernel[0] / 2 || padding[1] > kernel[1] / 2 || padding[2] > kernel[2] / 2) {
    const char* kernel_names[3] = {"kT", "kW", "kH"};
    const char* padding_names[3] = {"padT", "padW", "padH"};
    const int64_t kernels[3] = {kernel[0], kernel[2], kernel[1]}, paddings[3] = {padding[0], padding[2], padding[1]};
    throw std::runtime_error("pad should be smaller than or equal to half of kernel size, but got " +
                             detail::triple(kernel_names, kernels) + " " + detail::triple(padding_names, paddings));
  }
  int64_t out[3];
  for (int a = 0; a < 3; ++a)
    out[a] = pooled_size(size[a], kernel[a], stride[a], padding[a], dilation[a], ceil_mode);
  if (out[0] < 1 || out[1] < 1 || out[2] < 1)
    throw std::runtime_error("Given input size: (" + detail::sizes(channels, size) + "). Calculated output size: (" +
                             detail::sizes(channels, out) + "). Output size is too small");
  Axis<int64_t> axes[3];
  for (int a = 0; a < 3; ++a) axes[a] = {size[a], out[a], kernel[a], stride[a], padding[a], dilation[a]};
  return {axes[0], axes[1], axes[2]};
}

// The geometry of an adaptive pool. Bins of equal size without overlap become an ordinary kernel, which is faster.
inline Geometry<int64_t> adaptive_geometry(const int64_t* size, const int64_t* out) {
  Axis<int64_t> axes[3];
  for (int a = 0; a < 3; ++a) {
    if (out[a] < 1)
      throw std::runtime_error("output_size should be greater than zero, but got " + std::to_string(out[a]));
    const int64_t bin = size[a] % out[a] == 0 ? size[a] / out[a] : 0;
    axes[a] = {size[a], out[a], bin, bin == 0 ? 1 : bin, 0, 1};
  }
  return {axes[0], axes[1], axes[2]};
}

// The same geometry with narrower indices.
inline Geometry<int32_t> narrowed(const Geometry<int64_t>& g) {
  const auto axis = [](const Axis<int64_t>& a) {
    return Axis<int32_t>{static_cast<int32_t>(a.size),   static_cast<int32_t>(a.out),
                         static_cast<int32_t>(a.kernel), static_cast<int32_t>(a.stride),
                         static_cast<int32_t>(a.padding), static_cast<int32_t>(a.dilation)};
  };
  return {axis(g.t), axis(g.h), axis(g.w)};
}

}  // namespace softpool3d
