#include <string.h>

#include "backend.h"

enum { ALIGNED = 16, MAX_DIMS = 8 };

static TRITONSERVER_Error *internal(const char *message) {
  return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, message);
}

/* An input's bytes: Triton's own where they lie in one aligned piece, and a copy, *owner, otherwise. */
static TRITONSERVER_Error *bytes_of(TRITONBACKEND_Input *input, uint32_t buffers, uint64_t size, const char **start,
    PyObject **owner) {
  const void *piece = NULL;
  uint64_t length = 0;
  for (uint32_t i = 0; i < buffers; i++) {
    int memory = TRITONSERVER_MEMORY_CPU;
    int64_t id = 0;
    TRITONSERVER_Error *error = TRITONBACKEND_InputBuffer(input, i, &piece, &length, &memory, &id);
    if (error) return error;
    if (memory == TRITONSERVER_MEMORY_GPU)
      return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_UNSUPPORTED, "an input lies in a GPU's memory");
    if (buffers == 1 && length == size && (uintptr_t)piece % ALIGNED == 0) {
      *start = piece;
      return NULL;
    }
    if (!*owner) {
      *owner = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
      if (!*owner) return python_error();
      *start = PyBytes_AsString(*owner);
      size = 0; /* from here on how much of it is filled */
    }
    if (length > (uint64_t)PyBytes_Size(*owner) - size) return internal("an input is longer than Triton says");
    if (length) memcpy((char *)*start + size, piece, length);
    size += length;
  }
  if (*owner && size != (uint64_t)PyBytes_Size(*owner)) return internal("an input is shorter than Triton says");
  if (!buffers && size) return internal("an input has no content");
  return NULL;
}

/* Texts, each after its length in 4 bytes, as a list of str; as bytes, the first that is not UTF-8, where one is not. */
static PyObject *texts_of(const char *start, uint64_t size) {
  PyObject *texts = PyList_New(0);
  const char *end = start + size;
  while (texts && start < end) {
    uint32_t length = 0;
    if (end - start >= 4) memcpy(&length, start, 4);
    if (end - start < 4 || (uint64_t)(end - start - 4) < length) {
      Py_DECREF(texts);
      PyErr_SetString(PyExc_ValueError, "a text is cut short");
      return NULL;
    }
    PyObject *text = PyUnicode_DecodeUTF8(start + 4, length, NULL);
    if (!text && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) {
      PyErr_Clear();
      Py_DECREF(texts);
      return PyBytes_FromStringAndSize(start + 4, length);
    }
    if (!text || PyList_Append(texts, text)) Py_CLEAR(texts);
    Py_XDECREF(text);
    start += 4 + length;
  }
  return texts;
}

static PyObject *shape_of(const int64_t *shape, uint32_t dims) {
  PyObject *made = PyTuple_New(dims);
  for (uint32_t i = 0; made && i < dims; i++) {
    PyObject *length = PyLong_FromLongLong(shape[i]);
    if (!length || PyTuple_SetItem(made, i, length)) Py_CLEAR(made);
  }
  return made;
}

static TRITONSERVER_Error *take_input(TRITONBACKEND_Input *input, PyObject *inputs) {
  const char *name, *start = "";
  int type;
  const int64_t *shape;
  uint32_t dims, buffers;
  uint64_t size;
  TRITONSERVER_Error *error = TRITONBACKEND_InputProperties(input, &name, &type, &shape, &dims, &size, &buffers);
  if (error) return error;
  PyObject *owner = NULL, *values = NULL;
  error = bytes_of(input, buffers, size, &start, &owner);
  if (error) {
    Py_XDECREF(owner);
    return error;
  }
  if (type == TRITONSERVER_TYPE_BYTES) values = texts_of(start, size);
  else if (owner) values = Py_NewRef(owner);
  else values = PyMemoryView_FromMemory((char *)start, (Py_ssize_t)size, PyBUF_READ);
  Py_XDECREF(owner);
  PyObject *sized = values ? shape_of(shape, dims) : NULL;
  PyObject *both = sized ? PyTuple_Pack(2, values, sized) : NULL;
  if (!both || PyDict_SetItemString(inputs, name, both)) error = python_error();
  Py_XDECREF(values);
  Py_XDECREF(sized);
  Py_XDECREF(both);
  return error;
}

PyObject *take_inputs(TRITONBACKEND_Request *request, TRITONSERVER_Error **error) {
  uint32_t count = 0;
  PyObject *inputs = PyDict_New();
  if (!inputs) {
    *error = python_error();
    return NULL;
  }
  *error = TRITONBACKEND_RequestInputCount(request, &count);
  for (uint32_t i = 0; !*error && i < count; i++) {
    TRITONBACKEND_Input *input;
    *error = TRITONBACKEND_RequestInputByIndex(request, i, &input);
    if (!*error) *error = take_input(input, inputs);
  }
  if (*error) Py_CLEAR(inputs);
  return inputs;
}

/* Whether a request asks for an output; one that names none is not asked for any. */
static bool asked_for(TRITONBACKEND_Request *request, const char *name) {
  uint32_t count = 0;
  if (TRITONBACKEND_RequestOutputCount(request, &count)) return true;
  for (uint32_t i = 0; i < count; i++) {
    const char *asked;
    if (!TRITONBACKEND_RequestOutputName(request, i, &asked) && strcmp(asked, name) == 0) return true;
  }
  return false;
}

static TRITONSERVER_Error *give_output(TRITONBACKEND_Response *response, const char *name, int type, PyObject *shape,
    PyObject *values) {
  int64_t lengths[MAX_DIMS];
  Py_ssize_t dims = PyTuple_Size(shape);
  if (dims < 0 || dims > MAX_DIMS) {
    PyErr_Clear();
    return internal("an answer has an impossible shape");
  }
  for (Py_ssize_t i = 0; i < dims; i++) {
    lengths[i] = PyLong_AsLongLong(PyTuple_GetItem(shape, i));
    if (lengths[i] == -1 && PyErr_Occurred()) return python_error();
  }
  TRITONBACKEND_Output *output;
  TRITONSERVER_Error *error = TRITONBACKEND_ResponseOutput(response, &output, name, type, lengths, (uint32_t)dims);
  if (error) return error;
  Py_buffer from;
  if (PyObject_GetBuffer(values, &from, PyBUF_SIMPLE)) return python_error();
  void *to = NULL;
  int memory = TRITONSERVER_MEMORY_CPU;
  int64_t id = 0;
  error = TRITONBACKEND_OutputBuffer(output, &to, (uint64_t)from.len, &memory, &id);
  if (!error && memory == TRITONSERVER_MEMORY_GPU)
    error = TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_UNSUPPORTED, "an output is wanted in a GPU's memory");
  if (!error && from.len) memcpy(to, from.buf, (size_t)from.len);
  PyBuffer_Release(&from);
  return error;
}

TRITONSERVER_Error *give_outputs(TRITONBACKEND_Request *request, TRITONBACKEND_Response *response, PyObject *answer) {
  Py_ssize_t count = PyList_Size(answer);
  if (count < 0) return python_error();
  for (Py_ssize_t i = 0; i < count; i++) {
    const char *name;
    int type;
    PyObject *shape, *values;
    if (!PyArg_ParseTuple(PyList_GetItem(answer, i), "siOO", &name, &type, &shape, &values)) return python_error();
    if (!asked_for(request, name)) continue;
    TRITONSERVER_Error *error = give_output(response, name, type, shape, values);
    if (error) return error;
  }
  return NULL;
}
