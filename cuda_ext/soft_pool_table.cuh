// Which windows have kernels of their own: a line for each. All others run in kernels for any window. To add a window,
// add a line here and one to tests/cuda_ext/test_kernels_on_host.py. float64 has none of these kernels: its speed
// matters little.

#pragma once

#include "soft_pool_overlap.cuh"

namespace softpool3d::cuda {

template <class... Lines>
struct Table {
  // Calls f(line) for one line after another, until it returns true; returns whether it did.
  template <class F>
  static bool any(F f) {
    return (f(Lines()) || ...);
  }
};

template <class T, class H, class W>
struct OverlappingLine {
  template <class Beside>
  using Kind = Overlap<T, H, W, Beside>;
};

// Windows that overlap; forward and backward, in any layout.
//                    along t, h and w: kernel, stride, padding
using OverlappingTable = Table<
    OverlappingLine<Along<1, 1, 0>, Along<3, 2, 1>, Along<3, 2, 1>>,
    OverlappingLine<Along<3, 2, 1>, Along<3, 2, 1>, Along<3, 2, 1>>,
    OverlappingLine<Along<3, 1, 1>, Along<3, 1, 1>, Along<3, 1, 1>>>;

template <int KT, int KH, int KW, bool rows, int forward, bool forward_single, int backward, bool backward_single>
struct RegistersLine {
  static constexpr int kT = KT, kH = KH, kW = KW;
  static constexpr bool kRows = rows;
  static constexpr int kForward = forward, kBackward = backward;
  static constexpr bool kForwardSingle = forward_single, kBackwardSingle = backward_single;
};

// Windows that a thread holds in registers; with any other stride and padding forward, and backward where they tile the
// input. In contiguous rows at a stride of 2 it holds as many side by side as 16 bytes do. Over an inner dimension it
// holds at most as many as the table says (0: no such kernel): more than four would leave room for one block only where
// they are large. `single` is where neither fits.
//                kernel   rows    forward, single   backward, single
using RegistersTable = Table<
    RegistersLine<2, 2, 2, true,   8, true,          4, true>,
    RegistersLine<1, 2, 2, true,   8, true,          8, true>,
    RegistersLine<2, 1, 1, false,  8, false,         8, false>,
    RegistersLine<1, 3, 3, false,  4, true,          0, false>,
    RegistersLine<3, 3, 3, false,  0, true,          0, false>>;

}  // namespace softpool3d::cuda
