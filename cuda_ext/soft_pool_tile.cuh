// Which part of the gradient a block of backward_overlap computes. The host chooses.

#pragma once

#include <limits>

#include "soft_pool_overlap.cuh"

namespace softpool3d::cuda {

#ifdef __CUDACC__
constexpr int64_t kTileBytes = 48 << 10;  // of shared memory, which every GPU has
#endif

// What a block of backward_overlap computes: the gradient of t x h x w cells of `lanes` inner vectors, from the windows
// over them, which are whole runs.
struct Tile {
  int32_t t, h, w, windows_t, windows_h, windows_w, lanes;
  Split<int32_t> window_runs, cell_runs;
  int32_t window_run_count, cell_run_count;

  int64_t bytes(int V) const { return int64_t{12} * windows_t * windows_h * windows_w * lanes * V; }
};

// Which tile a block takes: the one that costs the fewest instructions, of those that fit into shared memory.
template <class Kind>
class Tiling {
  using AlongT = typename Kind::AlongT;
  using H = typename Kind::AlongH;
  using W = typename Kind::AlongW;

 public:
  template <class T>
  Tiling(const Pool<T, int32_t>& pool, int64_t planes)
      : t_(ceil_div(pool.axes.t.size, AlongT::kStride)),
        h_(ceil_div(pool.axes.h.size, H::kStride)),
        w_(ceil_div(pool.axes.w.size, W::kStride)),
        inner_(pool.inner),
        planes_(planes) {}

  Tile best() const {
    Tile best = {};
    double least = std::numeric_limits<double>::infinity();
    for (int32_t lanes = lanes_at_most(); lanes > 0; lanes /= 2) {
      for (int32_t t = t_;; t = ceil_div(t, 2)) {
        for (int32_t w = round_up(w_, kStep);; w = round_up(ceil_div(w, 2), kStep)) {
          const Tile tile = with_most_rows(t, w, lanes);
          const double its = tile.h > 0 ? cost(tile) : least;
          if (its < least) {
            best = tile;
            least = its;
          }
          if (w == kStep) break;
        }
        if (t == 1) break;
      }
      if (best.h > 0) break;  // fewer lanes only where nothing fits
    }
    return best;
  }

 private:
  static int32_t round_up(int32_t n, int32_t to) { return ceil_div(n, to) * to; }

  // Up to 32 bytes of float32, 16 of the 16-bit types. With longer lines a tile would hold fewer windows, and more of
  // them would lie over two tiles.
  int32_t lanes_at_most() const {
    if (Kind::kAlongW) return 1;
    int32_t lanes = 1;
    while (lanes < (Kind::kLanes == 1 ? 8 : 4) && 2 * lanes * Kind::kLanes <= inner_) lanes *= 2;
    return lanes;
  }

  // The tile with as many rows as memory allows, from the numbers of rows that make whole runs of windows.
  Tile with_most_rows(int32_t t, int32_t w, int32_t lanes) const {
    Tile tile = {};
    for (int32_t rows = round_up(h_ + kRowsAround, Kind::kH); rows > kRowsAround; rows -= Kind::kH) {
      tile = with(t, min_of(rows - kRowsAround, h_), w, lanes);
      const int64_t bytes = tile.bytes(Kind::kLanes);
      if (bytes <= kTileBytes) return tile;
      const int32_t fitting = static_cast<int32_t>(kTileBytes * tile.windows_h / bytes);
      rows = min_of(rows, round_up(fitting, Kind::kH) + Kind::kH);
    }
    return {};
  }

  Tile with(int32_t t, int32_t h, int32_t w, int32_t lanes) const {
    Tile tile = {};
    tile.t = t;
    tile.h = h;
    tile.w = w;
    tile.lanes = lanes;
    tile.windows_t = t + AlongT::kBefore + AlongT::kAfter;
    const int32_t runs_h = ceil_div(h + kRowsAround, Kind::kH),
                  runs_w = ceil_div(Kind::kLead + w + W::kAfter, Kind::kW);
    const int32_t cell_runs_h = ceil_div(h, Kind::kH), cell_runs_w = ceil_div(w, Kind::kW);
    // The last run of cells may read windows that nobody writes, for positions beyond the tile.
    tile.windows_h = max_of(runs_h * Kind::kH, cell_runs_h * Kind::kH + kRowsAround);
    tile.windows_w = max_of(runs_w * Kind::kW, Kind::kLead + cell_runs_w * Kind::kW + W::kAfter);
    const auto by = [](int32_t n) { return Divider<int32_t>(n); };
    tile.window_runs = {by(1), by(tile.windows_t), by(runs_h), by(runs_w), by(lanes)};
    tile.cell_runs = {by(1), by(t), by(cell_runs_h), by(cell_runs_w), by(lanes)};
    tile.window_run_count = tile.windows_t * runs_h * runs_w * lanes;
    tile.cell_run_count = t * cell_runs_h * cell_runs_w * lanes;
    return tile;
  }

  // The cost of all tiles, roughly in instructions. The numbers were read from the machine code.
  double cost(const Tile& tile) const {
    constexpr int V = Kind::kLanes, kTaps = AlongT::kKernel * Kind::kRows * Kind::kColumns,
                  kPositions = AlongT::kStride * Kind::kCellRows * Kind::kCellColumns,
                  kWindowsOver = (1 + AlongT::kBefore + AlongT::kAfter) * (Kind::kH + kRowsAround) *
                                 (Kind::kW + W::kBefore + W::kAfter);
    constexpr double kWindowRun = 90 + V * (9 * kTaps + 40 * Kind::kH * Kind::kW),
                     kCellRun = 90 + V * (14 * kPositions + 4 * kWindowsOver);
    const int32_t tiles_t = ceil_div(t_, tile.t);
    const double tiles = static_cast<double>(planes_) * ceil_div(h_, tile.h) * ceil_div(w_, tile.w) *
                         ceil_div(inner_, tile.lanes * Kind::kLanes);
    // Windows before and after the input cost nothing.
    const double slabs = tiles_t - static_cast<double>(AlongT::kBefore + AlongT::kAfter) / tile.windows_t;
    // Fewer blocks than a GPU holds leave some of it idle.
    const double idle = max_of(1., kEnoughBlocks / (tiles * tiles_t));
    return idle * tiles * (slabs * tile.window_run_count * kWindowRun + tiles_t * tile.cell_run_count * kCellRun);
  }

  static constexpr double kEnoughBlocks = 400;
  static constexpr int32_t kRowsAround = H::kBefore + H::kAfter;
  static constexpr int32_t kStep = Kind::kAtOnce ? Kind::kW : 1;  // of a tile's width

  const int32_t t_, h_, w_, inner_;
  const int64_t planes_;
};

}  // namespace softpool3d::cuda
