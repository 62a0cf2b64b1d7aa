// CPU side of the operators.

#include "problem.h"
#include "window.h"

namespace softpool3d {
namespace {

// The values of one window: f(x) for each.
template <class T, class Strides, class F>
void for_window(const T* plane, const Strides& s, const Geometry<int64_t>& g, int64_t ot, int64_t oh, int64_t ow,
                const F& f) {
  using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const auto rt = g.t.window(ot), rh = g.h.window(oh), rw = g.w.window(ow);
  for (int64_t t = rt.begin; t < rt.end; t += rt.step)
    for (int64_t h = rh.begin; h < rh.end; h += rh.step)
      for (int64_t w = rw.begin; w < rw.end; w += rw.step) f(Acc(plane[t * s[2] + h * s[3] + w * s[4]]));
}

template <class T>
Tensor forward_of(const Problem& p) {
  using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const auto& g = p.geometry;
  Tensor output = p.empty_output();
  const T* x = static_cast<const T*>(p.input.const_data_ptr());
  T* y = static_cast<T*>(output.mutable_data_ptr());
  const Acc* betas = p.beta_per_channel ? static_cast<const Acc*>(p.beta_per_channel->const_data_ptr()) : nullptr;
  const auto xs = p.input.strides(), ys = output.strides();
  torch::stable::parallel_for(0, p.batch() * p.channels(), 1, [&](int64_t from, int64_t to) {
    for (int64_t plane = from; plane < to; ++plane) {
      const int64_t n = plane / p.channels(), c = plane % p.channels();
      const T* xp = x + n * xs[0] + c * xs[1];
      T* yp = y + n * ys[0] + c * ys[1];
      for (int64_t ot = 0; ot < g.t.out; ++ot)
        for (int64_t oh = 0; oh < g.h.out; ++oh)
          for (int64_t ow = 0; ow < g.w.out; ++ow) {
            Extent<Acc> extent;
            for_window(xp, xs, g, ot, oh, ow, [&](Acc v) { extent.add(v); });
            Sums<Acc> sums(extent, betas ? betas[c] : static_cast<Acc>(p.beta));
            for_window(xp, xs, g, ot, oh, ow, [&](Acc v) { sums.add(v); });
            yp[ot * ys[2] + oh * ys[3] + ow * ys[4]] = static_cast<T>(sums.mean());
          }
    }
  });
  return output;
}

Tensor forward(const Problem& p) {
  switch (p.input.scalar_type()) {
    case ScalarType::Double: return forward_of<double>(p);
    case ScalarType::Half: return forward_of<torch::headeronly::Half>(p);
    case ScalarType::BFloat16: return forward_of<torch::headeronly::BFloat16>(p);
    default: return forward_of<float>(p);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(softpool3d, CPU, m) {
  m.impl("soft_pool3d", TORCH_BOX((&Operators<forward, nullptr>::pool)));
  m.impl("adaptive_soft_pool3d", TORCH_BOX((&Operators<forward, nullptr>::adaptive)));
}

}  // namespace softpool3d
