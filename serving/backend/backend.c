/* Triton's backend `tristage`: a model's steps inside tritonserver's own process, in one embedded Python.
 *
 * NVIDIA's Python backend gives every model a process and carries each tensor there and back through shared memory; on
 * one core that costs a small model more than its work. Here a request's tensors are read where Triton has them, and
 * an answer is written where Triton wants it. libpython must be in the process already, see serving/triton.py. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

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

/* The Python half's answer to open_model(folder, configuration): what is called with requests. */
static PyObject *open_model(const char *folder, const char *config, size_t length) {
  PyObject *module = PyImport_ImportModule("tristage.serving.backend.model");
  PyObject *opened = module ? PyObject_CallMethod(module, "open_model", "ss#", folder, config, (Py_ssize_t)length) : NULL;
  Py_XDECREF(module);
  return opened;
}

EXPORT TRITONSERVER_Error *TRITONBACKEND_ModelInstanceInitialize(TRITONBACKEND_ModelInstance *instance) {
  TRITONBACKEND_Model *model;
  TRITONSERVER_Message *message = NULL;
  const char *location, *config;
  char folder[4096];
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
    PyObject *opened = open_model(folder, config, length);
    if (!opened) error = python_error();
    PyGILState_Release(gil);
    if (opened) error = TRITONBACKEND_ModelInstanceSetState(instance, opened);
  }
  if (message) TRITONSERVER_MessageDelete(message);
  return error;
}

EXPORT TRITONSERVER_Error *TRITONBACKEND_ModelInstanceFinalize(TRITONBACKEND_ModelInstance *instance) {
  void *opened = NULL;
  TRITONSERVER_Error *error = TRITONBACKEND_ModelInstanceState(instance, &opened);
  if (error || !opened) return error;
  PyGILState_STATE gil = PyGILState_Ensure();
  Py_DECREF((PyObject *)opened);
  PyGILState_Release(gil);
  return NULL;
}

/* Forgets an error that nobody can be told. */
static void drop(TRITONSERVER_Error *error) {
  if (error) TRITONSERVER_ErrorDelete(error);
}

static uint64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time); /* the clock that Triton stamps requests by */
  return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
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
static void answer_all(PyObject *opened, TRITONBACKEND_Request **requests, uint32_t count, Outcome *outcomes,
    uint64_t *rows, uint64_t *began, uint64_t *ended) {
  PyObject *given = PyList_New(0), *answers = NULL;
  TRITONSERVER_Error *broken = given ? NULL : python_error();
  for (uint32_t i = 0; !broken && i < count; i++) {
    PyObject *inputs = take_inputs(requests[i], rows, &outcomes[i].error);
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
    outcomes[i].response = respond(requests[i], answer, &outcomes[i].error);
  }
  drop(broken);
  Py_XDECREF(answers);
  Py_XDECREF(given);
}

/* Sends responses: answers at once, errors a moment later, and never two at a time.
 *
 * An answer makes Triton schedule the ensemble's next steps, in this thread. An error that reaches Triton 2.51 while it
 * does so in another one, or while it still schedules the ensemble's first steps, ends tritonserver: it answers the
 * request twice (mended in its core's #483). */
static void send_all(Outcome *outcomes, uint32_t count) {
  static pthread_mutex_t sending = PTHREAD_MUTEX_INITIALIZER;
  const struct timespec moment = {.tv_nsec = 10000000};
  bool waited = false;
  for (int errors = 0; errors < 2; errors++)
    for (uint32_t i = 0; i < count; i++) {
      if (errors != (outcomes[i].error != NULL)) continue;
      if (errors && !waited) waited = nanosleep(&moment, NULL) || true;
      pthread_mutex_lock(&sending);
      TRITONBACKEND_Response *response = outcomes[i].response;
      if (response) drop(TRITONBACKEND_ResponseSend(response, TRITONSERVER_RESPONSE_COMPLETE_FINAL, outcomes[i].error));
      pthread_mutex_unlock(&sending);
      drop(outcomes[i].error);
    }
}

EXPORT TRITONSERVER_Error *TRITONBACKEND_ModelInstanceExecute(
    TRITONBACKEND_ModelInstance *instance, TRITONBACKEND_Request **requests, const uint32_t count) {
  uint64_t start = now(), began, ended, rows = 0;
  void *opened;
  TRITONSERVER_Error *error = TRITONBACKEND_ModelInstanceState(instance, &opened);
  if (error) return error;
  Outcome *outcomes = calloc(count, sizeof *outcomes);
  if (!outcomes) return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, "no memory is left");
  PyGILState_STATE gil = PyGILState_Ensure();
  answer_all(opened, requests, count, outcomes, &rows, &began, &ended);
  PyGILState_Release(gil);
  uint64_t end = now();
  for (uint32_t i = 0; i < count; i++) /* before they are answered, so that who has an answer finds it counted */
    drop(TRITONBACKEND_ModelInstanceReportStatistics(
        instance, requests[i], !outcomes[i].error, start, began, ended, end));
  drop(TRITONBACKEND_ModelInstanceReportBatchStatistics(instance, rows, start, began, ended, end));
  send_all(outcomes, count);
  for (uint32_t i = 0; i < count; i++) drop(TRITONBACKEND_RequestRelease(requests[i], TRITONSERVER_REQUEST_RELEASE_ALL));
  free(outcomes);
  return NULL;
}
