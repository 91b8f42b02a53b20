/* The Python module torch_foo._C: empty. Loading the shared library runs the
 * static initialisers of generated/register.cpp, which is all there is to do.
 */
#include <Python.h>

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_C",
    .m_doc = "Registers torch.ops.torch_foo when it is imported.",
};

PyMODINIT_FUNC PyInit__C(void) { return PyModuleDef_Init(&module); }
