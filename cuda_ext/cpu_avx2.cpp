// The CPU kernels for x86-64 with AVX2.

#include "cpu_call.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)

#pragma GCC target("arch=x86-64-v3")
#define SOFTPOOL_LEVEL avx2
#define SOFTPOOL_VECTOR_BYTES 32
#include "cpu_kernels.h"

namespace softpool3d {
const Kernels* avx2_kernels() {
  static constexpr Kernels kernels{1, avx2::kBound<float>, avx2::kBound<double>, SOFTPOOL_VECTOR_BYTES,
                                     avx2::scratch_bytes, avx2::run};
  const bool here = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  return here ? &kernels : nullptr;
}
}  // namespace softpool3d

#else

namespace softpool3d {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace softpool3d

#endif
