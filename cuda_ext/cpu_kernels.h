// The CPU kernels, compiled once for each instruction set by cpu_{portable,avx2,avx512}.cpp.
//
// Weights without the maximum. As long as |beta x| stays below some 40, exp(beta x) itself is a float of full relative
// precision, and so are its sums: nothing has to be subtracted. Then one exponential per input element serves all the
// windows that hold it, and windows become sums of sums. For a row of outputs, with u = g / S and v = u y,
//
//     S = sum e,   M = sum e x,   y = M / S        where e = exp(beta x)
//     dL/dx = e (A + beta (A x - B))               where A, B = sum of u, v over the windows that hold x
//
// A row of inputs that leaves that range marks the rows of outputs it touches. Those are computed by the definition.
//
// What a tile goes through:
//
//     cpu_transposer.h   planes of rows much shorter than vectors become channels_last first
//     cpu_plan.h         what the tile needs, and where its sums lie
//     cpu_rows.h         which rows of inputs make which rows of outputs and of gradients
//     cpu_columns.h      reads a row as numbers: sums them column by column; cpu_along.h then sums along W
//     cpu_wide.h         reads a row window by window, where windows are wider than vectors
//     cpu_channels.h     reads a row window by window, in vectors of channels
//     cpu_outputs.h      from a row of sums to y, or to u and v
//     cpu_exact.h        a row of outputs by the definition; cpu_exact_windows.h reads its windows
//     cpu_gradient.h     a row of input gradients
//     cpu_moments.h      the formula itself; cpu_exp2.h its exponential, cpu_vector.h the vectors

#include "cpu_channels.h"
#include "cpu_columns.h"
#include "cpu_plan.h"
#include "cpu_rows.h"
#include "cpu_transposer.h"
#include "cpu_wide.h"

namespace softpool3d {
namespace SOFTPOOL_LEVEL {

template <class T, class Acc>
void run_tile(const Call& call, const Tile& tile, char* scratch, double* beta_grad) {
  if (call.small_planes) return SmallPlanes<T, Acc>(call, tile, scratch).run(beta_grad);
  const Plan<T, Acc> plan(call, tile, scratch);
  switch (plan.reading) {
    case Reading::columns: return Rows<T, Acc, Columns>(plan, beta_grad).run();
    case Reading::wide: return Rows<T, Acc, Wide>(plan, beta_grad).run();
    case Reading::channels: return Rows<T, Acc, Channels>(plan, beta_grad).run();
  }
}

// Calls f<T, Acc>() for the call's type.
template <class F>
auto with_types(const Call& call, const F& f) {
  switch (call.type) {
    case Type::float64: return f.template operator()<double, double>();
    case Type::float16: return f.template operator()<Half, float>();
    case Type::bfloat16: return f.template operator()<BFloat16, float>();
    default: return f.template operator()<float, float>();
  }
}

inline size_t scratch_bytes(const Call& call, const Tile& tile) {
  return with_types(call, [&]<class T, class Acc>() {
    if (call.small_planes) return SmallPlanes<T, Acc>(call, tile, nullptr).bytes();
    return Plan<T, Acc>(call, tile, nullptr).bytes();
  });
}

inline void run(const Call& call, const Tile& tile, void* scratch, double* beta_grad) {
  with_types(call, [&]<class T, class Acc>() { run_tile<T, Acc>(call, tile, static_cast<char*>(scratch), beta_grad); });
}

}  // namespace SOFTPOOL_LEVEL
}  // namespace softpool3d
