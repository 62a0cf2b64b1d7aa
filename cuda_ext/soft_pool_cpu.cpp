// CPU side of the operator library.

#include <torch/csrc/stable/library.h>

#include <cstdint>

// The C++ standard this library was built with: lets the doctor prove that the library loads and answers.
static int64_t built_with() { return static_cast<int64_t>(__cplusplus); }

STABLE_TORCH_LIBRARY_IMPL(softpool3d, CompositeExplicitAutograd, m) {
  m.impl("built_with", TORCH_BOX(&built_with));
}
