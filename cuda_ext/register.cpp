// The schemas of softpool3d's operators, through PyTorch's stable ABI. Everything but the kernels (fake tensors,
// autograd, vmap) is added in softpool3d/ops/library.py.
//
// input is (N, C, T, H, W); triples are (T, H, W). beta_per_channel, where given, replaces beta and has the type of
// accumulation: float64 for float64 and float32 for all others. The backward returns the gradients of input and of
// beta_per_channel; one that was not asked for is an empty tensor.

#include <torch/csrc/stable/library.h>

#include "old_glibc.h"

#define BETA "Tensor? beta_per_channel, float beta"
#define WINDOWS "int[3] kernel_size, int[3] stride, int[3] padding, int[3] dilation, bool ceil_mode"
#define WANTED "bool input_grad, bool beta_grad"

STABLE_TORCH_LIBRARY(softpool3d, m) {
  m.def("soft_pool3d(Tensor input, " BETA ", " WINDOWS ") -> Tensor");
  m.def("soft_pool3d_backward(Tensor grad_output, Tensor input, " BETA ", " WINDOWS ", " WANTED ") -> (Tensor, Tensor)");
  m.def("adaptive_soft_pool3d(Tensor input, " BETA ", int[3] output_size) -> Tensor");
  m.def("adaptive_soft_pool3d_backward(Tensor grad_output, Tensor input, " BETA ", int[3] output_size, " WANTED
        ") -> (Tensor, Tensor)");
  // Which CPU kernels run: 0 portable, 1 AVX2, 2 AVX-512; and, for tests, at most which.
  m.def("cpu_level() -> int");
  m.def("limit_cpu_level(int level) -> ()");
}
