/* Requests that wait for a model, and what they are answered.
 *
 * Triton's own queue has no bound that costs nothing: with one, Triton 2.51 stops handing over requests ahead and lets
 * one wait up to 500 ms at an idle model. So requests are taken at once and wait here, where one too many is refused. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "backend.h"

struct Queue {
  pthread_t thread;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  bool closing;
  PyObject *opened;
  Answer *answer;
  uint32_t rows, most; /* that are joined, and requests that may wait; 0: any number */
  Waiting *ring;       /* of `places`, of which `count` from `first` on are taken */
  size_t places, first, count;
};

void drop(TRITONSERVER_Error *error) {
  if (error) TRITONSERVER_ErrorDelete(error);
}

uint64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* Takes what is answered next: the first request, and those behind it as long as all are few enough rows. */
static uint32_t take(Queue *queue, Waiting *taken) {
  uint32_t count = 0;
  uint64_t rows = 0;
  while (queue->count && count < MOST_JOINED) {
    Waiting one = queue->ring[queue->first];
    if (count && rows + one.rows > queue->rows) break;
    rows += one.rows;
    taken[count++] = one;
    queue->first = (queue->first + 1) % queue->places;
    queue->count--;
  }
  return count;
}

static void *answer_those_that_wait(void *argument) {
  Queue *queue = argument;
  Waiting taken[MOST_JOINED];
  PyGILState_STATE gil = PyGILState_Ensure();
  PyThreadState *python = PyEval_SaveThread();
  for (;;) {
    pthread_mutex_lock(&queue->lock);
    while (!queue->count && !queue->closing) pthread_cond_wait(&queue->changed, &queue->lock);
    uint32_t count = take(queue, taken);
    pthread_mutex_unlock(&queue->lock);
    if (!count) break;
    queue->answer(queue->opened, python, taken, count);
  }
  PyEval_RestoreThread(python);
  Py_DECREF(queue->opened);
  PyGILState_Release(gil);
  return NULL;
}

TRITONSERVER_Error *open_queue(Queue **queue, PyObject *opened, Answer *answer, uint32_t rows, uint32_t most) {
  Queue *made = calloc(1, sizeof *made);
  Waiting *ring = malloc(MOST_JOINED * sizeof *ring);
  if (made && ring) {
    *made = (Queue){.opened = opened, .answer = answer, .rows = rows, .most = most, .ring = ring, .places = MOST_JOINED};
    pthread_mutex_init(&made->lock, NULL);
    pthread_cond_init(&made->changed, NULL);
    if (!pthread_create(&made->thread, NULL, answer_those_that_wait, made)) {
      *queue = made;
      return NULL;
    }
  }
  free(ring);
  free(made);
  return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, "no thread can be started for the model");
}

void close_queue(Queue *queue) {
  pthread_mutex_lock(&queue->lock);
  queue->closing = true;
  pthread_cond_signal(&queue->changed);
  pthread_mutex_unlock(&queue->lock);
  pthread_join(queue->thread, NULL);
  pthread_mutex_destroy(&queue->lock);
  pthread_cond_destroy(&queue->changed);
  free(queue->ring);
  free(queue);
}

/* Makes room for one more; false where there is no memory. */
static bool grow(Queue *queue) {
  if (queue->count < queue->places) return true;
  Waiting *ring = malloc(2 * queue->places * sizeof *ring);
  if (!ring) return false;
  for (size_t i = 0; i < queue->count; i++) ring[i] = queue->ring[(queue->first + i) % queue->places];
  free(queue->ring);
  queue->ring = ring;
  queue->places *= 2;
  queue->first = 0;
  return true;
}

TRITONSERVER_Error *join_queue(Queue *queue, Waiting one) {
  pthread_mutex_lock(&queue->lock);
  bool full = queue->most && queue->count >= queue->most, room = !full && grow(queue);
  if (room) {
    queue->ring[(queue->first + queue->count) % queue->places] = one;
    if (!queue->count++) pthread_cond_signal(&queue->changed);
  }
  pthread_mutex_unlock(&queue->lock);
  if (room) return NULL;
  if (!full) return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_UNAVAILABLE, "no memory is left");
  char said[80];
  snprintf(said, sizeof said, "%u requests wait for the model, as many as may; try again later", queue->most);
  return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_UNAVAILABLE, said);
}

/* An answer makes Triton schedule the ensemble's next steps, in this thread. An error that reaches Triton 2.51 while it
 * does so in another one, or while it still schedules the ensemble's first steps, ends tritonserver: it answers the
 * request twice (mended in its core's #483). So responses go one at a time, and errors a moment later. */
static pthread_mutex_t sending = PTHREAD_MUTEX_INITIALIZER;
enum { MOMENT = 10000000 }; /* nanoseconds */

static void send_one(TRITONBACKEND_Request *request, TRITONBACKEND_Response *response, TRITONSERVER_Error *error) {
  pthread_mutex_lock(&sending);
  if (response) drop(TRITONBACKEND_ResponseSend(response, TRITONSERVER_RESPONSE_COMPLETE_FINAL, error));
  pthread_mutex_unlock(&sending);
  drop(error);
  drop(TRITONBACKEND_RequestRelease(request, TRITONSERVER_REQUEST_RELEASE_ALL));
}

void send_answer(TRITONBACKEND_Request *request, TRITONBACKEND_Response *response) {
  send_one(request, response, NULL);
}

typedef struct Late Late;
struct Late {
  TRITONBACKEND_Request *request;
  TRITONBACKEND_Response *response;
  TRITONSERVER_Error *error;
  uint64_t due;
  Late *next;
};

/* Errors to be sent, in the order in which they are due; one thread, which never ends, sends those of all models. */
static pthread_mutex_t late_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t late_changed = PTHREAD_COND_INITIALIZER;
static Late *late_first, *late_last;
static bool late_sent;

static void *send_late(void *argument) {
  (void)argument;
  for (;;) {
    pthread_mutex_lock(&late_lock);
    while (!late_first) pthread_cond_wait(&late_changed, &late_lock);
    Late *one = late_first;
    late_first = one->next;
    pthread_mutex_unlock(&late_lock);
    const struct timespec due = {.tv_sec = (time_t)(one->due / 1000000000u), .tv_nsec = (long)(one->due % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL) == EINTR) continue;
    send_one(one->request, one->response, one->error);
    free(one);
  }
  return NULL;
}

static void start_sending(void) {
  pthread_t thread;
  late_sent = !pthread_create(&thread, NULL, send_late, NULL) && !pthread_detach(thread);
}

void send_error(TRITONBACKEND_Request *request, TRITONBACKEND_Response *response, TRITONSERVER_Error *error) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, start_sending);
  Late *one = late_sent ? malloc(sizeof *one) : NULL;
  if (!one) { /* better at once than never */
    send_one(request, response, error);
    return;
  }
  *one = (Late){.request = request, .response = response, .error = error, .due = now() + MOMENT};
  pthread_mutex_lock(&late_lock);
  if (late_first) late_last->next = one;
  else late_first = one;
  late_last = one;
  pthread_cond_signal(&late_changed);
  pthread_mutex_unlock(&late_lock);
}
