// The start of every operator call, on CPU and CUDA alike: checks arguments, recognises the layout, allocates outputs.

#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <ostream>
#include <sstream>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "geometry.h"

// Newer headers than torch 2.11's have a check that says why a call failed, too.
#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace softpool3d {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

// How messages show a tensor's shape.
struct ShapeOf {
  const Tensor& tensor;
};

inline std::ostream& operator<<(std::ostream& out, const ShapeOf& shape) {
  out << "(";
  for (int64_t d = 0; d < shape.tensor.dim(); ++d) out << (d ? ", " : "") << shape.tensor.size(d);
  return out << ")";
}

// Throws a message of these parts, which are put together only then.
template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// The type that sums are kept in, which is also that of beta_per_channel.
inline ScalarType accumulation_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Whether channels lie next to each other in memory, in a tensor that is not plainly contiguous. Its output is
// channels_last_3d then. softpool3d/ops/library.py has the same rule for fake tensors.
inline bool is_channels_last(const Tensor& tensor) {
  return tensor.size(1) > 1 && tensor.stride(1) == 1 && !tensor.is_contiguous();
}

inline Tensor in_layout(const Tensor& tensor, bool channels_last) {
  if (!channels_last && tensor.is_contiguous()) return tensor;
  return torch::stable::contiguous(tensor,
                                   channels_last ? MemoryFormat::ChannelsLast3d : MemoryFormat::Contiguous);
}

// A tensor on the device of `like`, with the given strides. torch::stable::empty, which looks for its operator by name,
// takes as long as all the rest of a small call.
inline Tensor empty(const Tensor& like, const Ints& size, const Ints& stride, ScalarType type) {
  int32_t device, index;
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(size.size(), size.data(), stride.data(), dtype, device, index, &made));
  return Tensor(made);
}

inline Tensor empty_row(const Tensor& like, int64_t length, ScalarType type) { return empty(like, {length}, {1}, type); }

inline Tensor empty_in_layout(const Tensor& like, const Ints& size, bool channels_last) {
  const int64_t c = size[1], t = size[2], h = size[3], w = size[4];
  const Ints stride =
      channels_last ? Ints{t * h * w * c, 1, h * w * c, w * c, c} : Ints{c * t * h * w, t * h * w, h * w, w, 1};
  return empty(like, size, stride, like.scalar_type());
}

struct Problem {
  Tensor input;  // channels or width next to each other in memory; other strides are free, 0 included
  bool channels_last;
  std::optional<Tensor> beta_per_channel;
  double beta;
  Geometry<int64_t> geometry;

  Problem(const Tensor& given, const std::optional<Tensor>& betas, double beta_of_all)
      : input(given), beta_per_channel(betas), beta(beta_of_all) {
    require(given.dim() == 5, "soft_pool3d: input must be (N, C, T, H, W), but got shape ", ShapeOf{given});
    const ScalarType type = given.scalar_type();
    require(type == ScalarType::Double || type == ScalarType::Float || type == ScalarType::Half ||
                type == ScalarType::BFloat16,
            "soft_pool3d: input must be float64, float32, float16 or bfloat16, but got ",
            torch::headeronly::toString(type));
    for (int64_t d = 1; d < 5; ++d)
      require(given.size(d) > 0,
              "soft_pool3d: all but the batch of input must be non-empty, but got shape ", ShapeOf{given});
    if (betas) {
      require(betas->dim() == 1 && betas->size(0) == channels() && betas->scalar_type() == accumulation_type(given),
              "soft_pool3d: beta_per_channel must hold one value per channel, shape (", channels(),
              "), in the type of accumulation, but got shape ", ShapeOf{*betas}, " of ",
              torch::headeronly::toString(betas->scalar_type()));
      require(betas->device() == given.device(), "soft_pool3d: beta_per_channel must be on the device of input");
      beta_per_channel = torch::stable::contiguous(*betas);
    } else {
      require(!std::isnan(beta), "soft_pool3d: beta is NaN");
    }
    channels_last = is_channels_last(given);
    if (!channels_last && given.size(4) > 1 && given.stride(4) != 1) input = in_layout(given, false);
  }

  int64_t batch() const { return input.size(0); }
  int64_t channels() const { return input.size(1); }
  Ints input_size() const { return {batch(), channels(), geometry.t.size, geometry.h.size, geometry.w.size}; }
  Ints output_size() const { return {batch(), channels(), geometry.t.out, geometry.h.out, geometry.w.out}; }

  Tensor empty_output() const { return empty_in_layout(input, output_size(), channels_last); }
  Tensor empty_input_grad() const { return empty_in_layout(input, input_size(), channels_last); }

  // grad_output in the layout of the output, dense.
  Tensor native_grad(const Tensor& grad) const {
    require(grad.dim() == 5 && grad.scalar_type() == input.scalar_type() && grad.device() == input.device(),
            "soft_pool3d_backward: grad_output must have the type and device of input");
    require(std::ranges::equal(grad.sizes(), output_size()),
            "soft_pool3d_backward: grad_output must have the output's shape, but got ", ShapeOf{grad});
    return in_layout(grad, channels_last);
  }
};

inline Problem pool_problem(const Tensor& input, const std::optional<Tensor>& betas, double beta, const Ints& kernel,
                            const Ints& stride, const Ints& padding, const Ints& dilation, bool ceil_mode) {
  Problem problem(input, betas, beta);
  for (const Ints* values : {&kernel, &stride, &padding, &dilation})
    require(values->size() == 3, "soft_pool3d: kernel_size, stride, padding and dilation must be (T, H, W), but got ",
            values->size(), " values");
  const int64_t size[3] = {input.size(2), input.size(3), input.size(4)};
  problem.geometry = pool_geometry(input.size(1), size, kernel.data(), stride.data(), padding.data(),
                                   dilation.data(), ceil_mode);
  return problem;
}

inline Problem adaptive_problem(const Tensor& input, const std::optional<Tensor>& betas, double beta,
                                const Ints& output_size) {
  Problem problem(input, betas, beta);
  require(output_size.size() == 3, "adaptive_soft_pool3d: output_size must be (T, H, W), but got ",
          output_size.size(), " values");
  const int64_t size[3] = {input.size(2), input.size(3), input.size(4)};
  problem.geometry = adaptive_geometry(size, output_size.data());
  return problem;
}

// One device's two kernels under the names of the four operators:
//     Tensor Forward(const Problem&)
//     std::tuple<Tensor, Tensor> Backward(const Problem&, const Tensor& native_grad, bool input_grad, bool beta_grad)
template <auto Forward, auto Backward>
struct Operators {
  static Tensor pool(Tensor input, std::optional<Tensor> betas, double beta, Ints kernel, Ints stride, Ints padding,
                     Ints dilation, bool ceil_mode) {
    return Forward(pool_problem(input, betas, beta, kernel, stride, padding, dilation, ceil_mode));
  }

  static std::tuple<Tensor, Tensor> pool_backward(Tensor grad, Tensor input, std::optional<Tensor> betas, double beta,
                                                  Ints kernel, Ints stride, Ints padding, Ints dilation,
                                                  bool ceil_mode, bool input_grad, bool beta_grad) {
    const Problem p = pool_problem(input, betas, beta, kernel, stride, padding, dilation, ceil_mode);
    return Backward(p, p.native_grad(grad), input_grad, beta_grad);
  }

  static Tensor adaptive(Tensor input, std::optional<Tensor> betas, double beta, Ints output_size) {
    return Forward(adaptive_problem(input, betas, beta, output_size));
  }

  static std::tuple<Tensor, Tensor> adaptive_backward(Tensor grad, Tensor input, std::optional<Tensor> betas,
                                                      double beta, Ints output_size, bool input_grad,
                                                      bool beta_grad) {
    const Problem p = adaptive_problem(input, betas, beta, output_size);
    return Backward(p, p.native_grad(grad), input_grad, beta_grad);
  }

  static void implement(torch::stable::detail::StableLibrary& m) {
    m.impl("soft_pool3d", TORCH_BOX(&pool));
    m.impl("soft_pool3d_backward", TORCH_BOX(&pool_backward));
    m.impl("adaptive_soft_pool3d", TORCH_BOX(&adaptive));
    m.impl("adaptive_soft_pool3d_backward", TORCH_BOX(&adaptive_backward));
  }
};

}  // namespace softpool3d
