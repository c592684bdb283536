/* The engine's Python face: one type over any buffer that holds a packed program, and the tables that it reads. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdlib.h>

#include "engine.h"

typedef struct {
  PyObject_HEAD
  Py_buffer packed;
  Py_buffer *tables;
  columns program;
} Columns;

static uint32_t crc(const char *text, uint32_t sum) {
  for (; *text; text++) {
    sum ^= (unsigned char)*text;
    for (int bit = 0; bit < 8; bit++) sum = sum & 1 ? sum >> 1 ^ 0xEDB88320u : sum >> 1;
  }
  return sum;
}

/* CRC-32 of the names of all operations, each with a line's end. */
static uint32_t all_operations(void) {
  uint32_t sum = 0xFFFFFFFFu;
  for (uint32_t i = 0; columns_name(i); i++) sum = crc("\n", crc(columns_name(i), sum));
  return ~sum;
}

static int take_tables(Columns *self, PyObject *tables) {
  uint32_t count = self->program.head.tables;
  if (!PyTuple_Check(tables) || PyTuple_Size(tables) != (Py_ssize_t)count) {
    PyErr_SetString(PyExc_ValueError, "it reads another number of tables");
    return -1;
  }
  self->tables = calloc(count + 1, sizeof *self->tables);
  if (!self->tables) {
    PyErr_NoMemory();
    return -1;
  }
  for (uint32_t i = 0; i < count; i++) {
    if (PyObject_GetBuffer(PyTuple_GetItem(tables, i), self->tables + i, PyBUF_SIMPLE)) return -1;
    if ((uint64_t)self->tables[i].len < self->program.table_bytes[i]) {
      PyErr_SetString(PyExc_ValueError, "a table is cut short");
      return -1;
    }
  }
  return 0;
}

static PyObject *columns_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
  static char *names[] = {"packed", "tables", NULL};
  PyObject *packed, *tables;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO:Columns", names, &packed, &tables)) return NULL;
  allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
  Columns *self = (Columns *)alloc(type, 0);
  if (!self) return NULL;
  if (PyObject_GetBuffer(packed, &self->packed, PyBUF_SIMPLE) == 0) {
    const char *why;
    int failed = columns_open(&self->program, self->packed.buf, (size_t)self->packed.len, all_operations(), &why);
    if (failed) PyErr_SetString(PyExc_ValueError, why);
    else if (take_tables(self, tables) == 0) return (PyObject *)self;
  }
  Py_DECREF(self);
  return NULL;
}

static void columns_dealloc(Columns *self) {
  PyTypeObject *type = Py_TYPE((PyObject *)self);
  for (uint32_t i = 0; self->tables && i < self->program.head.tables; i++)
    if (self->tables[i].obj) PyBuffer_Release(self->tables + i);
  free(self->tables);
  if (self->packed.obj) PyBuffer_Release(&self->packed);
  freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
  release(self);
  Py_DECREF(type);
}

/* run(rows, sides): inputs and then outputs, of so many rows. */
static PyObject *columns_answer(Columns *self, PyObject *args) {
  Py_ssize_t rows;
  PyObject *given;
  if (!PyArg_ParseTuple(args, "nO!:run", &rows, &PyTuple_Type, &given)) return NULL;
  const columns_header *head = &self->program.head;
  Py_ssize_t inputs = (Py_ssize_t)head->inputs, sides = inputs + (Py_ssize_t)head->outputs;
  if (rows < 0 || PyTuple_Size(given) != sides) return PyErr_Format(PyExc_ValueError, "it takes %zd arrays", sides);
  Py_buffer *views = calloc((size_t)sides + 1, sizeof *views);
  char **buffers = calloc((size_t)sides + head->tables + 1, sizeof *buffers);
  PyObject *result = NULL;
  if (!views || !buffers) {
    PyErr_NoMemory();
    goto release;
  }
  for (Py_ssize_t i = 0; i < sides; i++) {
    const columns_side *side = self->program.sides + i;
    int flags = PyBUF_C_CONTIGUOUS | (i < inputs ? 0 : PyBUF_WRITABLE);
    if (PyObject_GetBuffer(PyTuple_GetItem(given, i), views + i, flags)) goto release;
    uint64_t row = (uint64_t)side->bytes * side->width;
    if (views[i].itemsize != (Py_ssize_t)side->bytes || (uint64_t)views[i].len / row != (uint64_t)rows ||
        (uint64_t)views[i].len % row) {
      PyErr_Format(PyExc_ValueError, "array %zd has another shape or type than is taken", i);
      goto release;
    }
    if ((uintptr_t)views[i].buf % side->bytes) {
      PyErr_Format(PyExc_ValueError, "array %zd does not lie at a multiple of its elements' size", i);
      goto release;
    }
    buffers[i] = views[i].buf;
  }
  for (uint32_t i = 0; i < head->tables; i++) buffers[sides + i] = self->tables[i].buf;
  int failed;
  int64_t wrong = 0;
  Py_BEGIN_ALLOW_THREADS
  failed = columns_run(&self->program, buffers, (size_t)rows, &wrong);
  Py_END_ALLOW_THREADS
  if (failed == -2) PyErr_Format(PyExc_IndexError, "row %lld is not in a table", (long long)wrong);
  else result = failed ? PyErr_NoMemory() : Py_NewRef(Py_None);
release:
  for (Py_ssize_t i = 0; views && i < sides; i++)
    if (views[i].obj) PyBuffer_Release(views + i);
  free(views);
  free(buffers);
  return result;
}

static PyObject *operations(PyObject *module, PyObject *unused) {
  (void)module, (void)unused;
  uint32_t count = 0;
  while (columns_name(count)) count++;
  PyObject *names = PyTuple_New(count);
  for (uint32_t i = 0; names && i < count; i++) {
    PyObject *name = PyUnicode_FromString(columns_name(i));
    if (!name || PyTuple_SetItem(names, i, name)) {
      Py_DECREF(names);
      return NULL;
    }
  }
  return names;
}

static PyMethodDef methods[] = {
    {"run", (PyCFunction)columns_answer, METH_VARARGS, PyDoc_STR("run(rows, arrays): inputs, then outputs")},
    {0},
};
static PyType_Slot slots[] = {
    {Py_tp_new, columns_new},
    {Py_tp_dealloc, columns_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_doc, (void *)PyDoc_STR("Columns(packed, tables): answers rows from a buffer that holds a packed program")},
    {0},
};
static PyType_Spec spec = {
    .name = "tristage.serving.columns._columns.Columns",
    .basicsize = sizeof(Columns),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};

static int fill(PyObject *module) {
  PyObject *type = PyType_FromSpec(&spec);
  if (!type) return -1;
  int failed = PyModule_AddObjectRef(module, "Columns", type);
  Py_DECREF(type);
  return failed;
}

static PyMethodDef functions[] = {
    {"operations", operations, METH_NOARGS, PyDoc_STR("operations(): their names, by number")},
    {0},
};
static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, fill}, {0}};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_columns", "Columns of rows answered on one core.", 0, functions, module_slots,
    NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__columns(void) { return PyModuleDef_Init(&definition); }
