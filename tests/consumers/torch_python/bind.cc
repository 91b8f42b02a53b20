// The Python module _C with the class GatedMLP.
#include <torch/python.h>

#include "block.h"

PYBIND11_MODULE(_C, m) {
  // bind_module adds forward and __call__. pybind11 translates
  // std::invalid_argument, from which foo_core's errors derive, to ValueError.
  torch::python::bind_module<GatedMLP>(m, "GatedMLP")
      .def(py::init<std::int64_t, std::int64_t, double>(), py::arg("dim"),
           py::arg("hidden"), py::arg("eps") = 1e-6);
}
