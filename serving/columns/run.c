/* Answers rows, a block of them at a time, so that what is computed on the way stays in the cache. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

/* An instruction and where its operands are for the block's first row. */
typedef struct {
  const columns_instruction *it;
  char *at[OPERANDS];
  size_t rows;
  int64_t *wrong;
} call;

typedef int (*operation)(const call *);

#define SINGLE(function) function##f
#define DOUBLE(function) function

static int64_t quotient(int64_t x, int64_t y) {
  return y == 0 ? 0 : y == -1 ? (int64_t)(0 - (uint64_t)x) : x / y;
}

/* With the sign of what is divided by, as in ONNX and Python. */
static int64_t modulo(int64_t x, int64_t y) {
  if (y == 0 || y == -1) return 0;
  int64_t rest = x % y;
  return rest && (rest < 0) != (y < 0) ? rest + y : rest;
}

/* Every element of the block: for one element a row, the rows are the inner loop. */
#define EACH(count, body)                                                                             \
  const columns_instruction *it = call->it;                                                           \
  int single = it->width == 1;                                                                        \
  size_t outer = single ? 1 : call->rows, inner = single ? call->rows : it->width;                    \
  size_t far[count], near[count];                                                                     \
  for (int k = 0; k < count; k++) {                                                                   \
    far[k] = it->operands[k].stride;                                                                  \
    near[k] = single ? it->operands[k].stride : it->operands[k].step;                                 \
  }                                                                                                   \
  for (size_t i = 0; i < outer; i++) {                                                                \
    char *p[count];                                                                                   \
    for (int k = 0; k < count; k++) p[k] = call->at[k] + i * far[k];                                  \
    for (size_t j = 0; j < inner; j++) {                                                              \
      body;                                                                                           \
      for (int k = 0; k < count; k++) p[k] += near[k];                                                \
    }                                                                                                 \
  }                                                                                                   \
  return 0;

#define LOAD(type, name, k) \
  type name;                \
  memcpy(&name, p[k], sizeof name)
#define STORE(type, expression)   \
  type made = (type)(expression); \
  memcpy(p[0], &made, sizeof made)

#define UNARY(name, T, X, expression) \
  static int run_##name(const call *call) { EACH(2, LOAD(X, x, 1); STORE(T, expression)) }
#define BINARY(name, T, X, Y, expression) \
  static int run_##name(const call *call) { EACH(3, LOAD(X, x, 1); LOAD(Y, y, 2); STORE(T, expression)) }
#define TERNARY(name, T, X, Y, Z, expression) \
  static int run_##name(const call *call) { EACH(4, LOAD(X, x, 1); LOAD(Y, y, 2); LOAD(Z, z, 3); STORE(T, expression)) }
#define OTHER(name, function, made, second, third, fourth)
#include "operations.h"
#undef UNARY
#undef BINARY
#undef TERNARY
#undef OTHER

#define SUM(type, c, wide)                                                 \
  static int run_sum_##type(const call *call) {                            \
    const columns_operand *from = call->it->operands + 1;                  \
    for (size_t row = 0; row < call->rows; row++) {                        \
      wide sum = 0;                                                        \
      for (int64_t j = 0; j < call->it->extras[0]; j++) {                  \
        wide x;                                                            \
        memcpy(&x, call->at[1] + row * from->stride + (size_t)j * from->step, sizeof x); \
        sum += x;                                                          \
      }                                                                    \
      memcpy(call->at[0] + row * call->it->operands[0].stride, &sum, sizeof sum); \
    }                                                                      \
    return 0;                                                              \
  }
SUM(int32, int32_t, uint32_t)
SUM(int64, int64_t, uint64_t)

static void take(char *to, const char *from, size_t bytes) {
  if (bytes == 8) memcpy(to, from, 8);
  else if (bytes == 4) memcpy(to, from, 4);
  else if (bytes == 16) memcpy(to, from, 16);
  else memcpy(to, from, bytes);
}

/* Where the rows of a table are is known before they are needed, so they are asked for side by side. */
#define GATHER(type, c)                                                                      \
  static int run_gather_##type(const call *call) {                                           \
    const columns_instruction *it = call->it;                                                \
    int64_t rows = it->extras[0];                                                            \
    size_t bytes = (size_t)it->extras[1];                                                    \
    for (size_t row = 0; row < call->rows; row++)                                            \
      for (size_t j = 0; j < it->width; j++) {                                               \
        c number;                                                                            \
        memcpy(&number, call->at[1] + row * it->operands[1].stride + j * it->operands[1].step, sizeof number); \
        int64_t at = number < 0 ? number + rows : number;                                    \
        if (at < 0 || at >= rows) {                                                          \
          *call->wrong = number;                                                             \
          return -2;                                                                         \
        }                                                                                    \
        take(call->at[0] + row * it->operands[0].stride + j * it->operands[0].step,          \
             call->at[2] + (size_t)at * bytes, bytes);                                       \
      }                                                                                      \
    return 0;                                                                                \
  }
GATHER(int32, int32_t)
GATHER(int64, int64_t)

static void add_row(float *restrict sum, const float *restrict from, float weight, size_t width) {
  for (size_t i = 0; i < width; i++) sum[i] += weight * from[i];
}

/* Rows are added in the order of their numbers, each product rounded before it is added, as ONNX Runtime does. A row is
 * asked of the memory some rows before its turn. */
static int run_bag_int64(const call *call) {
  enum { AHEAD = 6 };
  const columns_instruction *it = call->it;
  int64_t rows = it->extras[0], count = it->extras[1];
  int weighted = columns_bytes(it->operation, 3) != 0;
  size_t width = it->width;
  const float *waiting[AHEAD];
  float weights[AHEAD];
  for (size_t row = 0; row < call->rows; row++) {
    float *sum = (float *)(call->at[0] + row * it->operands[0].stride);
    memset(sum, 0, width * sizeof *sum);
    size_t asked = 0, added = 0;
    for (int64_t j = 0; j < count; j++) {
      int64_t number;
      float weight = 1;
      memcpy(&number, call->at[1] + row * it->operands[1].stride + (size_t)j * it->operands[1].step, sizeof number);
      if (weighted)
        memcpy(&weight, call->at[3] + row * it->operands[3].stride + (size_t)j * it->operands[3].step, sizeof weight);
      int64_t at = number < 0 ? number + rows : number;
      if (at < 0 || at >= rows) {
        *call->wrong = number;
        return -2;
      }
      if (weight == 0 && it->extras[2]) continue;
      if (asked - added == AHEAD) {
        add_row(sum, waiting[added % AHEAD], weights[added % AHEAD], width);
        added++;
      }
      const float *from = (const float *)call->at[2] + (size_t)at * width;
      for (size_t i = 0; i < width; i += 16) __builtin_prefetch(from + i);
      waiting[asked % AHEAD] = from;
      weights[asked++ % AHEAD] = weight;
    }
    for (; added < asked; added++) add_row(sum, waiting[added % AHEAD], weights[added % AHEAD], width);
  }
  return 0;
}

typedef struct {
  int64_t key, value, taken;
} columns_slot;

/* Open addressing with steps of one; a table has free slots, which end a search. */
static int run_label_int64(const call *call) {
  const char *slots = call->at[2];
  int shift = 64 - (int)call->it->extras[0];
  size_t mask = ((size_t)1 << call->it->extras[0]) - 1;
  int64_t none = call->it->extras[1];
  EACH(2, LOAD(int64_t, x, 1); size_t place = (size_t)(((uint64_t)x * 0x9E3779B97F4A7C15u) >> shift); columns_slot slot;
       for (size_t tries = 0; tries <= mask; tries++) {
         memcpy(&slot, slots + place * sizeof slot, sizeof slot);
         if (!slot.taken || slot.key == x) break;
         place = (place + 1) & mask;
       } STORE(int64_t, slot.taken && slot.key == x ? slot.value : none))
}

static const struct {
  const char *name;
  operation run;
  unsigned char bytes[OPERANDS];
} operations[] = {
#define UNARY(name, T, X, expression) {#name, run_##name, {sizeof(T), sizeof(X), 0, 0}},
#define BINARY(name, T, X, Y, expression) {#name, run_##name, {sizeof(T), sizeof(X), sizeof(Y), 0}},
#define TERNARY(name, T, X, Y, Z, expression) {#name, run_##name, {sizeof(T), sizeof(X), sizeof(Y), sizeof(Z)}},
#define OTHER(name, function, made, second, third, fourth) {#name, run_##function, {made, second, third, fourth}},
#include "operations.h"
};
enum { COUNT = sizeof operations / sizeof *operations };

const char *columns_name(uint32_t number) { return number < COUNT ? operations[number].name : NULL; }

size_t columns_bytes(uint32_t number, int place) { return number < COUNT ? operations[number].bytes[place] : 0; }

int columns_run(const columns *program, char *const *buffers, size_t rows, int64_t *wrong) {
  const columns_header *head = &program->head;
  size_t block = rows < head->block ? rows : head->block;
  uint32_t first_table = FIRST_INPUT + head->inputs + head->outputs;
  char *scratch = malloc(head->scratch + 1);
  if (!scratch) return -1;
  int failed = 0;
  for (size_t start = 0; start < rows && !failed; start += block) {
    call call = {.rows = rows - start < block ? rows - start : block, .wrong = wrong};
    for (uint32_t i = 0; i < head->instructions && !failed; i++) {
      call.it = program->instructions + i;
      for (int k = 0; k < OPERANDS; k++) {
        const columns_operand *operand = call.it->operands + k;
        if (operand->buffer == SCRATCH) call.at[k] = scratch + operand->offset;
        else if (operand->buffer == CONSTANTS) call.at[k] = (char *)program->constants + operand->offset;
        else {
          size_t passed = operand->buffer < first_table ? start * operand->stride : 0;
          call.at[k] = buffers[operand->buffer - FIRST_INPUT] + operand->offset + passed;
        }
      }
      failed = operations[call.it->operation].run(&call);
    }
  }
  free(scratch);
  return failed;
}
