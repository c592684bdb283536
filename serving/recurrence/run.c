/* Answers rows, a block of them at a time: the block's states and what is added to them stay in the cache while all
 * steps are taken. A step is a product of the block's states with a panel of the weights after the other, in tiles whose
 * sums stay in registers, and then the gates. Each function is compiled for several widths of vectors, and the
 * processor's is chosen as it runs. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"
#include "vector.h"

#define INLINE static inline __attribute__((always_inline))

enum { BLOCK = 48 }; /* rows at once; a multiple of every tile's rows */

/* A block's working space. Rows are `padded` numbers long, and those of `sums` are `columns`. */
typedef struct {
  float *states, *cells, *sums, *given, *reset;
} space;

/* The projected inputs of a row at a step. */
INLINE const float *inputs(const recurrence *layer, const recurrence_call *call, size_t step, size_t row) {
  size_t at = row * call->steps + step, wide = layer->gates * layer->head.width;
  if (!call->ids) return call->projected + at * wide;
  int64_t id = call->ids[at];
  return layer->table + (size_t)(id < 0 ? id + (int64_t)layer->head.rows : id) * wide;
}

INLINE void prefetch(const float *row, size_t count) {
  for (size_t i = 0; i < count; i += 16) __builtin_prefetch(row + i);
}

/* What a step's sums begin with: the inputs, gate by gate; a GRU's candidate waits in `given`. */
INLINE void begin(const recurrence *layer, const float *from, float *sums, float *given) {
  size_t width = layer->head.width, padded = layer->padded;
  size_t summed = layer->head.kind == LSTM ? 4 : 2;
  for (size_t gate = 0; gate < summed; gate++) memcpy(sums + gate * padded, from + gate * width, width * sizeof *sums);
  if (summed == 4) return;
  memcpy(given, from + 2 * width, width * sizeof *given);
  if (layer->head.kind == GRU_RESET_AFTER) memcpy(sums + 2 * padded, layer->late, padded * sizeof *sums);
}

#define JOIN(name, width) name##_##width

#if defined(__x86_64__)
#define FLOATS 16
#define ROWS 6
#define VECTORS 4
#define TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,fma")))
#define NAMED(name) JOIN(name, wide)
#include "block.h"

#define FLOATS 8
#define ROWS 6
#define VECTORS 2
#define TARGET __attribute__((target("avx2,fma")))
#define NAMED(name) JOIN(name, middle)
#include "block.h"
#endif

#define FLOATS 4
#define ROWS 4
#define VECTORS 2
#define TARGET
#define NAMED(name) JOIN(name, any)
#include "block.h"

typedef void (*answer)(const recurrence *, const recurrence_call *, size_t, size_t, const space *);

static answer choose(void) {
  const char *forced = getenv("TRISTAGE_VECTORS"); /* any, middle or wide: for tests */
#if defined(__x86_64__)
  int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  int middle = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (wide && middle && (!forced || !strcmp(forced, "wide"))) return block_wide;
  if (middle && (!forced || strcmp(forced, "any"))) return block_middle;
#endif
  (void)forced;
  return block_any;
}

static float *take(float **from, size_t count) {
  float *taken = *from;
  *from += (count + 15) / 16 * 16;
  return taken;
}

int recurrence_run(const recurrence *layer, const recurrence_call *call, int64_t *wrong) {
  if (call->ids)
    for (size_t i = 0; i < call->steps * call->rows; i++) {
      int64_t id = call->ids[i], rows = (int64_t)layer->head.rows;
      if (id >= rows || id < -rows) {
        *wrong = id;
        return -2;
      }
    }
  size_t most = call->rows < BLOCK ? call->rows : BLOCK;
  size_t candidates = layer->second ? layer->second : layer->padded;
  size_t floats = most * (3 * layer->padded + layer->columns + candidates) + 5 * 16;
  float *memory = malloc(floats * sizeof *memory + 64);
  if (!memory) return -1;
  float *free_from = (float *)(((uintptr_t)memory + 63) / 64 * 64);
  space s;
  s.states = take(&free_from, most * layer->padded);
  s.cells = take(&free_from, most * layer->padded);
  s.reset = take(&free_from, most * layer->padded);
  s.sums = take(&free_from, most * layer->columns);
  s.given = take(&free_from, most * candidates);
  answer of = choose();
  for (size_t first = 0; first < call->rows; first += BLOCK) {
    size_t count = call->rows - first < BLOCK ? call->rows - first : BLOCK;
    of(layer, call, first, count, &s);
  }
  free(memory);
  return 0;
}
