// The CPU kernels, compiled once for each instruction set by cpu_{portable,avx2,avx512}.cpp.
//
// Weights without the maximum. As long as |beta x| stays below some 40, exp(beta x) itself is a float of full relative
// precision, and so are its sums: nothing has to be subtracted. Then one exponential per input element serves all the
// windows that hold it, and windows become sums of sums. For a row of outputs, with u = g / S and v = u y,
//
//     S = sum e,   M = sum e x,   y = M / S        where e = exp(beta x)
//     dL/dx = e (A + beta (A x - B))               where A, B = sum of u, v over the windows that hold x
//
// A row of inputs that leaves that range marks the rows of outputs it touches; those are computed by the definition
// (window.h), in double precision.
//
// Rows. Contiguous: W numbers of one channel; sums of a window's rows column by column, then along W. channels_last:
// W positions of some channels; vectors of channels all the way. Where no two windows share a row of inputs, a row of
// outputs is made at once from all of its rows (`direct`); else each row is summed along W once and added to all the
// rows of outputs that it belongs to.

#include "cpu_call.h"
#include "cpu_vector.h"
#include "window.h"

namespace softpool3d {
namespace SOFTPOOL_LEVEL {

SOFTPOOL_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Where window `o` begins, were there no dilation: this grows with o, which window(o).begin does not.
SOFTPOOL_INLINE int64_t start(const Axis<int64_t>& axis, int64_t o) {
  const int64_t first = axis.kernel == 0 ? o * axis.size / axis.out : o * axis.stride - axis.padding;
  return min_of(max_of(first, int64_t{0}), axis.size);
}

// The inputs in the windows of `outputs`.
SOFTPOOL_INLINE Span inputs_of(const Axis<int64_t>& axis, Span outputs) {
  return {start(axis, outputs.begin), axis.window(outputs.end - 1).end};
}

// The inputs whose gradient is the task of `outputs`: all inputs belong to somebody.
SOFTPOOL_INLINE Span owned_inputs(const Axis<int64_t>& axis, Span outputs) {
  return {outputs.begin == 0 ? 0 : start(axis, outputs.begin),
          outputs.end == axis.out ? axis.size : start(axis, outputs.end)};
}

// `outputs`, and those that share inputs with them.
SOFTPOOL_INLINE Span needed_outputs(const Axis<int64_t>& axis, Span outputs) {
  const Span inputs = owned_inputs(axis, outputs);
  if (inputs.size() <= 0) return outputs;
  const auto first = axis.windows_over(inputs.begin), last = axis.windows_over(inputs.end - 1);
  return {min_of(outputs.begin, first.begin), max_of(outputs.end, last.end)};
}

enum class Along { identity, unit, pairs, strided, wide };  // how windows lie along W

SOFTPOOL_INLINE Along along(const Axis<int64_t>& w) {
  if (w.kernel == 0 || (w.kernel >= 16 && w.dilation == 1 && w.stride * 2 >= w.kernel)) return Along::wide;
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
    length_ = need_w_.size() * channels_;
    // In y, a row of outputs lies in one piece unless the tile has some of the channels only.
    const bool one_piece = !call.channels_last || channels_ == call.y_stride[4];
    pieces_ = one_piece ? 1 : need_w_.size();
    piece_ = one_piece ? length_ : channels_;
    pitch_ = round_up(length_, lanes) + lanes;
    sums_ = call.backward ? 3 : 2;

    // Columns of a contiguous row, zero outside the input.
    first_column_ = need_w_.begin * g.w.stride - g.w.padding;
    const int64_t span = (need_w_.size() - 1) * g.w.stride + (g.w.kernel - 1) * g.w.dilation + 1;
    columns_ = {max_of(first_column_, int64_t{0}), min_of(first_column_ + span, g.w.size)};
    // Inputs behind the last window get a gradient (0) too, so their range has to be known.
    columns_.end = max_of(columns_.end, own_w_.end);
    const int64_t reach = (round_up(need_w_.size(), lanes) + lanes) * g.w.stride + g.w.kernel * g.w.dilation;
    column_pitch_ = call.channels_last || along_ == Along::wide || along_ == Along::identity
                        ? 0
                        : round_up(max_of(reach, own_w_.end - first_column_), lanes) + 2 * lanes;
    const int64_t rows = direct_ ? 1 : need_t_.size() * need_h_.size();
    const int64_t row_pointers = direct_ ? min_of(g.t.kernel, g.t.size) * min_of(g.h.kernel, g.h.size) : 1;

    size_t at = 0;
    const auto take = [&](size_t bytes) {
      char* p = scratch ? scratch + at : nullptr;
      at += (bytes + 63) / 64 * 64;
      return p;
    };
    for (int s = 0; s < sums_; ++s) {
      row_[s] = reinterpret_cast<Acc*>(take(pitch_ * sizeof(Acc)));
      sum_[s] = reinterpret_cast<Acc*>(take(rows * pitch_ * sizeof(Acc)));
      column_[s] = reinterpret_cast<Acc*>(take(column_pitch_ * sizeof(Acc)));
    }
    line_ = reinterpret_cast<Acc*>(take(call.backward ? (own_w_.size() * channels_ + lanes) * sizeof(Acc) : 0));
    bad_ = reinterpret_cast<uint8_t*>(take(rows));
    pointers_ = reinterpret_cast<const T**>(take(row_pointers * sizeof(T*)));
    bytes_ = at;
  }

  size_t bytes() const { return bytes_; }

  void run(double* beta_grad) {
    beta_grad_ = beta_grad;
    const int64_t all = sums_ * column_pitch_;
    for (int64_t i = 0; i < all; ++i) column_[i / column_pitch_][i % column_pitch_] = 0;
    direct_ ? run_direct() : run_shared();
  }

 private:
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
    for (int64_t to = tile_.t.begin; to < tile_.t.end; ++to)
      for (int64_t ho = tile_.h.begin; ho < tile_.h.end; ++ho) {
        const auto wt = g.t.window(to), wh = g.h.window(ho);
        int64_t n = 0;
        for (int64_t t = wt.begin; t < wt.end; ++t)
          for (int64_t h = wh.begin; h < wh.end; ++h) pointers_[n++] = x_row(t, h);
        bad_[0] = sum_rows(n, sum_);
        finish(to, ho, 0);
        if (!call_.backward || !call_.input_grad) continue;
        const Span rows_t = owned_inputs(g.t, {to, to + 1}), rows_h = owned_inputs(g.h, {ho, ho + 1});
        for (int64_t t = rows_t.begin; t < rows_t.end; ++t)
          for (int64_t h = rows_h.begin; h < rows_h.end; ++h) {
            const bool inside = t >= wt.begin && t < wt.end && h >= wh.begin && h < wh.end;
            Acc* const only[2] = {sum_[0], sum_[1]};
            gradient_row(t, h, inside && !bad_[0] ? only : nullptr, inside && bad_[0]);
          }
      }
  }

  void run_shared() {
    const int64_t rows = need_t_.size() * need_h_.size();
    const int used = sums_in_use();
    for (int s = 0; s < used; ++s)
      for (int64_t i = 0; i < rows * pitch_; ++i) sum_[s][i] = 0;
    for (int64_t r = 0; r < rows; ++r) bad_[r] = 0;

    const Span in_t = inputs_of(call_.geometry.t, need_t_), in_h = inputs_of(call_.geometry.h, need_h_);
    for (int64_t t = in_t.begin; t < in_t.end; ++t)
      for (int64_t h = in_h.begin; h < in_h.end; ++h) {
        if (!any_window(t, h)) continue;
        pointers_[0] = x_row(t, h);
        const bool bad = sum_rows(1, row_);
        each_window(t, h, [&](int64_t r) {
          bad_[r] |= bad;
          for (int s = 0; s < used; ++s) {
            Acc* to = sum_[s] + r * pitch_;
            for (int64_t i = 0; i < length_; i += lanes) store(to + i, load(to + i) + load(row_[s] + i));
          }
        });
      }

    for (int64_t to = need_t_.begin; to < need_t_.end; ++to)
      for (int64_t ho = need_h_.begin; ho < need_h_.end; ++ho) finish(to, ho, index(to, ho));
    if (!call_.backward || !call_.input_grad) return;

    const Span own_t = owned_inputs(call_.geometry.t, tile_.t), own_h = owned_inputs(call_.geometry.h, tile_.h);
    for (int64_t t = own_t.begin; t < own_t.end; ++t)
      for (int64_t h = own_h.begin; h < own_h.end; ++h) {
        int64_t good = 0, only = 0;
        bool bad = false;
        each_window(t, h, [&](int64_t r) {
          if (bad_[r]) {
            bad = true;
          } else {
            ++good;
            only = r;
          }
        });
        Acc* from[2] = {sum_[0] + only * pitch_, sum_[1] + only * pitch_};
        if (good > 1) {
          for (int s = 0; s < 2; ++s) {
            from[s] = row_[s];
            for (int64_t i = 0; i < length_; i += lanes) store(row_[s] + i, V{});
            each_window(t, h, [&](int64_t r) {
              if (bad_[r]) return;
              const Acc* add = sum_[s] + r * pitch_;
              for (int64_t i = 0; i < length_; i += lanes) store(row_[s] + i, load(row_[s] + i) + load(add + i));
            });
          }
        }
        gradient_row(t, h, good ? from : nullptr, bad);
      }
  }

  // Weights, moments and, for beta's gradient, squares.
  int sums_in_use() const { return call_.beta_grad ? 3 : 2; }

  int64_t index(int64_t to, int64_t ho) const {
    return (to - need_t_.begin) * need_h_.size() + (ho - need_h_.begin);
  }

  // f(index) for each needed row of outputs whose windows hold input row (t, h).
  template <class F>
  void each_window(int64_t t, int64_t h, const F& f) const {
    const auto& g = call_.geometry;
    const auto ts = g.t.windows_over(t), hs = g.h.windows_over(h);
    for (int64_t to = max_of(ts.begin, need_t_.begin); to < min_of(ts.end, need_t_.end); ++to) {
      if (!g.t.holds(to, t)) continue;
      for (int64_t ho = max_of(hs.begin, need_h_.begin); ho < min_of(hs.end, need_h_.end); ++ho)
        if (g.h.holds(ho, h)) f(index(to, ho));
    }
  }

  bool any_window(int64_t t, int64_t h) const {
    bool any = false;
    each_window(t, h, [&](int64_t) { any = true; });
    return any;
  }

  // --- sums over rows ------------------------------------------------------------------------------------------------

  // Sums over the windows along W of the `n` rows in pointers_; whether they leave the range of the fast way.
  bool sum_rows(int64_t n, Acc* const* out) {
    if (call_.channels_last) return call_.beta_grad ? sum_channels<true>(n, out) : sum_channels<false>(n, out);
    if (along_ == Along::wide) return call_.beta_grad ? sum_wide<true>(n, out) : sum_wide<false>(n, out);
    return call_.beta_grad ? sum_columns<true>(n, out) : sum_columns<false>(n, out);
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

  // Contiguous: column by column over up to four rows at a time, then along W.
  template <bool square>
  bool sum_columns(int64_t n, Acc* const* out) {
    const bool in_place = along_ == Along::identity;
    Acc* to[3];
    for (int s = 0; s < 3; ++s)
      to[s] = !in_place ? column_[s] + (columns_.begin - first_column_) : square || s < 2 ? out[s] : nullptr;
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
    if (!in_place) {
      store(to[0] + columns_.size(), V{});  // beyond the row the weights are not 0 yet
      for (int s = 0; s < (square ? 3 : 2); ++s) gather_columns(column_[s], out[s]);
    }
    return is_bad(largest);
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
        const V x = load_x(row[r] + columns_.begin + i);
        largest = larger(largest, magnitude(x));
        sum.add(x, scale);
      }
      store(to[0] + i, sum.weight), store(to[1] + i, sum.moment);
      if (square) store(to[2] + i, sum.squares);
    };
    const int64_t size = columns_.size();
    int64_t i = 0;
    for (; i + lanes <= size; i += lanes) step(i, [](const T* p) SOFTPOOL_LAMBDA { return load(p); });
    const int rest = static_cast<int>(size - i);
    if (rest > 0) step(i, [rest](const T* p) SOFTPOOL_LAMBDA { return load_part(p, rest); });
  }

  bool is_bad(I largest) const {
    // NaN makes it bad too: the comparison is false.
    return !(bit_cast<Acc>(largest_lane(largest)) * *inverse_limit() <= 1);
  }

  // out[o] = sum of column[o stride + tap dilation] over the taps.
  void gather_columns(const Acc* column, Acc* out) const {
    const auto& w = call_.geometry.w;
    const int64_t n = need_w_.size();
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
  bool sum_wide(int64_t n, Acc* const* out) {
    const auto& w = call_.geometry.w;
    const V scale = splat<V>(*this->scale());
    I largest{};
    for (int64_t wo = need_w_.begin; wo < need_w_.end; ++wo) {
      const auto window = w.window(wo);
      Acc total[3] = {0, 0, 0};
      for (int64_t r = 0; r < n; ++r) {
        const T* row = pointers_[r];
        // Parts of some thousand numbers, so that rounding does not add up.
        for (int64_t part = window.begin; part < window.end; part += 256 * lanes) {
          const int64_t end = min_of(part + 256 * lanes, window.end);
          Sum<square> sum;
          int64_t i = part;
          for (; i + lanes <= end; i += lanes) {
            const V x = load(row + i);
            largest = larger(largest, magnitude(x));
            sum.add(x, scale);
          }
          total[0] += sum_of_lanes(sum.weight), total[1] += sum_of_lanes(sum.moment);
          if (square) total[2] += sum_of_lanes(sum.squares);
          if (i < end) {
            const int rest = static_cast<int>(end - i);
            const V x = load_part(row + i, rest);
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
      for (int s = 0; s < (square ? 3 : 2); ++s) out[s][wo - need_w_.begin] = total[s];
    }
    return is_bad(largest);
  }

  // channels_last: each window along W, vector by vector of channels.
  template <bool square>
  bool sum_channels(int64_t n, Acc* const* out) {
    const int64_t stride = call_.x_stride[4];
    V over{};
    for (int64_t wo = need_w_.begin; wo < need_w_.end; ++wo) {
      const auto window = call_.w.windows[wo];
      const int64_t at = (wo - need_w_.begin) * channels_;
      const auto step = [&](int64_t c, auto load_x, auto store_y) SOFTPOOL_LAMBDA {
        const V scale = load(this->scale() + c), inverse_limit = load(this->inverse_limit() + c);
        Sum<square> total;
        for (int64_t r = 0; r < n; ++r)
          // Parts, so that rounding does not add up.
          for (int64_t part = window.begin; part < window.end; part += 256 * window.step) {
            const int64_t end = min_of(part + 256 * window.step, window.end);
            Sum<square> sum;
            for (int64_t w = part; w < end; w += window.step) {
              const V x = load_x(pointers_[r] + w * stride + c);
              const V share = bit_cast<V>(magnitude(x)) * inverse_limit;
              over = bit_cast<V>(larger(bit_cast<I>(over), bit_cast<I>(share)));
              sum.add(x, scale);
            }
            total.add(sum);
          }
        store_y(out[0] + at + c, total.weight), store_y(out[1] + at + c, total.moment);
        if (square) store_y(out[2] + at + c, total.squares);
      };
      int64_t c = 0;
      for (; c + lanes <= channels_; c += lanes)
        step(
            c, [](const T* p) SOFTPOOL_LAMBDA { return load(p); },
            [](Acc* p, V v) SOFTPOOL_LAMBDA { store(p, v); });
      const int rest = static_cast<int>(channels_ - c);
      if (rest > 0)
        step(
            c, [rest](const T* p) SOFTPOOL_LAMBDA { return load_part(p, rest); },
            [rest](Acc* p, V v) SOFTPOOL_LAMBDA { store_part(p, v, rest); });
    }
    return !(bit_cast<Acc>(largest_lane(bit_cast<I>(over))) <= 1);
  }

  // --- one row of outputs --------------------------------------------------------------------------------------------

  void finish(int64_t to, int64_t ho, int64_t r) {
    Acc* sum[3] = {sum_[0] + r * pitch_, sum_[1] + r * pitch_, sum_[2] + r * pitch_};
    if (call_.backward) {
      // A row is handed to gradient_row as u and v, or, where it is bad, as g / S, (y - pivot) / 2 and the
      // pivot.
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

  // u and v from the sums; true if they leave the range in which they are precise.
  bool finish_backward(const T* grad, Acc* const* sum, bool owned) {
    I largest{};
    for (int64_t p = 0; p < pieces_; ++p) {
      const T* g = grad + p * call_.y_stride[4];
      const int64_t at = p * piece_;
      const auto step = [&](int64_t i, V gradient, V weight, V moment) SOFTPOOL_LAMBDA {
        const V inverse = this->inverse(weight);
        const V y = moment * inverse, u = gradient * inverse, v = u * y;
        largest = larger(largest, larger(magnitude(u), magnitude(v)));
        store(row_[0] + i, u), store(row_[1] + i, v);
      };
      int64_t i = 0;
      for (; i + lanes <= piece_; i += lanes) step(at + i, load(g + i), load(sum[0] + at + i), load(sum[1] + at + i));
      const int rest = static_cast<int>(piece_ - i);
      if (rest > 0)
        step(at + i, load_part(g + i, rest), load_part(sum[0] + at + i, rest), load_part(sum[1] + at + i, rest));
    }
    const Acc most = bit_cast<Acc>(largest_lane(largest));
    if (!(most == 0 || (most > Acc(0x1p-60) && most < Acc(0x1p100)))) return true;

    if (call_.beta_grad && owned) {
      each_owned([&](int64_t i, int64_t c, int64_t at) {
        if (sum[0][i] == 0) return;
        const double s = sum[0][i], y = sum[1][i] / s;
        beta_grad_[c] += load_one(grad + at) * (sum[2][i] / s - y * y);
      });
    }
    for (int s = 0; s < 2; ++s)
      for (int64_t j = 0; j < length_; j += lanes) store(sum[s] + j, load(row_[s] + j));
    return false;
  }

  // f(index in the row of sums, channel, offset in the row of y) for the outputs that are the tile's own.
  template <class F>
  void each_owned(const F& f) const {
    for (int64_t wo = tile_.w.begin; wo < tile_.w.end; ++wo)
      for (int64_t c = 0; c < channels_; ++c)
        f((wo - need_w_.begin) * channels_ + c, c, (wo - need_w_.begin) * call_.y_stride[4] + c);
  }

  // --- by the definition ---------------------------------------------------------------------------------------------

  // f(index in the row, channel, wo, sums) for each window of a row of outputs.
  template <class F>
  void each_window_exactly(int64_t to, int64_t ho, const F& f) const {
    const auto wt = call_.geometry.t.window(to), wh = call_.geometry.h.window(ho);
    const int64_t* s = call_.x_stride;
    for (int64_t wo = need_w_.begin; wo < need_w_.end; ++wo) {
      const auto ww = call_.geometry.w.window(wo);
      for (int64_t c = 0; c < channels_; ++c) {
        const auto each = [&](auto&& visit) {
          for (int64_t t = wt.begin; t < wt.end; t += wt.step)
            for (int64_t h = wh.begin; h < wh.end; h += wh.step) {
              const T* row = x_row(t, h) + c;
              for (int64_t w = ww.begin; w < ww.end; w += ww.step) visit(static_cast<double>(load_one(row + w * s[4])));
            }
        };
        Extent<double> extent;
        each([&](double x) { extent.add(x); });
        Sums<double> sums(extent, beta()[c]);
        each([&](double x) { sums.add(x); });
        f((wo - need_w_.begin) * channels_ + c, c, wo, sums);
      }
    }
  }

  void finish_exactly(int64_t to, int64_t ho, T* y) const {
    each_window_exactly(to, ho, [&](int64_t, int64_t c, int64_t wo, const Sums<double>& sums) {
      T* at = y + (wo - need_w_.begin) * call_.y_stride[4] + c;
      store_part(at, splat<V>(static_cast<Acc>(sums.mean())), 1);
    });
  }

  void finish_backward_exactly(int64_t to, int64_t ho, const T* g, Acc* const* sum, bool owned) {
    each_window_exactly(to, ho, [&](int64_t i, int64_t c, int64_t wo, const Sums<double>& sums) {
      const double gradient = load_one(g + (wo - need_w_.begin) * call_.y_stride[4] + c);
      if (call_.beta_grad && owned && wo >= tile_.w.begin && wo < tile_.w.end)
        beta_grad_[c] += gradient * sums.variance();
      const Stats<double> stats = sums.stats();
      sum[0][i] = static_cast<Acc>(gradient * stats.inverse_sum);
      sum[1][i] = static_cast<Acc>(stats.half_offset);
      sum[2][i] = static_cast<Acc>(stats.pivot);
    });
  }

  // line_ += what the bad rows of outputs over input row (t, h) contribute.
  void add_exactly(int64_t t, int64_t h, int64_t r) {
    const auto& axis = call_.geometry.w;
    const T* x = x_row(t, h);
    for (int64_t w = own_w_.begin; w < own_w_.end; ++w) {
      const auto over = axis.windows_over(w);
      for (int64_t wo = max_of(over.begin, need_w_.begin); wo < min_of(over.end, need_w_.end); ++wo) {
        if (!axis.holds(wo, w)) continue;
        for (int64_t c = 0; c < channels_; ++c) {
          const int64_t i = r * pitch_ + (wo - need_w_.begin) * channels_ + c;
          const Stats<Acc> stats{sum_[2][i], sum_[0][i], sum_[1][i]};  // 1 / S times g already
          line_[(w - own_w_.begin) * channels_ + c] +=
              stats.gradient(load_one(x + w * call_.x_stride[4] + c), Acc(1), beta()[c]);
        }
      }
    }
  }

  // --- one row of input gradients ------------------------------------------------------------------------------------

  // `uv`: u and v of the good windows over this row, summed over T and H; null: there are none.
  void gradient_row(int64_t t, int64_t h, Acc* const* uv, bool bad) {
    T* dx = dx_row(t, h);
    const int64_t size = own_w_.size() * channels_;
    if (uv && !bad) return good_row(t, h, uv, dx, call_.dx_stride[4]);
    if (uv) good_row(t, h, uv, line_, channels_);
    else
      for (int64_t i = 0; i < size; ++i) line_[i] = 0;
    if (bad && direct_) add_exactly(t, h, 0);
    if (bad && !direct_)
      each_window(t, h, [&](int64_t r) {
        if (bad_[r]) add_exactly(t, h, r);
      });
    // Positions lie next to each other if contiguous, else there are some channels at each.
    const int64_t piece = call_.channels_last ? channels_ : size;
    for (int64_t at = 0; at < size; at += piece, dx += call_.dx_stride[4]) {
      int64_t i = 0;
      for (; i + lanes <= piece; i += lanes) store(dx + i, load(line_ + at + i));
      const int rest = static_cast<int>(piece - i);
      if (rest > 0) store_part(dx + i, load(line_ + at + i), rest);
    }
  }

  // `stride`: of dx from one position to the next, where there is more than one channel.
  template <class To>
  void good_row(int64_t t, int64_t h, Acc* const* uv, To* dx, int64_t stride) {
    const T* x = x_row(t, h);
    if (call_.channels_last) return good_channels(x, uv, dx, stride);
    if (along_ == Along::wide) return good_wide(x, uv, dx);
    const Acc* ab[2] = {uv[0], uv[1]};
    if (along_ != Along::identity)
      for (int s = 0; s < 2; ++s) {
        spread_columns(uv[s], column_[s]);
        ab[s] = column_[s] + (own_w_.begin - first_column_);
      }
    gradient(x + own_w_.begin, own_w_.size(), dx, [&](int64_t i, V& a, V& b) SOFTPOOL_LAMBDA {
      a = load(ab[0] + i);
      b = load(ab[1] + i);
    });
    if (along_ != Along::identity)
      for (int s = 0; s < 2; ++s) clear_padding(column_[s]);
  }

  // What lies outside the input has to be 0 again for sum_columns.
  void clear_padding(Acc* column) const {
    for (int64_t i = 0; i < columns_.begin - first_column_; ++i) column[i] = 0;
    for (int64_t i = columns_.end - first_column_; i < column_pitch_; ++i) column[i] = 0;
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
    for (; i + lanes <= size; i += lanes) store(dx + i, of(i, load(x + i)));
    const int rest = static_cast<int>(size - i);
    if (rest > 0) store_part(dx + i, of(i, load_part(x + i, rest)), rest);
  }

  // column[o stride + tap dilation] = sum of row[o], the transpose of gather_columns.
  void spread_columns(const Acc* row, Acc* column) const {
    const auto& w = call_.geometry.w;
    const int64_t n = need_w_.size();
    if (along_ == Along::pairs && w.kernel == 2 && w.dilation == 1) {
      int64_t o = 0;
      const auto step = [&](V v) SOFTPOOL_LAMBDA {
        store(column + 2 * o, interleave(v, v, 0, Lanes{}));
        store(column + 2 * o + lanes, interleave(v, v, 1, Lanes{}));
      };
      for (; o + lanes <= n; o += lanes) step(load(row + o));
      if (o < n) step(load_part(row + o, static_cast<int>(n - o))), o += lanes;
      for (int64_t i = 2 * o; i < column_pitch_; i += lanes) store(column + i, V{});
      return;
    }
    for (int64_t i = 0; i < column_pitch_; i += lanes) store(column + i, V{});
    if (along_ == Along::unit) {
      // Lanes beyond the row hold garbage, which must not be spread: the last part goes one by one.
      for (int64_t k = 0; k < w.kernel; ++k) {
        Acc* to = column + k * w.dilation;
        int64_t o = 0;
        for (; o + lanes <= n; o += lanes) store(to + o, load(to + o) + load(row + o));
        for (; o < n; ++o) to[o] += row[o];
      }
    } else if (along_ == Along::pairs && w.dilation == 1) {
      // Taps two by two: 2 o + k and 2 o + k + 1.
      for (int64_t k = 0; k < w.kernel; k += 2) {
        Acc* to = column + k;
        const bool both = k + 1 < w.kernel;
        int64_t o = 0;
        for (; o + lanes <= n; o += lanes) {
          const V v = load(row + o), second = both ? v : V{};
          store(to + 2 * o, load(to + 2 * o) + interleave(v, second, 0, Lanes{}));
          store(to + 2 * o + lanes, load(to + 2 * o + lanes) + interleave(v, second, 1, Lanes{}));
        }
        for (; o < n; ++o) {
          to[2 * o] += row[o];
          if (both) to[2 * o + 1] += row[o];
        }
      }
    } else {
      for (int64_t o = 0; o < n; ++o)
        for (int64_t k = 0; k < w.kernel; ++k) column[o * w.stride + k * w.dilation] += row[o];
    }
  }

  template <class To>
  static void zero(To* to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) store_part(to + i, V{}, 1);
  }

  // Wide windows: stretches of the row over which the set of windows stays the same.
  template <class To>
  void good_wide(const T* x, Acc* const* uv, To* dx) {
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
  void good_channels(const T* x, Acc* const* uv, To* dx, int64_t stride) {
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
      for (; c + lanes <= channels_; c += lanes) store(to + c, of(c, load(from + c)));
      const int rest = static_cast<int>(channels_ - c);
      if (rest > 0) store_part(to + c, of(c, load_part(from + c, rest)), rest);
    }
  }

  const Call& call_;
  const Tile& tile_;
  char* scratch_;
  double* beta_grad_ = nullptr;
  bool direct_;
  Along along_;
  int sums_;
  int64_t channels_, length_, pieces_, piece_, pitch_, first_column_, column_pitch_;
  Span need_t_, need_h_, need_w_, own_w_, columns_;
  Acc *row_[3], *sum_[3], *column_[3], *line_;
  uint8_t* bad_;
  const T** pointers_;
  size_t bytes_;
};

template <class T, class Acc>
size_t scratch_bytes_of(const Call& call, const Tile& tile) {
  return Worker<T, Acc>(call, tile, nullptr).bytes();
}

template <class T, class Acc>
void run_of(const Call& call, const Tile& tile, void* scratch, double* beta_grad) {
  Worker<T, Acc>(call, tile, static_cast<char*>(scratch)).run(beta_grad);
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
