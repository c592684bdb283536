/* The backend's two halves: backend.c is called by Triton, tensors.c makes Python's objects of Triton's and back. */
#ifndef TRISTAGE_BACKEND_H
#define TRISTAGE_BACKEND_H
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "triton.h"

/* A Triton error of Python's, which is cleared. */
TRITONSERVER_Error *python_error(void);

/* A request's inputs: a dict of name -> (values, shape). Values are a buffer; of texts a list of str, or bytes where one
 * of them is not UTF-8. Buffers are Triton's own, and end with the request. Returns NULL and sets *error where it cannot
 * be read, and adds the rows of the first input to *rows. */
PyObject *take_inputs(TRITONBACKEND_Request *request, uint64_t *rows, TRITONSERVER_Error **error);

/* Copies an answer, a list of (name, Triton's type, shape, buffer), into a response, as far as the request asks for it. */
TRITONSERVER_Error *give_outputs(TRITONBACKEND_Request *request, TRITONBACKEND_Response *response, PyObject *answer);
#endif
