// The CPU kernels for x86-64 with AVX-512.

#include "cpu_call.h"

#if defined(__x86_64__) && defined(__GNUC__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("arch=x86-64-v4"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
#endif
#define SOFTPOOL_LEVEL avx512
#define SOFTPOOL_VECTOR_BYTES 64
#include "cpu_kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options  // what follows also runs where there is none of this
#endif

namespace softpool3d {
const Kernels* avx512_kernels() {
  static constexpr Kernels kernels{2, avx512::kBound<float>, avx512::kBound<double>, SOFTPOOL_VECTOR_BYTES,
                                     avx512::scratch_bytes, avx512::run};
  const bool here = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
  return here ? &kernels : nullptr;
}
}  // namespace softpool3d

#else

namespace softpool3d {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace softpool3d

#endif
