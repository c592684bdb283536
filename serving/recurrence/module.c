/* The engine's Python face: one type over any buffer that holds a packed layer. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>

#include "engine.h"

typedef struct {
  PyObject_HEAD
  Py_buffer packed;
  recurrence layer;
} Layer;

static PyObject *layer_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
  static char *names[] = {"packed", NULL};
  PyObject *packed;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "O:Layer", names, &packed)) return NULL;
  allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
  Layer *self = (Layer *)alloc(type, 0);
  if (!self) return NULL;
  if (PyObject_GetBuffer(packed, &self->packed, PyBUF_SIMPLE) == 0) {
    const char *why;
    if (!recurrence_open(&self->layer, self->packed.buf, (size_t)self->packed.len, &why)) return (PyObject *)self;
    PyErr_SetString(PyExc_ValueError, why);
  }
  Py_DECREF(self);
  return NULL;
}

static void layer_dealloc(Layer *self) {
  PyTypeObject *type = Py_TYPE((PyObject *)self);
  if (self->packed.obj) PyBuffer_Release(&self->packed);
  freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
  release(self);
  Py_DECREF(type);
}

enum { INPUTS, MASK, EVERY, LAST, CELLS, VIEWS };

/* A buffer of so many dimensions, row by row, whose elements struct calls one of `formats` and are `size` bytes. */
static int take(PyObject *object, const char *name, int flags, const Py_ssize_t *shape, int dimensions,
                const char *formats, Py_ssize_t size, Py_buffer *view) {
  if (PyObject_GetBuffer(object, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | flags)) return -1;
  const char *format = view->format ? view->format : "B";
  if (*format == '@' || *format == '=' || *format == '<') format++;
  int fits = view->ndim == dimensions && *format && !format[1] && strchr(formats, *format) && view->itemsize == size;
  for (int i = 0; fits && i < dimensions; i++) fits = shape[i] < 0 || view->shape[i] == shape[i];
  if (fits) return 0;
  PyErr_Format(PyExc_ValueError, "%s has another shape or type than the layer takes", name);
  PyBuffer_Release(view);
  return -1;
}

static PyObject *layer_run(Layer *self, PyObject *args) {
  PyObject *objects[VIEWS];
  if (!PyArg_ParseTuple(args, "OOOOO:run", objects, objects + 1, objects + 2, objects + 3, objects + 4)) return NULL;
  Py_buffer views[VIEWS] = {{0}};
  PyObject *result = NULL;
  recurrence_call call = {0};
  const recurrence_header *head = &self->layer.head;
  Py_ssize_t width = (Py_ssize_t)head->width, any[] = {-1, -1, width * (Py_ssize_t)self->layer.gates};
  if (head->rows ? take(objects[INPUTS], "ids", 0, any, 2, "lq", 8, views)
                 : take(objects[INPUTS], "inputs", 0, any, 3, "f", 4, views))
    return NULL;
  Py_ssize_t rows = views[INPUTS].shape[0], steps = views[INPUTS].shape[1];
  const Py_ssize_t masked[] = {rows, steps}, every[] = {rows, steps, width}, last[] = {rows, width};
  if (objects[MASK] != Py_None && take(objects[MASK], "mask", 0, masked, 2, "?", 1, views + MASK)) goto release;
  if (objects[EVERY] != Py_None && take(objects[EVERY], "every", PyBUF_WRITABLE, every, 3, "f", 4, views + EVERY))
    goto release;
  for (int i = LAST; i < VIEWS; i++)
    if (objects[i] != Py_None && take(objects[i], "last", PyBUF_WRITABLE, last, 2, "f", 4, views + i)) goto release;
  call.steps = (size_t)steps;
  call.rows = (size_t)rows;
  call.ids = head->rows ? views[INPUTS].buf : NULL;
  call.projected = head->rows ? NULL : views[INPUTS].buf;
  call.mask = views[MASK].buf;
  call.every = views[EVERY].buf;
  call.last = views[LAST].buf;
  call.cells = views[CELLS].buf;
  int failed;
  int64_t wrong = 0;
  Py_BEGIN_ALLOW_THREADS
  failed = recurrence_run(&self->layer, &call, &wrong);
  Py_END_ALLOW_THREADS
  if (failed == -2)
    PyErr_Format(PyExc_IndexError, "id %lld is not in the table, which has %llu rows", (long long)wrong,
                 (unsigned long long)head->rows);
  else result = failed ? PyErr_NoMemory() : Py_NewRef(Py_None);
release:
  for (int i = 0; i < VIEWS; i++)
    if (views[i].obj) PyBuffer_Release(views + i);
  return result;
}

static PyObject *layer_width(Layer *self, void *unused) {
  (void)unused;
  return PyLong_FromUnsignedLongLong(self->layer.head.width);
}

static PyObject *layer_rows(Layer *self, void *unused) {
  (void)unused;
  return PyLong_FromUnsignedLongLong(self->layer.head.rows);
}

static PyMethodDef methods[] = {
    {"run", (PyCFunction)layer_run, METH_VARARGS, PyDoc_STR("run(inputs, mask, every, last, cells)")},
    {0},
};
static PyGetSetDef getters[] = {
    {"width", (getter)layer_width, NULL, PyDoc_STR("numbers in a state"), NULL},
    {"rows", (getter)layer_rows, NULL, PyDoc_STR("rows of the table; 0 without one"), NULL},
    {0},
};
static PyType_Slot slots[] = {
    {Py_tp_new, layer_new},
    {Py_tp_dealloc, layer_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, getters},
    {Py_tp_doc, (void *)PyDoc_STR("Layer(packed): answers rows from a buffer that holds a packed layer")},
    {0},
};
static PyType_Spec spec = {
    .name = "tristage.serving.recurrence._layer.Layer",
    .basicsize = sizeof(Layer),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};

static int fill(PyObject *module) {
  PyObject *type = PyType_FromSpec(&spec);
  if (!type) return -1;
  int failed = PyModule_AddObjectRef(module, "Layer", type);
  Py_DECREF(type);
  return failed;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, fill}, {0}};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_layer", "GRU and LSTM layers answered on one core.", 0, NULL, module_slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__layer(void) { return PyModuleDef_Init(&definition); }
