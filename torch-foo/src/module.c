/* The Python module torch_foo._C: empty. Importing it loads libtorch_foo.so,
 * whose static initialisers, in generated/register.cc, register the operators.
 */
#include <Python.h>

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_C",
    .m_doc = "Registers torch.ops.torch_foo when it is imported.",
};

PyMODINIT_FUNC PyInit__C(void) { return PyModuleDef_Init(&module); }
