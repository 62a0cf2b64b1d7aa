// Rows of outputs, from their sums: y, or what gradients are made of.

#pragma once

#include "cpu_exact.h"
#include "cpu_moments.h"
#include "cpu_plan.h"

namespace softpool3d {
namespace SOFTPOOL_LEVEL {

template <class T, class Acc>
class Outputs {
  using V = typename Vec<Acc>::type;
  static constexpr int lanes = Vec<Acc>::lanes;

 public:
  Outputs(const Plan<T, Acc>& plan, double* beta_grad) : plan_(plan), beta_grad_(beta_grad) {}

  // Finishes row r of outputs. Backward, a good row is left as u and v in its sums, a bad one as Exact leaves it.
  void finish(int64_t to, int64_t ho, int64_t r) const {
    const RowSums<Acc> sums = plan_.sum(r);
    const int64_t at = plan_.y_offset(to, ho);
    uint8_t& bad = plan_.bad[r];
    if (!plan_.backward) {
      T* y = static_cast<T*>(plan_.call.result) + at;
      if (bad) with_exact(plan_, [&](const auto& exact) { exact.forward(to, ho, y); });
      else forward(y, sums);
      return;
    }
    const T* g = static_cast<const T*>(plan_.call.grad) + at;
    double* beta_grad = plan_.call.beta_grad && plan_.owns(to, ho) ? beta_grad_ : nullptr;
    if (!bad) bad = !backward(g, sums, beta_grad);
    if (bad) with_exact(plan_, [&](const auto& exact) { exact.backward(to, ho, g, sums, beta_grad); });
  }

  // Adds to the plan's line what row r, a bad one, contributes to the gradient of the row of inputs x.
  void add_exact_gradient(const T* x, int64_t r) const {
    with_exact(plan_, [&](const auto& exact) { exact.add_gradient(x, plan_.sum(r)); });
  }

 private:
  SOFTPOOL_APART void forward(T* y, const RowSums<Acc>& sums) const {
    const int64_t piece = plan_.piece;
    for (int64_t p = 0; p < plan_.pieces; ++p, y += plan_.call.y_stride[4]) {
      const Acc *weight = sums[0] + p * piece, *moment = sums[1] + p * piece;
      const auto mean = [&](int64_t i) SOFTPOOL_LAMBDA { return load(moment + i) * inverse_of<Acc>(load(weight + i)); };
      int64_t i = 0;
      for (; i + lanes <= piece; i += lanes) store(y + i, mean(i));
      const int rest = static_cast<int>(piece - i);
      if (rest > 0) store_part(y + i, mean(i), rest);
    }
  }

  // Makes u and v from the sums; returns false if they leave the range in which they are precise, or dL/dbeta does.
  SOFTPOOL_APART bool backward(const T* grad, const RowSums<Acc>& sums, double* beta_grad) const {
    const RowSums<Acc> uv = plan_.row(0);
    const int64_t piece = plan_.piece, length = plan_.length;
    Largest<Acc> largest, largest_g;
    for (int64_t p = 0; p < plan_.pieces; ++p) {
      const T* g = grad + p * plan_.call.y_stride[4];
      const int64_t at = p * piece;
      const auto step = [&](int64_t i, V gradient, V weight, V moment) SOFTPOOL_LAMBDA {
        const V inverse = inverse_of<Acc>(weight);
        const V y = moment * inverse, u = gradient * inverse, v = u * y;
        largest.add(u), largest.add(v);
        largest_g.add(gradient);
        store(uv[0] + i, u), store(uv[1] + i, v);
      };
      int64_t i = 0;
      for (; i + lanes <= piece; i += lanes)
        step(at + i, load(g + i), load(sums[0] + at + i), load(sums[1] + at + i));
      const int rest = static_cast<int>(piece - i);
      if (rest > 0)
        step(at + i, load_part(g + i, rest), load_part(sums[0] + at + i, rest), load_part(sums[1] + at + i, rest));
    }
    const Acc most = largest.value(), most_g = largest_g.value();
    if (!(most_g == 0 || (most > Acc(0x1p-60) && most < Acc(0x1p100)))) return false;

    if (beta_grad && !add_beta_gradient(grad, sums, beta_grad)) return false;
    for (int s = 0; s < 2; ++s)
      for (int64_t j = 0; j < length; j += lanes) store(sums[s] + j, load(uv[s] + j));
    return true;
  }

  // Adds what the tile's own outputs of a row contribute to dL/dbeta. Returns false, with nothing added, if too few
  // digits are left of E[x^2] - y^2 in a channel.
  bool add_beta_gradient(const T* grad, const RowSums<Acc>& sums, double* beta_grad) const {
    constexpr double least = sizeof(Acc) == 8 ? 0x1p-30 : 0x1p-6;
    const int64_t channels = plan_.channels;
    double gradient[kMostChannels], variance[kMostChannels], square[kMostChannels];
    for (int64_t c = 0; c < channels; ++c) gradient[c] = variance[c] = square[c] = 0;
    for (int64_t wo = plan_.tile.w.begin; wo < plan_.tile.w.end; ++wo)
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t i = plan_.sum_index(wo, c);
        if (sums[0][i] == 0) continue;
        const double g = load_one(grad + plan_.y_index(wo, c)), s = sums[0][i];
        const double y = sums[1][i] / s, of_squares = sums[2][i] / s;
        gradient[c] += g * (of_squares - y * y);
        variance[c] += (g < 0 ? -g : g) * (of_squares - y * y);
        square[c] += (g < 0 ? -g : g) * of_squares;
      }
    for (int64_t c = 0; c < channels; ++c)
      if (!(variance[c] >= least * square[c])) return false;
    for (int64_t c = 0; c < channels; ++c) beta_grad[c] += gradient[c];
    return true;
  }

  const Plan<T, Acc>& plan_;
  double* beta_grad_;
};

}  // namespace SOFTPOOL_LEVEL
}  // namespace softpool3d
