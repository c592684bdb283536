/* The engine's Python face: one type over any buffer that holds a packed forest. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>

#include "engine.h"

typedef struct {
  PyObject_HEAD
  Py_buffer packed;
  forest_engine *engine;
} Engine;

static PyObject *engine_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
  static char *names[] = {"packed", NULL};
  PyObject *packed;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "O:Engine", names, &packed)) return NULL;
  allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
  Engine *self = (Engine *)alloc(type, 0);
  if (!self) return NULL;
  if (PyObject_GetBuffer(packed, &self->packed, PyBUF_SIMPLE) == 0) {
    const char *why;
    Py_BEGIN_ALLOW_THREADS
    self->engine = forest_open(self->packed.buf, (size_t)self->packed.len, &why);
    Py_END_ALLOW_THREADS
    if (self->engine) return (PyObject *)self;
    PyErr_SetString(PyExc_ValueError, why);
  }
  Py_DECREF(self);
  return NULL;
}

static void engine_dealloc(Engine *self) {
  PyTypeObject *type = Py_TYPE((PyObject *)self);
  forest_close(self->engine);
  if (self->packed.obj) PyBuffer_Release(&self->packed);
  freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
  release(self);
  Py_DECREF(type);
}

/* A buffer of `dimensions` dimensions, row by row, whose elements struct calls one of `formats`. 0, or -1 with an error. */
static int take(PyObject *object, const char *name, int flags, int dimensions, const char *formats, Py_buffer *view) {
  if (PyObject_GetBuffer(object, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | flags)) return -1;
  const char *format = view->format ? view->format : "B";
  if (*format == '@' || *format == '=' || *format == '<') format++;
  if (view->ndim == dimensions && *format && !format[1] && strchr(formats, *format)) return 0;
  PyErr_Format(PyExc_ValueError, "%s must have %d dimension(s) and elements of format %s, not %d and %s", name,
               dimensions, formats, view->ndim, view->format ? view->format : "B");
  PyBuffer_Release(view);
  return -1;
}

static PyObject *engine_predict(Engine *self, PyObject *args) {
  PyObject *row_object, *out_object, *group_object = Py_None;
  if (!PyArg_ParseTuple(args, "OO|O:predict", &row_object, &out_object, &group_object)) return NULL;
  PyObject *result = NULL;
  Py_buffer rows, out, groups = {0};
  if (take(row_object, "rows", 0, 2, "f", &rows)) return NULL;
  if (take(out_object, "out", PyBUF_WRITABLE, 2, "f", &out)) goto release_rows;
  if (group_object != Py_None) {
    if (take(group_object, "groups", 0, 1, "lq", &groups)) goto release_out;
    if (groups.itemsize != 8) {
      PyErr_SetString(PyExc_ValueError, "groups must be int64");
      goto release_all;
    }
  }
  if (rows.shape[1] != (Py_ssize_t)forest_features(self->engine))
    PyErr_Format(PyExc_ValueError, "rows have %zd columns, but the forests read %zu", rows.shape[1],
                 forest_features(self->engine));
  else if (out.shape[0] != rows.shape[0] || out.shape[1] != (Py_ssize_t)forest_outputs(self->engine))
    PyErr_Format(PyExc_ValueError, "out must have shape [%zd, %zu], not [%zd, %zd]", rows.shape[0],
                 forest_outputs(self->engine), out.shape[0], out.shape[1]);
  else if (group_object != Py_None && groups.shape[0] != rows.shape[0])
    PyErr_Format(PyExc_ValueError, "there are %zd groups for %zd rows", groups.shape[0], rows.shape[0]);
  else {
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = forest_predict(self->engine, rows.buf, (size_t)rows.shape[0], groups.buf, out.buf);
    Py_END_ALLOW_THREADS
    result = failed ? PyErr_NoMemory() : Py_NewRef(Py_None);
  }
release_all:
  if (group_object != Py_None) PyBuffer_Release(&groups);
release_out:
  PyBuffer_Release(&out);
release_rows:
  PyBuffer_Release(&rows);
  return result;
}

static PyObject *engine_features(Engine *self, void *unused) {
  (void)unused;
  return PyLong_FromSize_t(forest_features(self->engine));
}

static PyObject *engine_outputs(Engine *self, void *unused) {
  (void)unused;
  return PyLong_FromSize_t(forest_outputs(self->engine));
}

static PyObject *engine_groups(Engine *self, void *unused) {
  (void)unused;
  return PyLong_FromSize_t(forest_groups(self->engine));
}

static PyMethodDef methods[] = {
    {"predict", (PyCFunction)engine_predict, METH_VARARGS, PyDoc_STR("predict(rows, out, groups=None)")},
    {0},
};
static PyGetSetDef getters[] = {
    {"features", (getter)engine_features, NULL, PyDoc_STR("columns of rows"), NULL},
    {"outputs", (getter)engine_outputs, NULL, PyDoc_STR("columns of answers"), NULL},
    {"groups", (getter)engine_groups, NULL, PyDoc_STR("groups of rows"), NULL},
    {0},
};
static PyType_Slot slots[] = {
    {Py_tp_new, engine_new},
    {Py_tp_dealloc, engine_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, getters},
    {Py_tp_doc, (void *)PyDoc_STR("Engine(packed): answers rows from a buffer that holds a packed forest")},
    {0},
};
static PyType_Spec spec = {
    .name = "tristage.serving.forest._engine.Engine",
    .basicsize = sizeof(Engine),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};

static int fill(PyObject *module) {
  PyObject *type = PyType_FromSpec(&spec);
  if (!type) return -1;
  int failed = PyModule_AddObjectRef(module, "Engine", type);
  Py_DECREF(type);
  return failed;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, fill}, {0}};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_engine", "Forests answered on one core.", 0, NULL, module_slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__engine(void) { return PyModuleDef_Init(&definition); }
