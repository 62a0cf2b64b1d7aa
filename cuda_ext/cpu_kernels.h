// The CPU kernels, compiled once for each instruction set by cpu_{portable,avx2,avx512}.cpp.
//
// Weights without the maximum. As long as |beta x| stays below some 40, exp(beta x) itself is a float of full relative
// precision, and so are its sums: nothing has to be subtracted. Then one exponential per input element serves all the
// windows that hold it, and windows become sums of sums. For a row of outputs, with u = g / S and v = u y,
//
//     S = sum e,   M = sum e x,   y = M / S        where e = exp(beta x)
//     dL/dx = e (A + beta (A x - B))               where A, B = sum of u, v over the windows that hold x
//
// A row of inputs that leaves that range marks the rows of outputs it touches. Those are computed by the definition,
// with the maximum subtracted: vectors of windows where values are finite and not very large, else one by one with
// window.h.
//
// Rows. In a contiguous tensor a row is W numbers of one channel: a window's rows are summed column by column, then
// along W. In channels_last a row is W positions of several channels, summed in vectors of channels. With `in_rows` it
// is taken as numbers again, W times all channels of them, and summed column by column as if contiguous: this fills
// vectors whatever the number of channels.
//
// Where no two windows share a row of inputs, a row of outputs is made at once from all of its rows (`direct`). Else
// each row is summed along W once, and added to all the rows of outputs that it belongs to. Several rows go through
// each step together, so that what one step has stored is there when the next one loads it with another alignment.
//
// Small planes. Rows much shorter than vectors waste most of their lanes. Planes of such rows are transposed, as many
// channels at a time as a vector has lanes, and pooled as channels_last.

#include "cpu_call.h"
#include "cpu_vector.h"
#include "window.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace softpool3d {
namespace SOFTPOOL_LEVEL {

// Prefetches what lies 2 KB after p: the hardware does not follow rows in several places by itself.
template <class T>
SOFTPOOL_INLINE void prefetch(const T* p) {
  __builtin_prefetch(p + 2048 / sizeof(T));
}

SOFTPOOL_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

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

enum class Along { identity, unit, pairs, strided, wide };  // how windows lie along W

SOFTPOOL_INLINE Along along(const Axis<int64_t>& w) {
  if (w.wide()) return Along::wide;
  if (w.kernel == 1 && w.stride == 1) return Along::identity;  // padding is at most half of the kernel: none
  return w.stride == 1 ? Along::unit : w.stride == 2 ? Along::pairs : Along::strided;
}

template <class T, class Acc>
class Worker {
  using V = typename Vec<Acc>::type;
  using I = typename Vec<Acc>::ints;
  static constexpr int lanes = Vec<Acc>::lanes;
  using Lanes = std::make_integer_sequence<int, lanes>;

 public:
  Worker(const Call& call, const Tile& tile, char* scratch) : call_(call), tile_(tile), scratch_(scratch) {
    const auto& g = call.geometry;
    direct_ = disjoint_rows(g.t) && disjoint_rows(g.h);
    channels_ = call.channels_last ? tile.c.size() : 1;
    need_t_ = tile.t, need_h_ = tile.h, need_w_ = tile.w;
    own_w_ = {0, 0};
    if (call.backward) {
      own_w_ = owned_inputs(g.w, tile.w);
      need_w_ = needed_outputs(g.w, tile.w);
      if (!direct_) need_t_ = needed_outputs(g.t, tile.t), need_h_ = needed_outputs(g.h, tile.h);
    }
    along_ = along(g.w);
    // Rows of numbers, `inner_` of them at each position.
    in_rows_ = !call.channels_last || call.in_rows;
    inner_ = in_rows_ ? channels_ : 1;
    length_ = need_w_.size() * channels_;
    // In y, a row of outputs lies in one piece unless the tile has some of the channels only.
    const bool one_piece = !call.channels_last || channels_ == call.y_stride[4];
    pieces_ = one_piece ? 1 : need_w_.size();
    piece_ = one_piece ? length_ : channels_;

    // Columns of a row of numbers, zero outside the input.
    const bool columns = in_rows_ && along_ != Along::wide && along_ != Along::identity;
    first_column_ = need_w_.begin * g.w.stride - g.w.padding;
    const int64_t span = (need_w_.size() - 1) * g.w.stride + (g.w.kernel - 1) * g.w.dilation + 1;
    columns_ = {max_of(first_column_, int64_t{0}), min_of(first_column_ + span, g.w.size)};
    // Inputs after the last window get a gradient (0) too, so their range has to be known.
    columns_.end = max_of(columns_.end, own_w_.end);
    const int64_t outputs = inner_ == 1 ? round_up(need_w_.size(), lanes) + lanes : need_w_.size();
    const int64_t reach = outputs * g.w.stride + g.w.kernel * g.w.dilation;
    const int64_t all_columns = max_of(reach, own_w_.end - first_column_) * inner_;
    column_pitch_ = columns ? round_up(all_columns, lanes) + 2 * lanes : 0;

    // Zeros before a row of sums, which coefficients() reads.
    lead_ = columns && call.backward && inner_ == 1 ? round_up(g.w.kernel * g.w.dilation, lanes) : 0;
    pitch_ = lead_ + round_up(length_, lanes) + lanes;

    batch_ = columns ? max_of(int64_t{1}, min_of(int64_t{8}, 2048 / (columns_.size() * inner_))) : 1;
    sums_ = call.backward ? 3 : 2;
    const int64_t rows = direct_ ? batch_ : need_t_.size() * need_h_.size();
    const int64_t row_pointers = direct_ ? min_of(g.t.kernel, g.t.size) * min_of(g.h.kernel, g.h.size) : 1;
    size_t at = 0;
    const auto take = [&](size_t bytes) {
      char* p = scratch ? scratch + at : nullptr;
      at += (bytes + 63) / 64 * 64;
#ifdef __SANITIZE_ADDRESS__  // a moat, so that a step from one buffer into the next is seen
      at += 64;
      if (p) __asan_poison_memory_region(p + bytes, scratch + at - (p + bytes));
#endif
      return p;
    };
    for (int s = 0; s < sums_; ++s) {
      row_[s] = reinterpret_cast<Acc*>(take(batch_ * pitch_ * sizeof(Acc)));
      sum_[s] = reinterpret_cast<Acc*>(take(rows * pitch_ * sizeof(Acc)));
      column_[s] = reinterpret_cast<Acc*>(take(batch_ * column_pitch_ * sizeof(Acc)));
    }
    for (int s = 0; s < 2; ++s)
      coefficient_[s] = reinterpret_cast<Acc*>(take(call.backward ? batch_ * column_pitch_ * sizeof(Acc) : 0));
    line_ = reinterpret_cast<Acc*>(take(call.backward ? (own_w_.size() * channels_ + lanes) * sizeof(Acc) : 0));
    bad_ = reinterpret_cast<uint8_t*>(take(rows));
    pointers_ = reinterpret_cast<const T**>(take(row_pointers * sizeof(T*)));
    bytes_ = at;
    rows_ = rows;
  }

  size_t bytes() const { return bytes_; }

  void run(double* beta_grad) {
    beta_grad_ = beta_grad;
    for (int s = 0; s < sums_; ++s) {
      fill(column_[s], batch_ * column_pitch_);
      if (lead_) fill(row_[s], batch_ * pitch_), fill(sum_[s], rows_ * pitch_);
    }
    direct_ ? run_direct() : run_shared();
  }

 private:
  static void fill(Acc* p, int64_t n) {  // with zeros; all buffers are whole vectors
    for (int64_t i = 0; i < n; i += lanes) store(p + i, V{});
  }

  Acc* row(int s, int64_t i) const { return row_[s] + i * pitch_ + lead_; }
  Acc* sum(int s, int64_t i) const { return sum_[s] + i * pitch_ + lead_; }

  static bool disjoint_rows(const Axis<int64_t>& axis) { return axis.disjoint() && axis.dilation == 1; }

  const T* x_row(int64_t t, int64_t h) const {
    const int64_t* s = call_.x_stride;
    return static_cast<const T*>(call_.x) + tile_.n * s[0] + tile_.c.begin * s[1] + t * s[2] + h * s[3];
  }
  int64_t y_offset(int64_t to, int64_t ho, int64_t wo) const {
    const int64_t* s = call_.y_stride;
    return tile_.n * s[0] + tile_.c.begin * s[1] + to * s[2] + ho * s[3] + wo * s[4];
  }
  T* dx_row(int64_t t, int64_t h) const {
    const int64_t* s = call_.dx_stride;
    return static_cast<T*>(call_.result) + tile_.n * s[0] + tile_.c.begin * s[1] + t * s[2] + h * s[3] +
           own_w_.begin * s[4];
  }
  const Acc* beta() const { return static_cast<const Acc*>(call_.beta) + tile_.c.begin; }
  const Acc* scale() const { return static_cast<const Acc*>(call_.scale) + tile_.c.begin; }
  const Acc* inverse_limit() const { return static_cast<const Acc*>(call_.inverse_limit) + tile_.c.begin; }

  // --- which rows ----------------------------------------------------------------------------------------------------

  void run_direct() {
    const auto& g = call_.geometry;
    for (int64_t to = tile_.t.begin; to < tile_.t.end; ++to) {
      const auto wt = g.t.window(to);
      const Span own_t = owned_inputs(g.t, {to, to + 1});
      for (int64_t first = tile_.h.begin; first < tile_.h.end; first += batch_) {
        const int64_t rows = min_of(batch_, tile_.h.end - first);
        for (int64_t i = 0; i < rows; ++i) {
          const auto wh = g.h.window(first + i);
          int64_t n = 0;
          for (int64_t t = wt.begin; t < wt.end; ++t)
            for (int64_t h = wh.begin; h < wh.end; ++h) pointers_[n++] = x_row(t, h);
          sum_rows(n, i, sum_);
        }
        gather_rows(rows, sum_);
        for (int64_t i = 0; i < rows; ++i) {
          bad_[i] = is_bad(i);
          finish(to, first + i, i);
        }
        if (!call_.backward || !call_.input_grad) continue;
        for (int64_t i = 0; i < rows; ++i)
          if (!bad_[i]) coefficients(sum(0, i), sum(1, i), i);
        for (int64_t i = 0; i < rows; ++i) {
          const auto wh = g.h.window(first + i);
          const Span own_h = owned_inputs(g.h, {first + i, first + i + 1});
          for (int64_t t = own_t.begin; t < own_t.end; ++t)
            for (int64_t h = own_h.begin; h < own_h.end; ++h) {
              const bool inside = t >= wt.begin && t < wt.end && h >= wh.begin && h < wh.end;
              const bool bad = inside && bad_[i];
              gradient_row(x_row(t, h), dx_row(t, h), inside && !bad ? i : -1, bad);
              if (!bad) continue;
              add_exactly(x_row(t, h), i);
              store_line(dx_row(t, h));
            }
        }
      }
    }
  }

  void run_shared() {
    const auto& g = call_.geometry;
    const int used = sums_in_use();
    for (int s = 0; s < used; ++s) fill(sum_[s], rows_ * pitch_);
    for (int64_t r = 0; r < rows_; ++r) bad_[r] = 0;

    const Span in_t = inputs_of(g.t, need_t_), in_h = inputs_of(g.h, need_h_);
    for (int64_t t = in_t.begin; t < in_t.end; ++t) {
      const Span ts = needed_over(g.t, need_t_, t);
      if (ts.size() <= 0) continue;
      for (int64_t first = in_h.begin; first < in_h.end; first += batch_) {
        const int64_t rows = min_of(batch_, in_h.end - first);
        for (int64_t i = 0; i < rows; ++i) {
          pointers_[0] = x_row(t, first + i);
          sum_rows(1, i, row_);
        }
        gather_rows(rows, row_);
        for (int64_t i = 0; i < rows; ++i) {
          const bool bad = is_bad(i);
          each_window(ts, t, first + i, [&](int64_t r) {
            bad_[r] |= bad;
            for (int s = 0; s < used; ++s) add(row(s, i), sum(s, r));
          });
        }
      }
    }

    for (int64_t to = need_t_.begin; to < need_t_.end; ++to)
      for (int64_t ho = need_h_.begin; ho < need_h_.end; ++ho) finish(to, ho, index(to, ho));
    if (!call_.backward || !call_.input_grad) return;

    const Span own_t = owned_inputs(g.t, tile_.t), own_h = owned_inputs(g.h, tile_.h);
    for (int64_t t = own_t.begin; t < own_t.end; ++t) {
      const Span ts = needed_over(g.t, need_t_, t);
      for (int64_t first = own_h.begin; first < own_h.end; first += batch_) {
        const int64_t rows = min_of(batch_, own_h.end - first);
        bool bad[8];
        int64_t good[8];
        for (int64_t i = 0; i < rows; ++i) {
          bad[i] = false, good[i] = 0;
          each_window(ts, t, first + i, [&](int64_t r) {
            if (bad_[r]) {
              bad[i] = true;
              return;
            }
            for (int s = 0; s < 2; ++s) good[i] ? add(sum(s, r), row(s, i)) : copy(sum(s, r), row(s, i));
            ++good[i];
          });
        }
        for (int64_t i = 0; i < rows; ++i)
          if (good[i]) coefficients(row(0, i), row(1, i), i);
        for (int64_t i = 0; i < rows; ++i) {
          const T* x = x_row(t, first + i);
          T* dx = dx_row(t, first + i);
          gradient_row(x, dx, good[i] ? i : -1, bad[i]);
          if (!bad[i]) continue;
          each_window(ts, t, first + i, [&](int64_t r) {
            if (bad_[r]) add_exactly(x, r);
          });
          store_line(dx);
        }
      }
    }
  }

  void add(const Acc* from, Acc* to) const {
    for (int64_t i = 0; i < length_; i += lanes) store(to + i, load(to + i) + load(from + i));
  }
  void copy(const Acc* from, Acc* to) const {
    for (int64_t i = 0; i < length_; i += lanes) store(to + i, load(from + i));
  }

  // Weights, moments and, for beta's gradient, squares.
  int sums_in_use() const { return call_.beta_grad ? 3 : 2; }

  int64_t index(int64_t to, int64_t ho) const {
    return (to - need_t_.begin) * need_h_.size() + (ho - need_h_.begin);
  }

  static Span needed_over(const Axis<int64_t>& axis, Span need, int64_t i) {
    const auto over = axis.windows_over(i);
    return {max_of(over.begin, need.begin), min_of(over.end, need.end)};
  }

  // Calls f(index) for each needed row of outputs whose windows hold input row (t, h); `ts`: needed_over of t.
  template <class F>
  SOFTPOOL_INLINE void each_window(Span ts, int64_t t, int64_t h, const F& f) const {
    const auto& g = call_.geometry;
    const Span hs = needed_over(g.h, need_h_, h);
    for (int64_t to = ts.begin; to < ts.end; ++to) {
      if (!g.t.holds(to, t)) continue;
      for (int64_t ho = hs.begin; ho < hs.end; ++ho)
        if (g.h.holds(ho, h)) f(index(to, ho));
    }
  }

  // --- sums over rows ------------------------------------------------------------------------------------------------

  // Sums the `n` rows in pointers_: along W too, into row i of `out`, or column by column only, for gather_rows. Notes
  // how large the inputs are, for is_bad(i).
  void sum_rows(int64_t n, int64_t i, Acc* const* out) {
    if (!in_rows_) call_.beta_grad ? sum_channels<true>(n, i, out) : sum_channels<false>(n, i, out);
    else if (along_ == Along::wide) call_.beta_grad ? sum_wide<true>(n, i, out) : sum_wide<false>(n, i, out);
    else call_.beta_grad ? sum_columns<true>(n, i, out) : sum_columns<false>(n, i, out);
  }

  // Sums the columns of `rows` rows to windows along W.
  void gather_rows(int64_t rows, Acc* const* out) const {
    if (!column_pitch_) return;
    for (int64_t i = 0; i < rows; ++i)
      for (int s = 0; s < sums_in_use(); ++s)
        gather_columns(column_[s] + i * column_pitch_, out[s] + i * pitch_ + lead_);
  }

  // Whether row i leaves the range in which weights need no maximum; NaN does.
  bool is_bad(int64_t i) const {
    const Acc share = bit_cast<Acc>(largest_lane(largest_[i]));
    return !((in_rows_ ? share * *inverse_limit() : share) <= 1);
  }

  template <bool square>
  struct Sum {
    V weight{}, moment{}, squares{};
    SOFTPOOL_INLINE void add(V x, V scale) {
      const V e = exp2_bounded(x, scale), ex = e * x;
      weight += e;
      moment += ex;
      if (square) squares += ex * x;
    }
    SOFTPOOL_INLINE void add(const Sum& other) {
      weight += other.weight;
      moment += other.moment;
      if (square) squares += other.squares;
    }
  };

  // Contiguous: column by column, over up to four rows at a time.
  template <bool square>
  void sum_columns(int64_t n, int64_t i, Acc* const* out) {
    const bool in_place = along_ == Along::identity;
    Acc* to[3] = {nullptr, nullptr, nullptr};
    for (int s = 0; s < (square ? 3 : 2); ++s)
      to[s] = in_place ? out[s] + i * pitch_ : column_[s] + i * column_pitch_ + (columns_.begin - first_column_) * inner_;
    I largest{};
    if (n == 0) columns<0, square>(pointers_, true, to, largest);
    for (int64_t r = 0; r < n;) {
      const bool first = r == 0;
      const T* const* rows = pointers_ + r;
      if (n - r >= 4) columns<4, square>(rows, first, to, largest), r += 4;
      else if (n - r == 3) columns<3, square>(rows, first, to, largest), r += 3;
      else if (n - r == 2) columns<2, square>(rows, first, to, largest), r += 2;
      else columns<1, square>(rows, first, to, largest), r += 1;
    }
    if (!in_place) store(to[0] + columns_.size() * inner_, V{});  // load_part's zeros got weights of 1
    largest_[i] = largest;
  }

  template <int rows, bool square>
  SOFTPOOL_INLINE void columns(const T* const* row, bool first, Acc* const* to, I& largest) const {
    const V scale = splat<V>(*this->scale());
    const auto step = [&](int64_t i, auto load_x) SOFTPOOL_LAMBDA {
      Sum<square> sum;
      if (!first) {
        sum.weight = load(to[0] + i), sum.moment = load(to[1] + i);
        if (square) sum.squares = load(to[2] + i);
      }
      for (int r = 0; r < rows; ++r) {
        const T* p = row[r] + columns_.begin * inner_ + i;
        prefetch(p);
        const V x = load_x(p);
        largest = larger(largest, magnitude(x));
        sum.add(x, scale);
      }
      store(to[0] + i, sum.weight), store(to[1] + i, sum.moment);
      if (square) store(to[2] + i, sum.squares);
    };
    const int64_t size = columns_.size() * inner_;
    int64_t i = 0;
    for (; i + lanes <= size; i += lanes) step(i, [](const T* p) SOFTPOOL_LAMBDA { return load(p); });
    const int rest = static_cast<int>(size - i);
    if (rest > 0) step(i, [rest](const T* p) SOFTPOOL_LAMBDA { return load_part(p, rest); });
  }

  // out[o] = sum of column[o stride + tap dilation] over the taps.
  void gather_columns(const Acc* column, Acc* out) const {
    const auto& w = call_.geometry.w;
    const int64_t n = need_w_.size();
    if (inner_ > 1) {
      // What a last vector writes beyond its position is overwritten by the next position, or lies after the row.
      for (int64_t o = 0; o < n; ++o)
        for (int64_t c = 0; c < inner_; c += lanes) {
          V sum{};
          const Acc* from = column + o * w.stride * inner_ + c;
          for (int64_t k = 0; k < w.kernel; ++k, from += w.dilation * inner_) sum += load(from);
          store(out + o * inner_ + c, sum);
        }
      return;
    }
    if (along_ == Along::unit || along_ == Along::pairs) {
      for (int64_t o = 0; o < n; o += lanes) {
        V sum{};
        for (int64_t k = 0; k < w.kernel; ++k) {
          const Acc* from = column + o * w.stride + k * w.dilation;
          sum += along_ == Along::unit ? load(from) : even_lanes(load(from), load(from + lanes), Lanes{});
        }
        store(out + o, sum);
      }
      return;
    }
    for (int64_t o = 0; o < n; ++o) {
      Acc sum = 0;
      for (int64_t k = 0; k < w.kernel; ++k) sum += column[o * w.stride + k * w.dilation];
      out[o] = sum;
    }
  }

  // Contiguous, windows wider than vectors: each window along W by itself.
  template <bool square>
  void sum_wide(int64_t n, int64_t row, Acc* const* out) {
    const auto& w = call_.geometry.w;
    const V scale = splat<V>(*this->scale());
    I largest{};
    for (int64_t wo = need_w_.begin; wo < need_w_.end; ++wo) {
      const auto window = w.window(wo);
      Acc total[3] = {0, 0, 0};
      for (int64_t r = 0; r < n; ++r) {
        const T* x_row = pointers_[r];
        // In parts of some thousand numbers, so that rounding errors do not add up.
        for (int64_t part = window.begin; part < window.end; part += 2 * 256 * lanes) {
          const int64_t end = min_of(part + 2 * 256 * lanes, window.end);
          Sum<square> sum, odd;
          const auto step = [&](int64_t i, Sum<square>& into) SOFTPOOL_LAMBDA {
            prefetch(x_row + i);
            const V x = load(x_row + i);
            largest = larger(largest, magnitude(x));
            into.add(x, scale);
          };
          int64_t i = part;
          for (; i + 2 * lanes <= end; i += 2 * lanes) step(i, sum), step(i + lanes, odd);
          for (; i + lanes <= end; i += lanes) step(i, sum);
          sum.add(odd);
          total[0] += sum_of_lanes(sum.weight), total[1] += sum_of_lanes(sum.moment);
          if (square) total[2] += sum_of_lanes(sum.squares);
          if (i < end) {
            const int rest = static_cast<int>(end - i);
            const V x = load_part(x_row + i, rest);
            largest = larger(largest, magnitude(x));
            Sum<square> tail;
            tail.add(x, scale);
            for (int l = 0; l < rest; ++l) {
              total[0] += tail.weight[l], total[1] += tail.moment[l];
              if (square) total[2] += tail.squares[l];
            }
          }
        }
      }
      for (int s = 0; s < (square ? 3 : 2); ++s) out[s][row * pitch_ + wo - need_w_.begin] = total[s];
    }
    largest_[row] = largest;
  }

  // channels_last: each window along W, some vectors of channels at a time.
  template <bool square>
  void sum_channels(int64_t n, int64_t row, Acc* const* out) {
    constexpr int block = SOFTPOOL_AVX512 ? 4 : 2;  // as many vectors as there are registers for
    V over{};
    for (int64_t wo = need_w_.begin; wo < need_w_.end; ++wo) {
      const auto window = call_.w.windows[wo];
      Acc* to[3] = {nullptr, nullptr, nullptr};
      for (int s = 0; s < (square ? 3 : 2); ++s) to[s] = out[s] + row * pitch_ + (wo - need_w_.begin) * channels_;
      // In parts, so that rounding errors do not add up, and a part is still in the cache for the next channels.
      const int64_t length = max_of(int64_t{1}, 256 / max_of(n, int64_t{1})) * window.step;
      auto part = window;
      do {
        part.end = min_of(part.begin + length, window.end);
        const bool first = part.begin == window.begin;
        int64_t c = 0;
        for (; c + block * lanes <= channels_; c += block * lanes)
          channel_block<block, square>(n, c, part, first, to, over, [](const T* p) SOFTPOOL_LAMBDA { return load(p); });
        for (; c + lanes <= channels_; c += lanes)
          channel_block<1, square>(n, c, part, first, to, over, [](const T* p) SOFTPOOL_LAMBDA { return load(p); });
        const int rest = static_cast<int>(channels_ - c);
        if (rest > 0)
          channel_block<1, square>(n, c, part, first, to, over,
                                   [rest](const T* p) SOFTPOOL_LAMBDA { return load_part(p, rest); });
        part.begin += length;
      } while (part.begin < window.end);
    }
    largest_[row] = bit_cast<I>(over);
  }

  // What is stored beyond the channels is overwritten by the next window, or lies after the row.
  template <int block, bool square, class LoadX>
  SOFTPOOL_INLINE void channel_block(int64_t n, int64_t c, const Range<int64_t>& part, bool first, Acc* const* to,
                                     V& over, const LoadX& load_x) const {
    V scale[block];
    I largest[block] = {};
    Sum<square> sum[block];
    for (int b = 0; b < block; ++b) scale[b] = load(this->scale() + c + b * lanes);
    for (int64_t r = 0; r < n; ++r)
      for (int64_t w = part.begin; w < part.end; w += part.step) {
        const T* x_at = pointers_[r] + w * call_.x_stride[4] + c;
        for (int b = 0; b < block; ++b) {
          prefetch(x_at + b * lanes);
          const V x = load_x(x_at + b * lanes);
          largest[b] = larger(largest[b], magnitude(x));
          sum[b].add(x, scale[b]);
        }
      }
    for (int b = 0; b < block; ++b) {
      const V share = bit_cast<V>(largest[b]) * load(this->inverse_limit() + c + b * lanes);
      over = bit_cast<V>(larger(bit_cast<I>(over), bit_cast<I>(share)));
      const auto put = [&](Acc* p, V v) SOFTPOOL_LAMBDA { store(p, first ? v : load(p) + v); };
      const int64_t at = c + b * lanes;
      put(to[0] + at, sum[b].weight), put(to[1] + at, sum[b].moment);
      if (square) put(to[2] + at, sum[b].squares);
    }
  }

  // --- one row of outputs --------------------------------------------------------------------------------------------

  void finish(int64_t to, int64_t ho, int64_t r) {
    Acc* sum[3] = {this->sum(0, r), this->sum(1, r), call_.backward ? this->sum(2, r) : nullptr};
    if (call_.backward) {
      // A good row is left as u and v, for coefficients(); a bad one as g / S, (y - pivot) / 2 and the pivot, for
      // add_exactly().
      const bool owned = to >= tile_.t.begin && to < tile_.t.end && ho >= tile_.h.begin && ho < tile_.h.end;
      const T* g = static_cast<const T*>(call_.grad) + y_offset(to, ho, need_w_.begin);
      if (!bad_[r]) bad_[r] = finish_backward(g, sum, owned);
      if (bad_[r]) finish_backward_exactly(to, ho, g, sum, owned);
    } else {
      T* y = static_cast<T*>(call_.result) + y_offset(to, ho, need_w_.begin);
      bad_[r] ? finish_exactly(to, ho, y) : finish_forward(y, sum);
    }
  }

  // 1 / weight, 0 for an empty window.
  SOFTPOOL_INLINE static V inverse(V weight) {
    return weight == 0 ? V{} : Acc(1) / (weight == 0 ? splat<V>(Acc(1)) : weight);
  }

  void finish_forward(T* y, Acc* const* sum) const {
    for (int64_t p = 0; p < pieces_; ++p, y += call_.y_stride[4]) {
      const Acc *weight = sum[0] + p * piece_, *moment = sum[1] + p * piece_;
      int64_t i = 0;
      for (; i + lanes <= piece_; i += lanes) store(y + i, load(moment + i) * inverse(load(weight + i)));
      const int rest = static_cast<int>(piece_ - i);
      if (rest > 0) store_part(y + i, load(moment + i) * inverse(load(weight + i)), rest);
    }
  }

  // Makes u and v from the sums; returns true if they leave the range in which they are precise, or dL/dbeta does.
  bool finish_backward(const T* grad, Acc* const* sum, bool owned) {
    I largest{}, largest_g{};
    for (int64_t p = 0; p < pieces_; ++p) {
      const T* g = grad + p * call_.y_stride[4];
      const int64_t at = p * piece_;
      const auto step = [&](int64_t i, V gradient, V weight, V moment) SOFTPOOL_LAMBDA {
        const V inverse = this->inverse(weight);
        const V y = moment * inverse, u = gradient * inverse, v = u * y;
        largest = larger(largest, larger(magnitude(u), magnitude(v)));
        largest_g = larger(largest_g, magnitude(gradient));
        store(row(0, 0) + i, u), store(row(1, 0) + i, v);
      };
      int64_t i = 0;
      for (; i + lanes <= piece_; i += lanes) step(at + i, load(g + i), load(sum[0] + at + i), load(sum[1] + at + i));
      const int rest = static_cast<int>(piece_ - i);
      if (rest > 0)
        step(at + i, load_part(g + i, rest), load_part(sum[0] + at + i, rest), load_part(sum[1] + at + i, rest));
    }
    const Acc most = bit_cast<Acc>(largest_lane(largest)), most_g = bit_cast<Acc>(largest_lane(largest_g));
    if (!(most_g == 0 || (most > Acc(0x1p-60) && most < Acc(0x1p100)))) return true;

    if (call_.beta_grad && owned && !add_beta_gradient(grad, sum)) return true;
    for (int s = 0; s < 2; ++s)
      for (int64_t j = 0; j < length_; j += lanes) store(sum[s] + j, load(row(s, 0) + j));
    return false;
  }

  // Adds what the tile's own outputs of a row contribute to dL/dbeta. Returns false, with nothing added, if too few
  // digits are left of E[x^2] - y^2 in a channel.
  bool add_beta_gradient(const T* grad, Acc* const* sum) {
    constexpr double least = sizeof(Acc) == 8 ? 0x1p-30 : 0x1p-6;
    double gradient[kMostChannels], variance[kMostChannels], square[kMostChannels];
    for (int64_t c = 0; c < channels_; ++c) gradient[c] = variance[c] = square[c] = 0;
    for (int64_t wo = tile_.w.begin; wo < tile_.w.end; ++wo)
      for (int64_t c = 0; c < channels_; ++c) {
        const int64_t i = sum_index(wo, c);
        if (sum[0][i] == 0) continue;
        const double g = load_one(grad + y_index(wo, c)), s = sum[0][i], y = sum[1][i] / s, of_squares = sum[2][i] / s;
        gradient[c] += g * (of_squares - y * y);
        variance[c] += (g < 0 ? -g : g) * (of_squares - y * y);
        square[c] += (g < 0 ? -g : g) * of_squares;
      }
    for (int64_t c = 0; c < channels_; ++c)
      if (!(variance[c] >= least * square[c])) return false;
    for (int64_t c = 0; c < channels_; ++c) beta_grad_[c] += gradient[c];
    return true;
  }

  // --- by the definition ---------------------------------------------------------------------------------------------

  // The results of the definition for a vector of windows.
  struct Exact {
    V mean, variance, pivot, inverse_sum, half_offset;
  };

  // Computes a vector of windows. each(f) calls f(x, there) for every tap; `there` are the lanes that have one. With
  // `across`, the lanes are taps of one window. Returns false if a value is infinite, NaN or very large.
  template <class Each>
  SOFTPOOL_INLINE static bool vector_exactly(const Each& each, bool across, V beta, V scale, Exact& exact) {
    V lo = splat<V>(Limits<Acc>::inf), hi = -lo;
    I largest{};
    each([&](V x, I there) SOFTPOOL_LAMBDA {
      hi = (there & (x > hi)) != 0 ? x : hi;
      lo = (there & (x < lo)) != 0 ? x : lo;
      largest = larger(largest, there & magnitude(x));
    });
    if (!(bit_cast<Acc>(largest_lane(largest)) <= Limits<Acc>::large)) return false;
    if (across) {
      Acc top = hi[0], bottom = lo[0];
      for (int l = 1; l < lanes; ++l) top = max_of<Acc>(top, hi[l]), bottom = min_of<Acc>(bottom, lo[l]);
      hi = splat<V>(top), lo = splat<V>(bottom);
    }
    const V pivot = hi < lo ? V{} : beta >= 0 ? hi : lo;  // hi < lo: the window is empty
    Sum<true> sum;
    each([&](V x, I there) SOFTPOOL_LAMBDA {
      const V distance = there != 0 ? x - pivot : V{};
      const V weight = there != 0 ? exp2_of(scale * distance) : V{};
      sum.weight += weight;
      sum.moment += weight * distance;
      sum.squares += weight * distance * distance;
    });
    if (across) {
      sum.weight = splat<V>(sum_of_lanes(sum.weight));
      sum.moment = splat<V>(sum_of_lanes(sum.moment));
      sum.squares = splat<V>(sum_of_lanes(sum.squares));
    }
    const V inverse = Worker::inverse(sum.weight), offset = sum.moment * inverse;
    exact = {pivot + offset, sum.squares * inverse - offset * offset, pivot, inverse, Acc(0.5) * offset};
    return true;
  }

  // The same for one window in double precision, whatever its values are.
  template <class Each>
  static Exact one_exactly(const Each& each, Acc beta) {
    Extent<double> extent;
    each([&](double x) { extent.add(x); });
    Sums<double> sums(extent, beta);
    each([&](double x) { sums.add(x); });
    const Stats<double> stats = sums.stats();
    const auto of = [](double x) { return splat<V>(static_cast<Acc>(x)); };
    return {of(sums.mean()), of(sums.variance()), of(stats.pivot), of(stats.inverse_sum), of(stats.half_offset)};
  }

  // Calls f(exact, wo, channel, count) for the windows of a row of outputs, `count` neighbours in y at a time.
  template <class F>
  void each_exactly(int64_t to, int64_t ho, const F& f) const {
    const auto wt = call_.geometry.t.window(to), wh = call_.geometry.h.window(ho);
    const auto& axis = call_.geometry.w;
    const int64_t stride = call_.x_stride[4];
    const bool channels_last = call_.channels_last, wide = !channels_last && along_ == Along::wide;
    const auto each_row = [&](const auto& visit) SOFTPOOL_LAMBDA {
      for (int64_t t = wt.begin; t < wt.end; t += wt.step)
        for (int64_t h = wh.begin; h < wh.end; h += wh.step) visit(x_row(t, h));
    };
    const int64_t width = channels_last || wide ? 1 : lanes;
    for (int64_t wo = need_w_.begin; wo < need_w_.end; wo += width)
      for (int64_t c = 0; c < channels_; c += lanes) {
        const auto window = axis.window(wo);
        const int count =
            static_cast<int>(channels_last ? min_of(channels_ - c, int64_t{lanes}) : min_of(need_w_.end - wo, width));
        const auto each = [&](const auto& visit) SOFTPOOL_LAMBDA {
          each_row([&](const T* row) SOFTPOOL_LAMBDA {
            if (channels_last) {
              for (int64_t w = window.begin; w < window.end; w += window.step)
                visit(load_some(row + w * stride + c, count), ~I{});
            } else if (wide) {
              for (int64_t w = window.begin; w < window.end; w += lanes) {
                const int n = static_cast<int>(min_of(window.end - w, int64_t{lanes}));
                I there{};
                for (int l = 0; l < n; ++l) there[l] = -1;
                visit(load_some(row + w, n), there);
              }
            } else {
              for (int64_t k = 0; k < axis.kernel; ++k) {
                V x;
                const I there = gather_tap(row, wo, count, k, x);
                visit(x, there);
              }
            }
          });
        };
        // Long sums need double precision.
        const int64_t rows = ceil_div(wt.end - wt.begin, wt.step) * ceil_div(wh.end - wh.begin, wh.step);
        const int64_t taps = rows * (channels_last ? window.end - window.begin
                                     : wide        ? (window.end - window.begin) / lanes
                                                   : axis.kernel);
        const V beta = channels_last ? load(this->beta() + c) : splat<V>(*this->beta());
        const V scale = channels_last ? load(this->scale() + c) : splat<V>(*this->scale());
        Exact exact;
        if (taps <= 4096 && vector_exactly(each, wide, beta, scale, exact)) {
          f(exact, wo, c, count);
          continue;
        }
        for (int l = 0; l < count; ++l) {
          const int64_t o = channels_last ? wo : wo + l, channel = channels_last ? c + l : 0;
          const auto one = axis.window(o);
          const auto each_one = [&](const auto& visit) {
            each_row([&](const T* row) {
              for (int64_t w = one.begin; w < one.end; w += one.step) visit(load_one(row + w * stride + channel));
            });
          };
          f(one_exactly(each_one, this->beta()[channel]), o, channel, 1);
        }
      }
  }

  SOFTPOOL_INLINE static V load_some(const T* p, int n) { return n == lanes ? load(p) : load_part(p, n); }

  // Tap k of windows wo, wo + 1, ...; returns the lanes that lie inside the input.
  SOFTPOOL_INLINE I gather_tap(const T* row, int64_t wo, int count, int64_t k, V& x) const {
    const auto& axis = call_.geometry.w;
    x = V{};
    I there{};
    for (int l = 0; l < count; ++l) {
      const int64_t w = (wo + l) * axis.stride - axis.padding + k * axis.dilation;
      if (w < 0 || w >= axis.size) continue;
      x[l] = load_one(row + w);
      there[l] = -1;
    }
    return there;
  }

  int64_t y_index(int64_t wo, int64_t c) const { return (wo - need_w_.begin) * call_.y_stride[4] + c; }
  int64_t sum_index(int64_t wo, int64_t c) const { return (wo - need_w_.begin) * channels_ + c; }

  void finish_exactly(int64_t to, int64_t ho, T* y) const {
    each_exactly(to, ho, [&](const Exact& exact, int64_t wo, int64_t c, int count) {
      store_part(y + y_index(wo, c), exact.mean, count);
    });
  }

  // Leaves g / S, (y - pivot) / 2 and the pivot in `sum`.
  void finish_backward_exactly(int64_t to, int64_t ho, const T* g, Acc* const* sum, bool owned) {
    each_exactly(to, ho, [&](const Exact& exact, int64_t wo, int64_t c, int count) {
      const V gradient = load_some(g + y_index(wo, c), count);
      for (int l = 0; call_.beta_grad && owned && l < count; ++l) {
        const int64_t o = call_.channels_last ? wo : wo + l;
        if (o >= tile_.w.begin && o < tile_.w.end)
          beta_grad_[call_.channels_last ? c + l : 0] += double(gradient[l]) * exact.variance[l];
      }
      const int64_t i = sum_index(wo, c);
      store_part(sum[0] + i, gradient * exact.inverse_sum, count);
      store_part(sum[1] + i, exact.half_offset, count);
      store_part(sum[2] + i, exact.pivot, count);
    });
  }

  // The same as Stats::gradient, with g in inverse_sum already.
  SOFTPOOL_INLINE static V gradient_exactly(V x, V pivot, V inverse_sum, V half_offset, V beta, V scale) {
    const V half_distance = Acc(0.5) * x - Acc(0.5) * pivot;
    const V weight = exp2_of(Acc(2) * (scale * half_distance)) * inverse_sum;
    const V most = splat<V>(Limits<Acc>::max), inf = splat<V>(Limits<Acc>::inf);
    V slope = Acc(2) * (beta * (half_distance - half_offset));
    slope = slope > most ? most : slope < -most ? -most : slope;
    return ((inverse_sum == 0) | (x == inf) | (x == -inf)) ? V{} : weight * (Acc(1) + slope);
  }

  // Adds to line_ what row r of outputs, a bad one, contributes to the gradient of the row of inputs x.
  void add_exactly(const T* x, int64_t r) {
    const auto& axis = call_.geometry.w;
    const Acc *inverse_sum = sum(0, r), *half_offset = sum(1, r), *pivot = sum(2, r);
    if (call_.channels_last) {
      for (int64_t w = own_w_.begin; w < own_w_.end; ++w) {
        const auto over = call_.w.over[w];
        for (int64_t wo = max_of(over.begin, need_w_.begin); wo < min_of(over.end, need_w_.end); ++wo) {
          if (!axis.holds(wo, w)) continue;
          for (int64_t c = 0; c < channels_; c += lanes) {
            const int count = static_cast<int>(min_of(channels_ - c, int64_t{lanes}));
            const int64_t i = sum_index(wo, c);
            const V part = gradient_exactly(load_some(x + w * call_.x_stride[4] + c, count), load(pivot + i),
                                            load(inverse_sum + i), load(half_offset + i), load(this->beta() + c),
                                            load(this->scale() + c));
            Acc* to = line_ + (w - own_w_.begin) * channels_ + c;
            store_part(to, load(to) + part, count);
          }
        }
      }
      return;
    }
    const V beta = splat<V>(*this->beta()), scale = splat<V>(*this->scale());
    if (along_ == Along::wide) {
      for (int64_t wo = need_w_.begin; wo < need_w_.end; ++wo) {
        const auto window = axis.window(wo);
        const int64_t i = sum_index(wo, 0), end = min_of(window.end, own_w_.end);
        for (int64_t w = max_of(window.begin, own_w_.begin); w < end; w += lanes) {
          const int count = static_cast<int>(min_of(end - w, int64_t{lanes}));
          const V part = gradient_exactly(load_some(x + w, count), splat<V>(pivot[i]), splat<V>(inverse_sum[i]),
                                          splat<V>(half_offset[i]), beta, scale);
          Acc* to = line_ + (w - own_w_.begin);
          store_part(to, load(to) + part, count);
        }
      }
      return;
    }
    for (int64_t wo = need_w_.begin; wo < need_w_.end; wo += lanes) {
      const int count = static_cast<int>(min_of(need_w_.end - wo, int64_t{lanes}));
      const int64_t i = sum_index(wo, 0);
      for (int64_t k = 0; k < axis.kernel; ++k) {
        V at;
        const I there = gather_tap(x, wo, count, k, at);
        const V part =
            gradient_exactly(at, load(pivot + i), load(inverse_sum + i), load(half_offset + i), beta, scale);
        for (int l = 0; l < count; ++l) {
          const int64_t w = (wo + l) * axis.stride - axis.padding + k * axis.dilation;
          if (there[l] && w >= own_w_.begin && w < own_w_.end) line_[w - own_w_.begin] += part[l];
        }
      }
    }
  }

  // --- one row of input gradients ------------------------------------------------------------------------------------

  // Prepares gradient_row(..., slot, ...): u and v of good windows, summed over T and H, spread to the inputs they
  // hold.
  void coefficients(const Acc* u, const Acc* v, int64_t slot) {
    uv_[slot][0] = u, uv_[slot][1] = v;
    if (!column_pitch_) return;
    for (int s = 0; s < 2; ++s) {
      Acc* to = coefficient_[s] + slot * column_pitch_;
      spread(uv_[slot][s], to);
      uv_[slot][s] = to + (own_w_.begin - first_column_) * inner_;
    }
  }

  // Computes the gradient of a row of inputs from the coefficients in `slot`; it is 0 if there are none (-1). It goes
  // into dx, or into line_ if something will be added to it.
  void gradient_row(const T* x, T* dx, int64_t slot, bool to_line) {
    if (slot >= 0) return to_line ? good_row(x, slot, line_, channels_) : good_row(x, slot, dx, call_.dx_stride[4]);
    for (int64_t i = 0; i < own_w_.size() * channels_; ++i) line_[i] = 0;
    if (!to_line) store_line(dx);
  }

  void store_line(T* dx) const {
    // Positions lie next to each other if contiguous, else there are some channels at each.
    const int64_t size = own_w_.size() * channels_, piece = call_.channels_last ? channels_ : size;
    for (int64_t at = 0; at < size; at += piece, dx += call_.dx_stride[4]) {
      int64_t i = 0;
      for (; i + lanes <= piece; i += lanes) store(dx + i, load(line_ + at + i));
      const int rest = static_cast<int>(piece - i);
      if (rest > 0) store_part(dx + i, load(line_ + at + i), rest);
    }
  }

  // `stride`: of dx from one position to the next, where there is more than one channel.
  template <class To>
  void good_row(const T* x, int64_t slot, To* dx, int64_t stride) {
    const Acc *a_at = uv_[slot][0], *b_at = uv_[slot][1];
    if (!in_rows_) return good_channels(x, uv_[slot], dx, stride);
    if (along_ == Along::wide) return good_wide(x, uv_[slot], dx);
    gradient(x + own_w_.begin * inner_, own_w_.size() * inner_, dx, [&](int64_t i, V& a, V& b) SOFTPOOL_LAMBDA {
      a = load(a_at + i);
      b = load(b_at + i);
    });
  }

  template <class To, class Coefficients>
  SOFTPOOL_INLINE void gradient(const T* x, int64_t size, To* dx, const Coefficients& coefficients) const {
    const V scale = splat<V>(*this->scale()), beta = splat<V>(*this->beta());
    const auto of = [&](int64_t i, V x) SOFTPOOL_LAMBDA {
      V a, b;
      coefficients(i, a, b);
      return exp2_bounded(x, scale) * (a + beta * (a * x - b));
    };
    int64_t i = 0;
    for (; i + lanes <= size; i += lanes) {
      prefetch(x + i);
      store(dx + i, of(i, load(x + i)));
    }
    const int rest = static_cast<int>(size - i);
    if (rest > 0) store_part(dx + i, of(i, load_part(x + i, rest)), rest);
  }

  // column[o stride + tap dilation] = sum of row[o], the transpose of gather_columns. The row has zeros before it, and
  // after it up to the end of the next vector.
  void spread(const Acc* row, Acc* column) const {
    const auto& w = call_.geometry.w;
    const int64_t n = need_w_.size(), size = own_w_.end - first_column_;
    if (inner_ > 1) {
      for (int64_t i = own_w_.begin; i < own_w_.end; ++i) {
        const auto over = call_.w.over[i];
        const int64_t first = max_of(over.begin, need_w_.begin), end = min_of(over.end, need_w_.end);
        for (int64_t c = 0; c < inner_; c += lanes) {
          V sum{};
          for (int64_t wo = first; wo < end; ++wo)
            if (w.holds(wo, i)) sum += load(row + (wo - need_w_.begin) * inner_ + c);
          store(column + (i - first_column_) * inner_ + c, sum);  // as in gather_columns, the excess is overwritten
        }
      }
      return;
    }
    if (along_ == Along::unit) {
      const int64_t held = min_of(size, n + (w.kernel - 1) * w.dilation);
      int64_t j = 0;
      for (; j < held; j += lanes) {
        V sum{};
        for (int64_t k = 0; k < w.kernel; ++k) sum += load_before(row, j - k * w.dilation, n);
        store(column + j, sum);
      }
      for (; j < size; j += lanes) store(column + j, V{});
    } else if (along_ == Along::pairs && w.dilation == 1) {
      // Column 2 m is tap 0 of window m, tap 2 of window m - 1, ...; column 2 m + 1 its tap 1, 3, ...
      const int64_t held = min_of(size, 2 * n + w.kernel);
      int64_t j = 0;
      for (; j < held; j += 2 * lanes) {
        V even{}, odd{};
        for (int64_t k = 0; k < w.kernel; k += 2) {
          const V v = load_before(row, (j - k) / 2, n);
          even += v;
          if (k + 1 < w.kernel) odd += v;
        }
        store(column + j, interleave(even, odd, 0, Lanes{}));
        store(column + j + lanes, interleave(even, odd, 1, Lanes{}));
      }
      for (; j < size; j += lanes) store(column + j, V{});
    } else {
      fill(column, column_pitch_);
      for (int64_t o = 0; o < n; ++o)
        for (int64_t k = 0; k < w.kernel; ++k) column[o * w.stride + k * w.dilation] += row[o];
    }
  }

  // row[at...], zero from n on.
  SOFTPOOL_INLINE static V load_before(const Acc* row, int64_t at, int64_t n) {
    return at < n ? load(row + at) : V{};
  }

  template <class To>
  static void zero(To* to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) store_part(to + i, V{}, 1);
  }

  // Wide windows: goes by stretches of the row that lie in the same windows.
  template <class To>
  void good_wide(const T* x, const Acc* const* uv, To* dx) {
    const auto& axis = call_.geometry.w;
    for (int64_t w = own_w_.begin; w < own_w_.end;) {
      const auto over = axis.windows_over(w);
      int64_t end = own_w_.end;
      if (over.begin < over.end) end = min_of(end, axis.window(over.begin).end);
      if (over.end < axis.out) end = min_of(end, axis.window(over.end).begin);
      Acc a = 0, b = 0;
      for (int64_t wo = over.begin; wo < over.end; ++wo) a += uv[0][wo - need_w_.begin], b += uv[1][wo - need_w_.begin];
      if (over.begin >= over.end) {
        zero(dx + (w - own_w_.begin), end - w);
        w = end;
        continue;
      }
      gradient(x + w, end - w, dx + (w - own_w_.begin), [&](int64_t, V& va, V& vb) SOFTPOOL_LAMBDA {
        va = splat<V>(a);
        vb = splat<V>(b);
      });
      w = end;
    }
  }

  template <class To>
  void good_channels(const T* x, const Acc* const* uv, To* dx, int64_t stride) {
    const auto& axis = call_.geometry.w;
    for (int64_t w = own_w_.begin; w < own_w_.end; ++w) {
      const auto over = call_.w.over[w];
      const T* from = x + w * call_.x_stride[4];
      To* to = dx + (w - own_w_.begin) * stride;
      bool held = false;
      for (int64_t wo = over.begin; wo < over.end; ++wo) held |= axis.holds(wo, w);
      if (!held) {
        zero(to, channels_);
        continue;
      }
      const auto of = [&](int64_t c, V x) SOFTPOOL_LAMBDA {
        V a{}, b{};
        for (int64_t wo = over.begin; wo < over.end; ++wo) {
          if (!axis.holds(wo, w)) continue;
          const int64_t i = (wo - need_w_.begin) * channels_ + c;
          a += load(uv[0] + i);
          b += load(uv[1] + i);
        }
        return exp2_bounded(x, load(scale() + c)) * (a + load(beta() + c) * (a * x - b));
      };
      int64_t c = 0;
      for (; c + lanes <= channels_; c += lanes) {
        prefetch(from + c);
        store(to + c, of(c, load(from + c)));
      }
      const int rest = static_cast<int>(channels_ - c);
      if (rest > 0) store_part(to + c, of(c, load_part(from + c, rest)), rest);
    }
  }

  const Call& call_;
  const Tile& tile_;
  char* scratch_;
  double* beta_grad_ = nullptr;
  bool direct_, in_rows_;
  Along along_;
  int sums_;
  int64_t channels_, length_, pieces_, piece_, lead_, pitch_, inner_, first_column_, column_pitch_, batch_, rows_;
  Span need_t_, need_h_, need_w_, own_w_, columns_;
  Acc *row_[3], *sum_[3], *column_[3], *coefficient_[2], *line_;
  const Acc* uv_[8][2];
  I largest_[8];
  uint8_t* bad_;
  const T** pointers_;
  size_t bytes_;
};

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

// Runs a tile of whole small planes. With scratch == nullptr it only returns the bytes of scratch memory that it needs.
template <class T, class Acc>
size_t run_small_planes(const Call& call, const Tile& tile, char* scratch, double* beta_grad) {
  constexpr int lanes = Vec<Acc>::lanes;
  const auto& g = call.geometry;
  const int64_t inputs = g.t.size * g.h.size * g.w.size, outputs = g.t.out * g.h.out * g.w.out;
  const auto bytes_of = [](int64_t n) SOFTPOOL_LAMBDA { return static_cast<size_t>(n * lanes) * sizeof(Acc); };

  Call inner = call;
  inner.channels_last = true;
  const auto lay_out = [](int64_t* stride, int64_t h, int64_t w) SOFTPOOL_LAMBDA {
    stride[0] = stride[1] = 0;  // the one tile begins where the memory does
    stride[2] = h * w * lanes, stride[3] = w * lanes, stride[4] = lanes;
  };
  lay_out(inner.x_stride, g.h.size, g.w.size);
  lay_out(inner.dx_stride, g.h.size, g.w.size);
  lay_out(inner.y_stride, g.h.out, g.w.out);
  const Tile all{0, {tile.c.begin, tile.c.begin + lanes}, tile.t, tile.h, tile.w};
  const size_t front = bytes_of(inputs + outputs);
  if (!scratch) return front + Worker<Acc, Acc>(inner, all, nullptr).bytes();

  Acc* x = reinterpret_cast<Acc*>(scratch);
  Acc* y = x + inputs * lanes;  // or dL/dy
  const int64_t channels = tile.c.size();
  const int64_t x_at = tile.n * call.x_stride[0] + tile.c.begin * call.x_stride[1];
  const int64_t y_at = tile.n * call.y_stride[0] + tile.c.begin * call.y_stride[1];
  to_channels_last(static_cast<const T*>(call.x) + x_at, call.x_stride[1], channels, inputs, x);
  inner.x = x;
  inner.grad = y;
  inner.result = call.backward ? x : y;  // a row of dL/dx is written when its row of x has been read for the last time
  if (call.backward)
    to_channels_last(static_cast<const T*>(call.grad) + y_at, call.y_stride[1], channels, outputs, y);
  double beta_grads[lanes] = {};
  Worker<Acc, Acc>(inner, all, scratch + front).run(beta_grads);
  for (int64_t c = 0; call.beta_grad && c < channels; ++c) beta_grad[c] += beta_grads[c];
  if (!call.backward) {
    from_channels_last(y, call.y_stride[1], channels, outputs, static_cast<T*>(call.result) + y_at);
  } else if (call.input_grad) {
    const int64_t dx_at = tile.n * call.dx_stride[0] + tile.c.begin * call.dx_stride[1];
    from_channels_last(x, call.dx_stride[1], channels, inputs, static_cast<T*>(call.result) + dx_at);
  }
  return 0;
}

template <class T, class Acc>
size_t scratch_bytes_of(const Call& call, const Tile& tile) {
  if (call.small_planes) return run_small_planes<T, Acc>(call, tile, nullptr, nullptr);
  return Worker<T, Acc>(call, tile, nullptr).bytes();
}

template <class T, class Acc>
void run_of(const Call& call, const Tile& tile, void* scratch, double* beta_grad) {
  if (call.small_planes) run_small_planes<T, Acc>(call, tile, static_cast<char*>(scratch), beta_grad);
  else Worker<T, Acc>(call, tile, static_cast<char*>(scratch)).run(beta_grad);
}

inline size_t scratch_bytes(const Call& call, const Tile& tile) {
  switch (call.type) {
    case Type::float64: return scratch_bytes_of<double, double>(call, tile);
    case Type::float16: return scratch_bytes_of<Half, float>(call, tile);
    case Type::bfloat16: return scratch_bytes_of<BFloat16, float>(call, tile);
    default: return scratch_bytes_of<float, float>(call, tile);
  }
}

inline void run(const Call& call, const Tile& tile, void* scratch, double* beta_grad) {
  switch (call.type) {
    case Type::float64: return run_of<double, double>(call, tile, scratch, beta_grad);
    case Type::float16: return run_of<Half, float>(call, tile, scratch, beta_grad);
    case Type::bfloat16: return run_of<BFloat16, float>(call, tile, scratch, beta_grad);
    default: return run_of<float, float>(call, tile, scratch, beta_grad);
  }
}

}  // namespace SOFTPOOL_LEVEL
}  // namespace softpool3d
