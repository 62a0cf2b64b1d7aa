// The CPU kernels for x86-64 with AVX2.

#include "cpu_call.h"

#if defined(__x86_64__) && defined(__GNUC__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("arch=x86-64-v3"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#endif
#define SOFTPOOL_LEVEL avx2
#define SOFTPOOL_VECTOR_BYTES 32
#include "cpu_kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options  // what follows also runs where there is none of this
#endif

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
