/* Columns of rows, computed from columns by a straight line of instructions: what a lowered workflow is, without the cost
 * of a graph's nodes. A packed program (export/columns/pack.py writes it) is opened where it lies in memory, and rows are
 * answered from there, a block at a time. Plain C11; no state outside of what is passed.
 *
 * The file, in little-endian, is a header of 64 bytes; a columns_side for every input and then every output; the bytes
 * that every table must have, 64 bits each; the instructions; and at a multiple of 64 bytes the constants. */
#ifndef TRISTAGE_COLUMNS_ENGINE_H
#define TRISTAGE_COLUMNS_ENGINE_H

#include <stddef.h>
#include <stdint.h>

/* What an operand lies in. The others follow: inputs, outputs, tables. */
enum { SCRATCH, CONSTANTS, FIRST_INPUT };
enum { OPERANDS = 4, EXTRAS = 4 };

typedef struct {
  char magic[8];
  uint32_t version, checksum;
  uint64_t size;
  uint32_t operations; /* CRC-32 of the names of the operations that it was written for */
  uint32_t inputs, outputs, tables, instructions, block;
  uint64_t scratch, constants; /* bytes */
} columns_header;

/* An input or output: so many elements a row, each of so many bytes. */
typedef struct {
  uint32_t bytes, width;
} columns_side;

/* Where the elements of a block's rows are, in bytes: those of the next row a stride on, those of a row a step apart. */
typedef struct {
  uint32_t buffer, step;
  uint64_t offset, stride;
} columns_operand;

/* The first operand is what is made; `extras` are an operation's own. */
typedef struct {
  uint32_t operation, width; /* elements a row */
  columns_operand operands[OPERANDS];
  int64_t extras[EXTRAS];
} columns_instruction;

typedef struct {
  columns_header head;
  const columns_side *sides;
  const uint64_t *table_bytes;
  const columns_instruction *instructions;
  const char *constants;
} columns;

/* Opens a packed program of `size` bytes at `data`, aligned to 64 bytes, which must stay as it is. All that answering
 * relies on is checked but for the sizes of what is given later. Returns 0; or -1 and, in `why`, a static text. */
int columns_open(columns *program, const void *data, size_t size, uint32_t operations, const char **why);

/* Answers rows. `buffers` are inputs, outputs and tables, in order and of the sizes that the program says. May be called
 * from several threads at once. Returns 0; -1 if there is no memory for the scratch space, which does not grow with the
 * rows; -2 if a row of a table is asked for that it lacks, and then `*wrong` is its number. */
int columns_run(const columns *program, char *const *buffers, size_t rows, int64_t *wrong);

/* Bytes of an operation's operand `place`, 0 where it has none. */
size_t columns_bytes(uint32_t operation, int place);

/* The name of an operation; NULL behind the last. */
const char *columns_name(uint32_t operation);

#endif
