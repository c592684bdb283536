/* Triton's backend `tristage`: a model's steps inside tritonserver's own process, in one embedded Python.
 *
 * NVIDIA's Python backend gives every model a process and carries each tensor there and back through shared memory; on
 * one core that costs a small model more than its work. Here a request's tensors are read where Triton has them, and
 * an answer is written where Triton wants it. libpython must be in the process already, see serving/triton.py. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>

#include "backend.h"

#define EXPORT __attribute__((visibility("default")))

/* as stub/tristage.py does it for NVIDIA's backend: the search path of the program that started the server */
static const char SEARCH_PATH[] =
    "import os, sys\n"
    "home, *folders = os.environ.get('TRISTAGE_PATH', '').split(os.pathsep)\n"
    "sys.path[:] = dict.fromkeys([*filter(None, [home]), *sys.path, *filter(None, folders)])\n";

TRITONSERVER_Error *python_error(void) {
  PyObject *type, *value, *trace;
  PyErr_Fetch(&type, &value, &trace);
  PyErr_NormalizeException(&type, &value, &trace);
  PyObject *text = value ? PyObject_Str(value) : NULL;
  const char *said = text ? PyUnicode_AsUTF8AndSize(text, NULL) : NULL;
  TRITONSERVER_Error *error = TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, said && *said ? said : "Python failed");
  PyErr_Clear(); /* what the text itself may have raised */
  Py_XDECREF(text);
  Py_XDECREF(type);
  Py_XDECREF(value);
  Py_XDECREF(trace);
  return error;
}

static int run(const char *source) {
  PyObject *names = PyModule_GetDict(PyImport_AddModule("__main__"));
  PyObject *code = Py_CompileString(source, "backend.c", Py_file_input);
  PyObject *done = code ? PyEval_EvalCode(code, names, names) : NULL;
  Py_XDECREF(code);
  Py_XDECREF(done);
  return done ? 0 : -1;
}

EXPORT TRITONSERVER_Error *TRITONBACKEND_Initialize(TRITONBACKEND_Backend *backend) {
  (void)backend;
  uint32_t major = 0, minor = 0;
  TRITONSERVER_Error *error = TRITONBACKEND_ApiVersion(&major, &minor);
  if (error) return error;
  if (major != TRITONBACKEND_API_VERSION_MAJOR)
    return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_UNSUPPORTED, "this Triton has another backend interface");
  if (Py_IsInitialized()) return NULL; /* the last model was unloaded and another one comes: Python never ends */
  Py_InitializeEx(0); /* signals are tritonserver's */
  if (run(SEARCH_PATH)) error = python_error();
  PyEval_SaveThread();
  return error;
}

/* An answer's response, filled, with *error where it has become an error. */
static TRITONBACKEND_Response *respond(TRITONBACKEND_Request *request, PyObject *answer, TRITONSERVER_Error **error) {
  TRITONBACKEND_Response *response = NULL;
  TRITONSERVER_Error *failed = TRITONBACKEND_ResponseNew(&response, request);
  if (failed) {
    drop(*error);
    *error = failed;
    return NULL;
  }
  if (*error) return response;
  const char *said = PyUnicode_Check(answer) ? PyUnicode_AsUTF8AndSize(answer, NULL) : NULL;
  if (said) *error = TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, said);
  else *error = give_outputs(request, response, answer);
  return response;
}

typedef struct {
  TRITONBACKEND_Response *response;
  TRITONSERVER_Error *error;
} Outcome;

/* Asks the Python half for all requests at once; times are when its work began and ended. */
static void ask(PyObject *opened, const Waiting *waiting, uint32_t count, Outcome *outcomes, uint64_t *began,
    uint64_t *ended) {
  PyObject *given = PyList_New(0), *answers = NULL;
  TRITONSERVER_Error *broken = given ? NULL : python_error();
  for (uint32_t i = 0; !broken && i < count; i++) {
    PyObject *inputs = take_inputs(waiting[i].request, &outcomes[i].error);
    if (inputs && PyList_Append(given, inputs)) broken = python_error();
    Py_XDECREF(inputs);
  }
  *began = *ended = now();
  if (!broken) {
    answers = PyObject_CallFunctionObjArgs(opened, given, NULL);
    if (!answers) broken = python_error();
    *ended = now();
  }
  Py_ssize_t next = 0;
  for (uint32_t i = 0; i < count; i++) {
    PyObject *answer = NULL;
    if (broken && !outcomes[i].error)
      outcomes[i].error = TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, TRITONSERVER_ErrorMessage(broken));
    if (!outcomes[i].error && !(answer = PyList_GetItem(answers, next++))) outcomes[i].error = python_error();
    outcomes[i].response = respond(waiting[i].request, answer, &outcomes[i].error);
  }
  drop(broken);
  Py_XDECREF(answers);
  Py_XDECREF(given);
}

/* Answers requests that waited together. */
static void answer_all(PyObject *opened, PyThreadState *python, const Waiting *waiting, uint32_t count) {
  uint64_t start = now(), began, ended, rows = 0;
  Outcome outcomes[MOST_JOINED] = {{0}};
  PyEval_RestoreThread(python);
  ask(opened, waiting, count, outcomes, &began, &ended);
  PyEval_SaveThread();
  uint64_t end = now();
  for (uint32_t i = 0; i < count; i++) { /* before they are answered, so that who has an answer finds it counted */
    drop(TRITONBACKEND_ModelInstanceReportStatistics(
        waiting[i].instance, waiting[i].request, !outcomes[i].error, start, began, ended, end));
    rows += waiting[i].rows;
  }
  drop(TRITONBACKEND_ModelInstanceReportBatchStatistics(waiting[0].instance, rows, start, began, ended, end));
  for (uint32_t i = 0; i < count; i++)
    if (outcomes[i].error) send_error(waiting[i].request, outcomes[i].response, outcomes[i].error);
    else send_answer(waiting[i].request, outcomes[i].response);
}

/* Has the Python half open a model: what is called with requests, the rows that may be joined, and how many may wait. */
static PyObject *open_model(const char *folder, const char *config, size_t length, uint32_t *rows, uint32_t *waiting) {
  PyObject *module = PyImport_ImportModule("tristage.serving.backend.model"), *answer = NULL;
  PyObject *opened = module ? PyObject_CallMethod(module, "open_model", "ss#", folder, config, (Py_ssize_t)length) : NULL;
  if (opened && PyArg_ParseTuple(opened, "OII", &answer, rows, waiting)) Py_INCREF(answer);
  Py_XDECREF(opened);
  Py_XDECREF(module);
  return answer;
}

EXPORT TRITONSERVER_Error *TRITONBACKEND_ModelInstanceInitialize(TRITONBACKEND_ModelInstance *instance) {
  TRITONBACKEND_Model *model;
  TRITONSERVER_Message *message = NULL;
  const char *location, *config;
  char folder[4096];
  uint32_t rows = 0, waiting = 0;
  uint64_t version;
  size_t length;
  int artifact;
  TRITONSERVER_Error *error = TRITONBACKEND_ModelInstanceModel(instance, &model);
  if (!error) error = TRITONBACKEND_ModelRepository(model, &artifact, &location);
  if (!error) error = TRITONBACKEND_ModelVersion(model, &version);
  if (!error) error = TRITONBACKEND_ModelConfig(model, 1, &message);
  if (!error) error = TRITONSERVER_MessageSerializeToJson(message, &config, &length);
  if (!error && snprintf(folder, sizeof folder, "%s/%llu", location, (unsigned long long)version) >= (int)sizeof folder)
    error = TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, "the model's folder has too long a name");
  if (!error) {
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *opened = open_model(folder, config, length, &rows, &waiting);
    if (!opened) error = python_error();
    PyGILState_Release(gil);
    Queue *queue = NULL;
    if (!error) error = open_queue(&queue, opened, answer_all, rows, waiting);
    if (!error) error = TRITONBACKEND_ModelInstanceSetState(instance, queue);
  }
  if (message) TRITONSERVER_MessageDelete(message);
  return error;
}

/* The rows of a request; 1 where it has no inputs to tell it by. */
static uint32_t rows_of(TRITONBACKEND_Request *request) {
  TRITONBACKEND_Input *input;
  const char *name;
  int type;
  const int64_t *shape;
  uint32_t dims, buffers;
  uint64_t size;
  TRITONSERVER_Error *error = TRITONBACKEND_RequestInputByIndex(request, 0, &input);
  if (!error) error = TRITONBACKEND_InputProperties(input, &name, &type, &shape, &dims, &size, &buffers);
  uint32_t rows = !error && dims && shape[0] > 0 ? (uint32_t)shape[0] : 1;
  drop(error);
  return rows;
}

EXPORT TRITONSERVER_Error *TRITONBACKEND_ModelInstanceFinalize(TRITONBACKEND_ModelInstance *instance) {
  void *queue = NULL;
  TRITONSERVER_Error *error = TRITONBACKEND_ModelInstanceState(instance, &queue);
  if (error || !queue) return error;
  close_queue(queue);
  return NULL;
}

EXPORT TRITONSERVER_Error *TRITONBACKEND_ModelInstanceExecute(
    TRITONBACKEND_ModelInstance *instance, TRITONBACKEND_Request **requests, const uint32_t count) {
  void *queue;
  TRITONSERVER_Error *error = TRITONBACKEND_ModelInstanceState(instance, &queue);
  if (error) return error;
  for (uint32_t i = 0; i < count; i++) {
    Waiting one = {.request = requests[i], .instance = instance, .rows = rows_of(requests[i])};
    error = join_queue(queue, one);
    if (!error) continue;
    TRITONBACKEND_Response *response = NULL;
    uint64_t time = now();
    drop(TRITONBACKEND_ModelInstanceReportStatistics(instance, requests[i], false, time, time, time, time));
    drop(TRITONBACKEND_ResponseNew(&response, requests[i]));
    send_error(requests[i], response, error);
  }
  return NULL;
}
