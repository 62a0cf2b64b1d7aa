// Small planes. Rows much shorter than vectors waste most of their lanes. Planes of such rows are transposed, as many
// channels at a time as a vector has lanes, and pooled as channels_last.

#pragma once

#include "cpu_channels.h"
#include "cpu_rows.h"

namespace softpool3d {
namespace SOFTPOOL_LEVEL {

// from[channel * stride + position] -> to[position * lanes + channel], channels beyond `channels` as 0.
template <class T, class Acc>
void to_channels_last(const T* from, int64_t stride, int64_t channels, int64_t positions, Acc* to) {
  constexpr int lanes = Vec<Acc>::lanes;
  constexpr int64_t ahead = 2048 / sizeof(T);
  for (int64_t p = 0; p < positions; p += lanes) {
    const int rest = static_cast<int>(min_of(positions - p, int64_t{lanes}));
    // the hardware does not follow so many planes at once; past their ends, prefetch those of the next tile
    const T* next = p + ahead < positions ? from + p + ahead : from + lanes * stride + p + ahead - positions;
    typename Vec<Acc>::type v[lanes];
    for (int c = 0; c < lanes; ++c) {
      __builtin_prefetch(next + c * stride);
      if (c >= channels) v[c] = typename Vec<Acc>::type{};
      else v[c] = rest == lanes ? load(from + c * stride + p) : load_part(from + c * stride + p, rest);
    }
    transpose(v);
    for (int i = 0; i < rest; ++i) store(to + (p + i) * lanes, v[i]);
  }
}

// The inverse of to_channels_last.
template <class T, class Acc>
void from_channels_last(const Acc* from, int64_t stride, int64_t channels, int64_t positions, T* to) {
  constexpr int lanes = Vec<Acc>::lanes;
  for (int64_t p = 0; p < positions; p += lanes) {
    const int rest = static_cast<int>(min_of(positions - p, int64_t{lanes}));
    typename Vec<Acc>::type v[lanes];
    for (int i = 0; i < lanes; ++i) v[i] = i < rest ? load(from + (p + i) * lanes) : typename Vec<Acc>::type{};
    transpose(v);
    for (int c = 0; c < channels; ++c)
      rest == lanes ? store(to + c * stride + p, v[c]) : store_part(to + c * stride + p, v[c], rest);
  }
}

// Pools a tile of whole small planes.
template <class T, class Acc>
class SmallPlanes {
  static constexpr int lanes = Vec<Acc>::lanes;

 public:
  // With scratch == nullptr only bytes() may be asked for.
  SmallPlanes(const Call& call, const Tile& tile, char* scratch)
      : call_(call),
        tile_(tile),
        inputs_(call.geometry.t.size * call.geometry.h.size * call.geometry.w.size),
        outputs_(call.geometry.t.out * call.geometry.h.out * call.geometry.w.out),
        x_(reinterpret_cast<Acc*>(scratch)),
        y_(scratch ? x_ + inputs_ * lanes : nullptr),
        inner_call_(transposed_call()),
        inner_tile_{0, {tile.c.begin, tile.c.begin + lanes}, tile.t, tile.h, tile.w},
        plan_(inner_call_, inner_tile_, scratch ? scratch + planes_bytes() : nullptr) {}

  size_t bytes() const { return planes_bytes() + plan_.bytes(); }

  void run(double* beta_grad) {
    const int64_t channels = tile_.c.size();
    const auto at = [&](const int64_t* stride) { return tile_.n * stride[0] + tile_.c.begin * stride[1]; };
    const int64_t x_at = at(call_.x_stride), y_at = at(call_.y_stride), dx_at = at(call_.dx_stride);
    to_channels_last(static_cast<const T*>(call_.x) + x_at, call_.x_stride[1], channels, inputs_, x_);
    if (call_.backward)
      to_channels_last(static_cast<const T*>(call_.grad) + y_at, call_.y_stride[1], channels, outputs_, y_);
    double beta_grads[lanes] = {};
    Rows<Acc, Acc, Channels>(plan_, beta_grads).run();
    for (int64_t c = 0; call_.beta_grad && c < channels; ++c) beta_grad[c] += beta_grads[c];
    T* const result = static_cast<T*>(call_.result);
    if (!call_.backward) from_channels_last(y_, call_.y_stride[1], channels, outputs_, result + y_at);
    else if (call_.input_grad) from_channels_last(x_, call_.dx_stride[1], channels, inputs_, result + dx_at);
  }

 private:
  size_t planes_bytes() const { return static_cast<size_t>((inputs_ + outputs_) * lanes) * sizeof(Acc); }

  Call transposed_call() const {
    const auto& g = call_.geometry;
    Call inner = call_;
    inner.channels_last = true;
    const auto lay_out = [](int64_t* stride, int64_t h, int64_t w) {
      stride[0] = stride[1] = 0;  // the one tile begins where the memory does
      stride[2] = h * w * lanes, stride[3] = w * lanes, stride[4] = lanes;
    };
    lay_out(inner.x_stride, g.h.size, g.w.size);
    lay_out(inner.dx_stride, g.h.size, g.w.size);
    lay_out(inner.y_stride, g.h.out, g.w.out);
    inner.x = x_;
    inner.grad = y_;
    // A row of dL/dx is written when its row of x has been read for the last time.
    inner.result = call_.backward ? x_ : y_;
    return inner;
  }

  const Call& call_;
  const Tile& tile_;
  const int64_t inputs_, outputs_;  // of a plane
  Acc *const x_, *const y_;         // transposed; x becomes dL/dx, and y is dL/dy
  const Call inner_call_;
  const Tile inner_tile_;
  const Plan<Acc, Acc> plan_;
};

}  // namespace SOFTPOOL_LEVEL
}  // namespace softpool3d
