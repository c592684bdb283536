/* The backend: backend.c is called by Triton, queue.c keeps the requests that wait and sends what they are answered,
 * tensors.c makes Python's objects of Triton's and back. */
#ifndef TRISTAGE_BACKEND_H
#define TRISTAGE_BACKEND_H
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "triton.h"

/* A Triton error of Python's, which is cleared. */
TRITONSERVER_Error *python_error(void);

/* Forgets an error that nobody can be told. */
void drop(TRITONSERVER_Error *error);

/* Nanoseconds of the clock that Triton stamps requests by. */
uint64_t now(void);

/* A request that waits, whose it is, and how many rows it holds. */
typedef struct {
  TRITONBACKEND_Request *request;
  TRITONBACKEND_ModelInstance *instance;
  uint32_t rows;
} Waiting;

enum { MOST_JOINED = 256 }; /* requests that are answered at once, however few rows they hold */

/* Requests that wait for a model, and the thread that answers them. */
typedef struct Queue Queue;

/* Answers requests together, and releases them; called in the queue's thread, which is to be `python` to call Python. */
typedef void Answer(PyObject *opened, PyThreadState *python, const Waiting *waiting, uint32_t count);

/* Opens a queue, which takes `opened`: requests are joined up to so many rows, and of more than `most` that wait, if it
 * is not 0, the last are refused. */
TRITONSERVER_Error *open_queue(Queue **queue, PyObject *opened, Answer *answer, uint32_t rows, uint32_t most);

/* Ends a queue in which nothing waits. */
void close_queue(Queue *queue);

/* Has a request wait; where it must not, the error to answer. */
TRITONSERVER_Error *join_queue(Queue *queue, Waiting one);

/* Send what a request is answered, and release it; an error is sent from another thread, a moment later. */
void send_answer(TRITONBACKEND_Request *request, TRITONBACKEND_Response *response);
void send_error(TRITONBACKEND_Request *request, TRITONBACKEND_Response *response, TRITONSERVER_Error *error);

/* A request's inputs: a dict of name -> (values, shape). Values are a buffer; of texts a list of str, or bytes where one
 * of them is not UTF-8. Buffers are Triton's own, and end with the request. Returns NULL and sets *error where it cannot
 * be read. */
PyObject *take_inputs(TRITONBACKEND_Request *request, TRITONSERVER_Error **error);

/* Copies an answer, a list of (name, Triton's type, shape, buffer), into a response, as far as the request asks for it. */
TRITONSERVER_Error *give_outputs(TRITONBACKEND_Request *request, TRITONBACKEND_Response *response, PyObject *answer);
#endif
