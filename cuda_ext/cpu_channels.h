// Rows of channels_last: each window along W is summed by itself, some vectors of channels at a time.

#pragma once

#include "cpu_gradient.h"
#include "cpu_plan.h"

namespace softpool3d {
namespace SOFTPOOL_LEVEL {

// A batch is one row.
template <class T, class Acc>
class Channels {
  using V = typename Vec<Acc>::type;
  static constexpr int lanes = Vec<Acc>::lanes;

 public:
  explicit Channels(const Plan<T, Acc>& plan) : plan_(plan) {}

  // Sums the windows of n rows of inputs.
  template <int kSums>
  SOFTPOOL_APART void sum(int64_t n, int64_t i) {
    constexpr int block = SOFTPOOL_AVX512 ? 4 : 2;  // as many vectors as there are registers for
    // Read once: the compiler would read what lies behind plan_ anew after each store.
    const From from{plan_.inputs, n, plan_.call.x_stride[4], plan_.scale, plan_.inverse_limit};
    const Range<int64_t>* const windows = plan_.call.w.windows;
    const int64_t channels = plan_.channels, end = plan_.need_w.end;
    // In parts, so that rounding errors do not add up, and a part is still in the cache for the next channels.
    const int64_t taps = max_of(int64_t{1}, 256 / max_of(n, int64_t{1}));
    Acc* to[kSums];
    for (int s = 0; s < kSums; ++s) to[s] = plan_.target(s, i);
    Largest<Acc> shares;
    for (int64_t wo = plan_.need_w.begin; wo < end; ++wo) {
      const auto window = windows[wo];
      const int64_t length = taps * window.step;
      auto part = window;
      do {
        part.end = min_of(part.begin + length, window.end);
        const bool first = part.begin == window.begin;
        const auto whole = [](const T* p) SOFTPOOL_LAMBDA { return load(p); };
        int64_t c = 0;
        for (; c + block * lanes <= channels; c += block * lanes) add<block>(from, c, part, first, to, shares, whole);
        for (; c + lanes <= channels; c += lanes) add<1>(from, c, part, first, to, shares, whole);
        const int rest = static_cast<int>(channels - c);
        if (rest > 0)
          add<1>(from, c, part, first, to, shares, [rest](const T* p) SOFTPOOL_LAMBDA { return load_part(p, rest); });
        part.begin += length;
      } while (part.begin < window.end);
      for (int s = 0; s < kSums; ++s) to[s] += channels;
    }
    shares_ = shares;
  }

  void gather(int64_t) const {}

  Acc share_of_limit(int64_t) const { return shares_.value(); }

  void spread(const RowSums<Acc>& uv, int64_t) { uv_ = uv; }

  // `stride`: of dx from one position to the next.
  template <class To>
  SOFTPOOL_APART void gradient(const T* x, int64_t, To* dx, int64_t stride) const {
    const auto axis = plan_.call.geometry.w;
    const int64_t channels = plan_.channels;
    const Acc *scale = plan_.scale, *beta = plan_.beta, *u = uv_[0], *v = uv_[1];
    for (int64_t w = plan_.own_w.begin; w < plan_.own_w.end; ++w) {
      const auto over = plan_.call.w.over[w];
      const T* from = x + w * plan_.call.x_stride[4];
      To* to = dx + (w - plan_.own_w.begin) * stride;
      const int64_t first = plan_.need_w.begin;
      bool held = false;
      for (int64_t wo = over.begin; wo < over.end; ++wo) held |= axis.holds(wo, w);
      if (!held) {
        store_zeros<Acc>(to, channels);
        continue;
      }
      const auto of = [&](int64_t c, V x) SOFTPOOL_LAMBDA {
        V a{}, b{};
        for (int64_t wo = over.begin; wo < over.end; ++wo) {
          if (!axis.holds(wo, w)) continue;
          const int64_t i = (wo - first) * channels + c;
          a += load(u + i);
          b += load(v + i);
        }
        return gradient_of(x, load(scale + c), load(beta + c), a, b);
      };
      int64_t c = 0;
      for (; c + lanes <= channels; c += lanes) {
        prefetch(from + c);
        store(to + c, of(c, load(from + c)));
      }
      const int rest = static_cast<int>(channels - c);
      if (rest > 0) store_part(to + c, of(c, load_part(from + c, rest)), rest);
    }
  }

 private:
  struct From {
    const T* const* rows;
    int64_t n, stride;
    const Acc *scale, *inverse_limit;
  };

  // Adds a part of a window, in `block` vectors of channels from c on. What is stored beyond the channels is
  // overwritten by the next window, or lies after the row.
  template <int block, int kSums, class LoadX>
  SOFTPOOL_INLINE static void add(const From& from, int64_t c, const Range<int64_t>& part, bool first,
                                  Acc* const (&to)[kSums], Largest<Acc>& shares, const LoadX& load_x) {
    V scale[block];
    Largest<Acc> largest[block];
    Moments<Acc, kSums> sum[block];
    for (int b = 0; b < block; ++b) scale[b] = load(from.scale + c + b * lanes);
    for (int64_t r = 0; r < from.n; ++r)
      for (int64_t w = part.begin; w < part.end; w += part.step) {
        const T* x_at = from.rows[r] + w * from.stride + c;
        for (int b = 0; b < block; ++b) {
          prefetch(x_at + b * lanes);
          const V x = load_x(x_at + b * lanes);
          largest[b].add(x);
          sum[b].add(x, scale[b]);
        }
      }
    for (int b = 0; b < block; ++b) {
      const int64_t at = c + b * lanes;
      shares.add_positive(largest[b].lanes() * load(from.inverse_limit + at));
      for (int s = 0; s < kSums; ++s)
        store(to[s] + at, first ? sum[b].of[s] : load(to[s] + at) + sum[b].of[s]);
    }
  }

  const Plan<T, Acc>& plan_;
  Largest<Acc> shares_;  // of the limit, in each channel
  RowSums<Acc> uv_;
};

}  // namespace SOFTPOOL_LEVEL
}  // namespace softpool3d
