// CUDA side of the operator: tensors in, kernels on the current stream, tensors out.

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <tuple>
#include <vector>

#include "old_glibc.h"
#include "problem.h"
#include "soft_pool_launch.cuh"

namespace {

using softpool3d::Problem;
using softpool3d::cuda::AccOf;
using softpool3d::cuda::Call;
using softpool3d::cuda::Launcher;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

template <class F>
void for_type(ScalarType type, F f) {
  switch (type) {
    case ScalarType::Double: return f(double());
    case ScalarType::Float: return f(float());
    case ScalarType::Half: return f(torch::headeronly::Half());
    default: return f(torch::headeronly::BFloat16());
  }
}

// Calls f(launcher) on the device, stream and type of the problem.
template <class F>
void with_launcher(const Problem& p, F f) {
  const torch::stable::accelerator::DeviceGuard guard(p.input.get_device_index());
  // Freed when the call returns: the allocator hands memory on in the order of the stream.
  std::vector<Tensor> workspaces;
  for_type(p.input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    Call<T> call;
    call.axes = p.geometry;
    call.batch = p.batch();
    call.channels = p.channels();
    call.channels_last = p.channels_last;
    call.x = static_cast<const T*>(p.input.data_ptr());
    for (int d = 0; d < 5; ++d) call.strides[d] = p.input.stride(d);
    call.betas = p.beta_per_channel ? static_cast<const AccOf<T>*>(p.beta_per_channel->data_ptr()) : nullptr;
    call.beta = p.beta;
    call.stream = current_stream(p.input);
    call.workspace = [&](int64_t bytes) {
      workspaces.push_back(softpool3d::empty_row(p.input, bytes, ScalarType::Byte));
      return workspaces.back().data_ptr();
    };
    f(Launcher<T>(call), zero);
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor forward(const Problem& p) {
  const Tensor y = p.empty_output();
  if (p.batch() == 0) return y;
  with_launcher(p, [&](const auto& launcher, auto zero) {
    launcher.forward(static_cast<decltype(zero)*>(y.data_ptr()));
  });
  return y;
}

std::tuple<Tensor, Tensor> backward(const Problem& p, const Tensor& y_grad, bool input_grad, bool beta_grad) {
  // A gradient that is not wanted is an empty tensor.
  const Tensor x_grad =
      input_grad ? p.empty_input_grad() : softpool3d::empty_row(p.input, 0, p.input.scalar_type());
  Tensor betas_grad =
      softpool3d::empty_row(p.input, beta_grad ? p.channels() : 0, softpool3d::accumulation_type(p.input));
  if (p.batch() == 0) {
    if (beta_grad) torch::stable::zero_(betas_grad);
    return {x_grad, betas_grad};
  }
  with_launcher(p, [&](const auto& launcher, auto zero) {
    using T = decltype(zero);
    const auto* const g = static_cast<const T*>(y_grad.data_ptr());
    if (input_grad) launcher.backward(g, static_cast<T*>(x_grad.data_ptr()));
    if (beta_grad) launcher.beta_gradient(g, static_cast<AccOf<T>*>(betas_grad.data_ptr()));
  });
  return {x_grad, betas_grad};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(softpool3d, CUDA, m) { softpool3d::Operators<forward, backward>::implement(m); }

#define SOFTPOOL_TEXT(number) SOFTPOOL_TEXT_OF(number)
#define SOFTPOOL_TEXT_OF(number) #number

// What it was built with and for, as in "13000 sm_80 sm_90 compute_90": library.py holds it against a GPU and its driver.
extern "C" __attribute__((visibility("default"))) const char* softpool3d_built_for() {
  return SOFTPOOL_TEXT(CUDART_VERSION) " " SOFTPOOL_TARGETS;
}
