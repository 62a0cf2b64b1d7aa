// The schemas of softpool3d's operators, through PyTorch's stable ABI.

#include <Python.h>
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(softpool3d, m) {
  m.def("built_with() -> int");
}

extern "C" {
// Python finds the library as the module softpool3d._C; importing it runs the registrations of this file.
__attribute__((visibility("default"))) PyObject* PyInit__C(void) {
  static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  return PyModule_Create(&module);
}
}
