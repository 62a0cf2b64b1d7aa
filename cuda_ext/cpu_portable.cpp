// The CPU kernels for any processor.

#define SOFTPOOL_LEVEL portable
#define SOFTPOOL_VECTOR_BYTES 16
#include "cpu_kernels.h"

namespace softpool3d {
const Kernels* portable_kernels() {
  static constexpr Kernels kernels{0, portable::kBound<float>, portable::kBound<double>, SOFTPOOL_VECTOR_BYTES,
                                     portable::scratch_bytes, portable::run};
  return &kernels;
}
}  // namespace softpool3d
