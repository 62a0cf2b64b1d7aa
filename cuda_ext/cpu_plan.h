// What is known of a tile before its numbers are read: which windows and inputs it needs, how its rows are read, and
// where their sums lie in scratch memory.

#pragma once

#include "cpu_call.h"
#include "cpu_vector.h"
#include "window.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace softpool3d {
namespace SOFTPOOL_LEVEL {

SOFTPOOL_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// --- windows and inputs along an axis --------------------------------------------------------------------------------

// Where window `o` would begin without dilation. This grows with o; window(o).begin need not.
SOFTPOOL_INLINE int64_t start(const Axis<int64_t>& axis, int64_t o) {
  const int64_t first = axis.kernel == 0 ? o * axis.size / axis.out : o * axis.stride - axis.padding;
  return min_of(max_of(first, int64_t{0}), axis.size);
}

// The inputs in the windows of `outputs`.
SOFTPOOL_INLINE Span inputs_of(const Axis<int64_t>& axis, Span outputs) {
  return {start(axis, outputs.begin), axis.window(outputs.end - 1).end};
}

// The inputs whose gradient is computed with `outputs`. Every input belongs to some outputs, even if no window holds
// it.
SOFTPOOL_INLINE Span owned_inputs(const Axis<int64_t>& axis, Span outputs) {
  return {outputs.begin == 0 ? 0 : start(axis, outputs.begin),
          outputs.end == axis.out ? axis.size : start(axis, outputs.end)};
}

// `outputs`, and all others whose windows hold inputs that `outputs` own.
SOFTPOOL_INLINE Span needed_outputs(const Axis<int64_t>& axis, Span outputs) {
  const Span inputs = owned_inputs(axis, outputs);
  if (inputs.size() <= 0) return outputs;
  const auto first = axis.windows_over(inputs.begin), last = axis.windows_over(inputs.end - 1);
  return {min_of(outputs.begin, first.begin), max_of(outputs.end, last.end)};
}

// Those of the outputs `need` whose windows span input `i`.
SOFTPOOL_INLINE Span needed_over(const Axis<int64_t>& axis, Span need, int64_t i) {
  const auto over = axis.windows_over(i);
  return {max_of(over.begin, need.begin), min_of(over.end, need.end)};
}

SOFTPOOL_INLINE bool disjoint_rows(const Axis<int64_t>& axis) { return axis.disjoint() && axis.dilation == 1; }

// --- how a row is read -----------------------------------------------------------------------------------------------

enum class Reading {
  columns,   // as numbers, summed column by column, then along W: cpu_columns.h
  wide,      // each window, wider than vectors, by itself: cpu_wide.h
  channels,  // each window by itself, in vectors of channels: cpu_channels.h
};

SOFTPOOL_INLINE Reading reading_of(const Call& call) {
  if (call.channels_last && !call.in_rows) return Reading::channels;
  return call.geometry.w.wide() ? Reading::wide : Reading::columns;
}

// --- scratch memory --------------------------------------------------------------------------------------------------

// Hands out scratch memory in whole cache lines. Without memory it counts only.
class Scratch {
 public:
  explicit Scratch(char* memory) : memory_(memory) {}

  template <class U>
  U* take(int64_t n) {
    const size_t bytes = n * sizeof(U);
    char* p = memory_ ? memory_ + at_ : nullptr;
    at_ += (bytes + 63) / 64 * 64;
#ifdef __SANITIZE_ADDRESS__  // a moat, so that a step from one buffer into the next is seen
    at_ += 64;
    if (p) __asan_poison_memory_region(p + bytes, memory_ + at_ - (p + bytes));
#endif
    return reinterpret_cast<U*>(p);
  }

  size_t bytes() const { return at_; }

 private:
  char* memory_;
  size_t at_ = 0;
};

// Where the sums of one row lie: weights, moments and, backward, squares.
template <class Acc>
struct RowSums {
  Acc* of[3];
  SOFTPOOL_INLINE Acc* operator[](int s) const { return of[s]; }
};

template <class Acc>
void fill_zeros(Acc* p, int64_t n) {  // all buffers are whole vectors
  for (int64_t i = 0; i < n; i += Vec<Acc>::lanes) store(p + i, typename Vec<Acc>::type{});
}

// --- the plan --------------------------------------------------------------------------------------------------------

template <class T, class Acc>
class Plan {
  static constexpr int lanes = Vec<Acc>::lanes;

 public:
  // With scratch == nullptr only bytes() may be asked for.
  Plan(const Call& of_call, const Tile& of_tile, char* scratch)
      : call(of_call),
        tile(of_tile),
        reading(reading_of(of_call)),
        direct(disjoint_rows(call.geometry.t) && disjoint_rows(call.geometry.h)),
        backward(call.backward),
        beta(static_cast<const Acc*>(call.beta) + tile.c.begin),
        scale(static_cast<const Acc*>(call.scale) + tile.c.begin),
        inverse_limit(static_cast<const Acc*>(call.inverse_limit) + tile.c.begin),
        channels(call.channels_last ? tile.c.size() : 1),
        inner(reading == Reading::columns ? channels : 1),
        need_t(tile.t),
        need_h(tile.h),
        need_w(tile.w) {
    const auto& g = call.geometry;
    if (backward) {
      own_w = owned_inputs(g.w, tile.w);
      need_w = needed_outputs(g.w, tile.w);
      if (!direct) need_t = needed_outputs(g.t, tile.t), need_h = needed_outputs(g.h, tile.h);
    }
    length = need_w.size() * channels;
    const bool one_piece = !call.channels_last || channels == call.y_stride[4];
    pieces = one_piece ? 1 : need_w.size();
    piece = one_piece ? length : channels;
    lay_columns(g.w);
    pitch_ = lead_ + round_up(length, lanes) + lanes;
    rows = direct ? batch : need_t.size() * need_h.size();
    take(scratch);
  }

  size_t bytes() const { return bytes_; }

  // The sums of row i of a batch, where they are not row i of outputs themselves, and those of row r of outputs.
  Acc* row(int s, int64_t i) const { return row_[s] + i * pitch_ + lead_; }
  Acc* sum(int s, int64_t r) const { return sum_[s] + r * pitch_ + lead_; }
  RowSums<Acc> row(int64_t i) const { return {row(0, i), row(1, i), backward ? row(2, i) : nullptr}; }
  RowSums<Acc> sum(int64_t r) const { return {sum(0, r), sum(1, r), backward ? sum(2, r) : nullptr}; }
  // Where row i of a batch is summed to.
  Acc* target(int s, int64_t i) const { return direct ? sum(s, i) : row(s, i); }

  // The columns of row i of a batch; what is in coefficient[s] is laid out like them.
  Acc* columns_of(Acc* const* buffers, int s, int64_t i) const { return buffers[s] + i * column_pitch; }

  void clear_all() const {
    for (int s = 0; s < buffers(); ++s) {
      fill_zeros(column[s], batch * column_pitch);
      if (lead_) fill_zeros(row_[s], batch * pitch_), fill_zeros(sum_[s], rows * pitch_);
    }
  }
  void clear_sums() const {
    for (int s = 0; s < sums(); ++s) fill_zeros(sum_[s], rows * pitch_);
    for (int64_t r = 0; r < rows; ++r) bad[r] = false;
  }

  // Weights, moments and, for beta's gradient, squares.
  int sums() const { return call.beta_grad ? 3 : 2; }

  const T* x_row(int64_t t, int64_t h) const {
    const int64_t* s = call.x_stride;
    return static_cast<const T*>(call.x) + tile.n * s[0] + tile.c.begin * s[1] + t * s[2] + h * s[3];
  }
  // Of the first needed window in a row of outputs.
  int64_t y_offset(int64_t to, int64_t ho) const {
    const int64_t* s = call.y_stride;
    return tile.n * s[0] + tile.c.begin * s[1] + to * s[2] + ho * s[3] + need_w.begin * s[4];
  }
  T* dx_row(int64_t t, int64_t h) const {
    const int64_t* s = call.dx_stride;
    return static_cast<T*>(call.result) + tile.n * s[0] + tile.c.begin * s[1] + t * s[2] + h * s[3] +
           own_w.begin * s[4];
  }

  // Of a window and a channel: where it is in a row of outputs, and in a row of sums.
  int64_t y_index(int64_t wo, int64_t c) const { return (wo - need_w.begin) * call.y_stride[4] + c; }
  int64_t sum_index(int64_t wo, int64_t c) const { return (wo - need_w.begin) * channels + c; }

  bool owns(int64_t to, int64_t ho) const {
    return to >= tile.t.begin && to < tile.t.end && ho >= tile.h.begin && ho < tile.h.end;
  }

  const Call& call;
  const Tile& tile;
  const Reading reading;
  const bool direct;  // no two windows share a row of inputs
  const bool backward;
  const Acc *const beta, *const scale, *const inverse_limit;  // of the tile's channels
  const int64_t channels;  // in a row; 1 where contiguous
  const int64_t inner;     // numbers at each position of a row of numbers

  Span need_t, need_h, need_w;  // the outputs that are computed
  Span own_w{0, 0};             // the inputs whose gradient is
  int64_t length;               // of a row of sums
  // In y, a row of outputs lies in one piece unless the tile has some of the channels only.
  int64_t pieces, piece;

  int64_t first_column;      // of the first window, before the row where there is padding
  Span columns;              // those inside of the input; the others are zero
  int64_t column_pitch = 0;  // 0: windows are columns, or there are none
  int64_t batch = 1;         // rows that go through each step together, at most kMostRows
  int64_t rows;              // of outputs, whose sums are kept

  Acc *column[3] = {}, *coefficient[2];
  Acc* line;         // the gradient of a row of inputs to which something will be added
  uint8_t* bad;      // of each row of outputs: by the definition
  const T** inputs;  // rows of inputs to be summed
  static constexpr int64_t kMostRows = 8;

 private:
  void lay_columns(const Axis<int64_t>& w) {
    const bool identity = w.kernel == 1 && w.stride == 1;  // padding is at most half of the kernel: none
    const bool apart = reading == Reading::columns && !identity;
    first_column = need_w.begin * w.stride - w.padding;
    const int64_t span = (need_w.size() - 1) * w.stride + (w.kernel - 1) * w.dilation + 1;
    columns = {max_of(first_column, int64_t{0}), min_of(first_column + span, w.size)};
    // Inputs after the last window get a gradient (0) too, so their range has to be known.
    columns.end = max_of(columns.end, own_w.end);
    if (!apart) return;
    const int64_t outputs = inner == 1 ? round_up(need_w.size(), lanes) + lanes : need_w.size();
    const int64_t reach = outputs * w.stride + w.kernel * w.dilation;
    column_pitch = round_up(max_of(reach, own_w.end - first_column) * inner, lanes) + 2 * lanes;
    // Zeros before a row of sums, which spread() reads.
    lead_ = backward && inner == 1 ? round_up(w.kernel * w.dilation, lanes) : 0;
    batch = max_of(int64_t{1}, min_of(kMostRows, 2048 / (columns.size() * inner)));
  }

  int buffers() const { return backward ? 3 : 2; }

  void take(char* memory) {
    const auto& g = call.geometry;
    Scratch scratch(memory);
    for (int s = 0; s < buffers(); ++s) {
      row_[s] = scratch.take<Acc>(batch * pitch_);
      sum_[s] = scratch.take<Acc>(rows * pitch_);
      column[s] = scratch.take<Acc>(batch * column_pitch);
    }
    for (int s = 0; s < 2; ++s) coefficient[s] = scratch.take<Acc>(backward ? batch * column_pitch : 0);
    line = scratch.take<Acc>(backward ? own_w.size() * channels + lanes : 0);
    bad = scratch.take<uint8_t>(rows);
    inputs = scratch.take<const T*>(direct ? min_of(g.t.kernel, g.t.size) * min_of(g.h.kernel, g.h.size) : 1);
    bytes_ = scratch.bytes();
  }

  int64_t lead_ = 0, pitch_;
  Acc *row_[3] = {}, *sum_[3] = {};
  size_t bytes_;
};

}  // namespace SOFTPOOL_LEVEL
}  // namespace softpool3d
