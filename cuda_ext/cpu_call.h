// The interface between the CPU operators (soft_pool_cpu.cpp) and their kernels (cpu_kernels.h): plain data.

#pragma once

#include <cstddef>
#include <cstdint>

#include "geometry.h"

namespace softpool3d {

// From `begin` up to but not including `end`.
struct Span {
  int64_t begin, end;
  SOFTPOOL_HD int64_t size() const { return end - begin; }
};

// Axis::window for every output and Axis::windows_over for every input, so that inner loops do not divide.
struct AxisTable {
  const Range<int64_t>*windows, *over;
};

constexpr int64_t kMostChannels = 512;  // of a tile

enum class Type { float64, float32, float16, bfloat16 };

struct Call {
  Type type;
  bool channels_last;
  bool small_planes;  // contiguous, but pooled as channels_last after a transposition: see cpu_transposer.h
  bool in_rows;       // channels_last, but the rows of all channels are taken as rows of numbers: see cpu_columns.h
  bool backward, input_grad, beta_grad;
  int64_t channels;  // 1 where they lie along h
  Geometry<int64_t> geometry;
  AxisTable w;  // channels_last and small_planes only
  const void* x;
  const void* grad;          // backward: dL/dy
  void* result;              // y, or dL/dx
  int64_t x_stride[5];       // of (N, C, T, H, W)
  int64_t y_stride[5];       // of y and dL/dy
  int64_t dx_stride[5];
  const void* beta;          // all per channel, in the accumulation type; channels_last: padded by a vector
  const void* scale;         // log2(e) beta
  const void* inverse_limit;  // 1 / the largest |x| whose weight needs no maximum
};

// What one task works on: an index of the batch, some channels (one, unless channels_last) and a box of outputs.
// Backward: its inputs are those from the first window's begin up to the begin of the first window after the box.
struct Tile {
  int64_t n;
  Span c, t, h, w;
};

// The kernels for one instruction set. run() adds to `beta_grad`, one number per channel of the tile.
struct Kernels {
  int level;  // 0 portable, 1 AVX2, 2 AVX-512
  // The largest |log2(e) beta x| with which weights need no maximum, for either type.
  double float_bound, double_bound;
  int vector_bytes;
  size_t (*scratch_bytes)(const Call&, const Tile&);
  void (*run)(const Call&, const Tile&, void* scratch, double* beta_grad);
};

const Kernels* portable_kernels();
const Kernels* avx2_kernels();    // null where not compiled for x86-64
const Kernels* avx512_kernels();

}  // namespace softpool3d
