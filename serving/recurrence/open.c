/* Opens packed layers: whatever the bytes are, what answering relies on is checked here. */
#include <string.h>

#include "engine.h"

static size_t up(size_t count, size_t to) { return (count + to - 1) / to * to; }

int recurrence_open(recurrence *layer, const void *data, size_t size, const char **why) {
  recurrence_header *h = &layer->head;
  memset(layer, 0, sizeof *layer);
  *why = NULL;
  if ((uintptr_t)data % 64) *why = "it is not aligned to 64 bytes";
  else if (size < 128) *why = "it is cut short";
  if (*why) return -1;
  memcpy(h, data, sizeof *h);
  if (memcmp(h->magic, "tristrnn", sizeof h->magic)) *why = "it is no packed layer";
  else if (h->version != 1) *why = "it is of another version";
  else if (h->size != size) *why = "it is cut short";
  else if (h->kind > LSTM || !h->width || h->width > 1 << 14 || h->rows > (uint64_t)1 << 40) *why = "its sizes are out of range";
  if (*why) return -1;
  layer->gates = h->kind == LSTM ? 4 : 3;
  layer->padded = up(h->width, LANES);
  layer->columns = up((h->kind == GRU_RESET_BEFORE ? 2 : layer->gates) * layer->padded, PANEL);
  layer->second = h->kind == GRU_RESET_BEFORE ? up(layer->padded, PANEL) : 0;
  uint64_t first = h->width * layer->columns, second = h->width * layer->second;
  uint64_t floats = (first + second + layer->padded) + h->rows * layer->gates * h->width;
  if (up(floats * 4, 64) + 128 != size) {
    *why = "its sections do not fill it";
    return -1;
  }
  layer->weights = (const float *)((const char *)data + 128);
  layer->after = layer->weights + first;
  layer->late = layer->after + second;
  layer->table = layer->late + layer->padded;
  return 0;
}
