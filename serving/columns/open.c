/* Opens packed programs: whatever the bytes are, what answering relies on is checked here. */
#include <string.h>

#include "engine.h"

static const uint64_t MOST = (uint64_t)1 << 40; /* of bytes and counts, so that no sum of them runs over */

static uint64_t up(uint64_t count, uint64_t to) { return (count + to - 1) / to * to; }

/* Whether all elements of an operand lie in its buffer, for every row of a block. `each` is an element's bytes. */
static int inside(const columns *program, const columns_operand *operand, uint64_t width, uint64_t each, int made) {
  const columns_header *head = &program->head;
  uint32_t sides = head->inputs + head->outputs;
  if (operand->offset > MOST || operand->stride > MOST || width > MOST / ((uint64_t)operand->step + 1)) return 0;
  uint64_t row = operand->offset + (width - 1) * operand->step + each;
  if (operand->buffer == SCRATCH) return operand->stride * (head->block - 1) + row <= head->scratch;
  if (operand->buffer == CONSTANTS) return !made && operand->stride == 0 && row <= head->constants;
  uint32_t number = operand->buffer - FIRST_INPUT;
  if (number >= sides || (made && number < head->inputs)) return 0;
  uint64_t bytes = (uint64_t)program->sides[number].bytes * program->sides[number].width;
  return operand->stride == bytes && row <= bytes;
}

/* Whether a table, or a part of the constants, has so many bytes. */
static int holds(const columns *program, const columns_operand *operand, uint64_t bytes) {
  const columns_header *head = &program->head;
  if (operand->offset > MOST || bytes > MOST || operand->stride) return 0;
  if (operand->buffer == CONSTANTS) return operand->offset + bytes <= head->constants;
  uint32_t first = FIRST_INPUT + head->inputs + head->outputs;
  if (operand->buffer < first || operand->buffer - first >= head->tables) return 0;
  return operand->offset + bytes <= program->table_bytes[operand->buffer - first];
}

static int aligned(const columns_operand *operand, uint64_t to) {
  return operand->offset % to == 0 && operand->stride % to == 0;
}

static int starts(uint32_t operation, const char *with) { return !strncmp(columns_name(operation), with, strlen(with)); }

static int sound(const columns *program, const columns_instruction *it) {
  const int64_t *extras = it->extras;
  if (!columns_name(it->operation) || !it->width || it->width > 1 << 20) return 0;
  for (int k = 0; k < OPERANDS; k++)
    if (!columns_bytes(it->operation, k) && (it->operands[k].buffer != SCRATCH || it->operands[k].offset)) return 0;
  uint64_t made = columns_bytes(it->operation, 0), read = columns_bytes(it->operation, 1);
  if (starts(it->operation, "sum_"))
    return extras[0] > 0 && extras[0] <= 1 << 20 && it->width == 1 && inside(program, it->operands, 1, made, 1) &&
           inside(program, it->operands + 1, (uint64_t)extras[0], read, 0);
  if (starts(it->operation, "gather_"))
    return extras[0] >= 0 && extras[0] <= (int64_t)MOST && extras[1] > 0 && extras[1] <= 1 << 20 &&
           (uint64_t)extras[0] <= MOST / (uint64_t)extras[1] &&
           inside(program, it->operands, it->width, (uint64_t)extras[1], 1) &&
           inside(program, it->operands + 1, it->width, read, 0) &&
           holds(program, it->operands + 2, (uint64_t)extras[0] * (uint64_t)extras[1]);
  if (starts(it->operation, "bag_")) {
    const columns_operand *weights = it->operands + 3;
    return extras[0] >= 0 && extras[0] <= (int64_t)MOST && extras[1] > 0 && extras[1] <= 1 << 20 &&
           (uint64_t)extras[0] <= MOST / ((uint64_t)it->width * read) && it->operands->step == 4 &&
           inside(program, it->operands, it->width, made, 1) &&
           inside(program, it->operands + 1, (uint64_t)extras[1], read, 0) &&
           (!columns_bytes(it->operation, 3) || inside(program, weights, (uint64_t)extras[1], 4, 0)) &&
           holds(program, it->operands + 2, (uint64_t)extras[0] * it->width * 4) && aligned(it->operands, 4) &&
           aligned(it->operands + 2, 4);
  }
  if (starts(it->operation, "label_"))
    return extras[0] > 0 && extras[0] < 34 && inside(program, it->operands, it->width, made, 1) &&
           inside(program, it->operands + 1, it->width, read, 0) &&
           holds(program, it->operands + 2, (uint64_t)24 << extras[0]);
  for (int k = 0; k < OPERANDS; k++) {
    uint64_t each = columns_bytes(it->operation, k);
    if (each && !inside(program, it->operands + k, it->width, each, k == 0)) return 0;
  }
  return 1;
}

int columns_open(columns *program, const void *data, size_t size, uint32_t operations, const char **why) {
  columns_header *h = &program->head;
  memset(program, 0, sizeof *program);
  *why = NULL;
  if ((uintptr_t)data % 64) *why = "it is not aligned to 64 bytes";
  else if (size < sizeof *h) *why = "it is cut short";
  if (*why) return -1;
  memcpy(h, data, sizeof *h);
  if (memcmp(h->magic, "tristcol", sizeof h->magic)) *why = "it is no packed program of columns";
  else if (h->version != 1 || h->operations != operations) *why = "it was written for other operations";
  else if (h->size != size) *why = "it is cut short";
  else if (!h->block || h->block > 1 << 16 || h->scratch > 1 << 30 || h->constants > MOST || h->inputs > 1 << 20 ||
           h->outputs > 1 << 20 || h->tables > 1 << 20)
    *why = "its sizes are out of range";
  if (*why) return -1;
  uint64_t sides = (uint64_t)h->inputs + h->outputs, at = sizeof *h;
  uint64_t constants = up(at + sides * sizeof(columns_side) + h->tables * sizeof(uint64_t) +
                              h->instructions * sizeof(columns_instruction), 64);
  if (constants + h->constants != size) {
    *why = "its sections do not fill it";
    return -1;
  }
  program->sides = (const columns_side *)((const char *)data + at);
  program->table_bytes = (const uint64_t *)(program->sides + sides);
  program->instructions = (const columns_instruction *)(program->table_bytes + h->tables);
  program->constants = (const char *)data + constants;
  for (uint64_t i = 0; i < sides; i++)
    if (!program->sides[i].bytes || program->sides[i].bytes > 8 || program->sides[i].width > 1 << 20)
      *why = "its sizes are out of range";
  for (uint32_t i = 0; i < h->tables; i++)
    if (program->table_bytes[i] > MOST) *why = "its sizes are out of range";
  for (uint32_t i = 0; i < h->instructions && !*why; i++)
    if (!sound(program, program->instructions + i)) *why = "an instruction reads or writes beyond its columns";
  return *why ? -1 : 0;
}
