/* GRU and LSTM layers whose inputs are projected already, answered on one core: a packed layer
 * (export/rewrites/pack.py writes it) is opened where it lies in memory, and rows are answered from there. Plain C11
 * and, where the compiler has them, its vector types; no state outside of what is passed.
 *
 * The file is a header of 128 bytes and then, each at a multiple of 64 bytes, in little-endian:
 *   weights  float32, of the state: panels of 64 columns, each [width, 64]; first those of all gates, or of a GRU that
 *            resets before its product those of z and r, and then those of h. A gate has `padded` columns.
 *   late     float32 [padded], what is added to a GRU's product before the reset gate multiplies it.
 *   table    float32 [rows, gates * width], projected inputs that ids look up; no rows where inputs are given.
 * Gates are in ONNX's order: z, r, h of a GRU, i, o, f, c of an LSTM. */
#ifndef TRISTAGE_RECURRENCE_ENGINE_H
#define TRISTAGE_RECURRENCE_ENGINE_H

#include <stddef.h>
#include <stdint.h>

enum { GRU_RESET_AFTER, GRU_RESET_BEFORE, LSTM };
enum { LANES = 16, PANEL = 64 };

typedef struct {
  char magic[8];
  uint32_t version, checksum;
  uint64_t size, kind, width, rows, backwards, zeros;
} recurrence_header;

typedef struct {
  recurrence_header head;
  size_t gates, padded;         /* columns of a gate: width, up to a multiple of LANES */
  size_t columns, second;       /* of the first and of the second product, up to multiples of PANEL */
  const float *weights, *after; /* of the first and of the second product */
  const float *late, *table;
} recurrence;

/* What one call reads and writes; all row by row. */
typedef struct {
  size_t steps, rows;
  const int64_t *ids;        /* [rows, steps] where the layer has a table; below 0 they count from its end */
  const float *projected;    /* [rows, steps, gates * width] where it has none */
  const unsigned char *mask; /* [rows, steps], 0 where a step is passed over; NULL: none is */
  float *every;              /* [rows, steps, width], the states that show; or NULL */
  float *last;               /* [rows, width], the states at the end; or NULL */
  float *cells;              /* [rows, width], an LSTM's cell states at the end; or NULL */
} recurrence_call;

/* Opens a packed layer of `size` bytes at `data`, aligned to 64 bytes, which must stay as it is. All that answering
 * relies on is checked. Returns 0; or -1 and, in `why`, a static text that says what is wrong. */
int recurrence_open(recurrence *layer, const void *data, size_t size, const char **why);

/* Answers rows. May be called from several threads at once. Returns 0; -1 if there is no memory for the scratch space,
 * which does not grow with the rows; -2 if an id is not in the table, and then `*wrong` is that id. */
int recurrence_run(const recurrence *layer, const recurrence_call *call, int64_t *wrong);

#endif
