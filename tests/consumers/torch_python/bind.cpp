// The module as Python sees it.
#include <torch/python.h>

#include "block.h"

PYBIND11_MODULE(_C, m) {
  // forward and __call__ come from bind_module. pybind11 turns
  // std::invalid_argument, which foo_core's errors are too, into ValueError.
  torch::python::bind_module<GatedMLP>(m, "GatedMLP")
      .def(py::init<std::int64_t, std::int64_t, double>(), py::arg("dim"),
           py::arg("hidden"), py::arg("eps") = 1e-6);
}
