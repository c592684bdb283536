/* Opens packed forests: whatever the bytes are, what predicting relies on is checked here. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "packed.h"

static const char *check_searches(const forest_engine *e) {
  uint64_t columns = e->head.columns;
  unsigned char *written = calloc(columns, 1);
  if (!written) return "there is no memory to check it";
  const char *why = NULL;
  for (uint64_t i = 0; i < e->head.searches && !why; i++) {
    const search *s = e->searches + i;
    if (s->feature >= e->head.features || s->low >= columns || s->high >= columns) why = "a column is out of range";
    else if (s->count >= HIGHEST || s->key % FAN) why = "thresholds are out of range";
    else written[s->low] = written[s->high] = 1;
    uint64_t at = s->key;
    for (uint64_t count = s->count; !why; count /= FAN) {
      uint64_t end = at + level_floats(count);
      if (end > e->head.keys) why = "thresholds are out of range";
      /* a rank is never more than the keys that are no NaN, and so the next level is never left */
      for (uint64_t j = at + count; !why && j < end; j++)
        if (!isnan(e->keys[j])) why = "thresholds do not end";
      at = end;
      if (count <= FAN) break;
    }
  }
  for (uint64_t i = 0; i < columns && !why; i++)
    if (!written[i]) why = "a column is never written";
  free(written);
  return why;
}

static const char *check_slots(const forest_engine *e) {
  for (uint64_t i = 0; i < e->head.slots; i++) {
    const slot *s = e->slots + i;
    uint64_t walked = (uint64_t)s->trees + SPARE;
    if (s->upper > LINKED) return "trees are of an unknown kind";
    if (s->upper == LINKED) {
      if ((uint64_t)s->first + s->trees > e->head.roots) return "trees are out of range";
    } else if ((uint64_t)s->first + (walked << s->upper) > e->head.units ||
               (s->upper && (uint64_t)s->first_upper + walked > e->head.uppers))
      return "trees are out of range";
  }
  return NULL;
}

static const char *check_groups(const forest_engine *e) {
  for (uint64_t i = 0; i < e->head.groups; i++) {
    const group *g = e->groups + i;
    if ((uint64_t)g->slot + g->slots > e->head.slots || (uint64_t)g->forest + g->forests > e->head.forests)
      return "a group is out of range";
    for (uint32_t j = 0; j < g->forests; j++) {
      const forest *f = e->forests + g->forest + j;
      if (f->postprocessor >= POSTPROCESSORS) return "a postprocessor is unknown";
      if ((uint64_t)f->slot + f->width > g->slots || (uint64_t)f->output + f->width > e->head.outputs)
        return "a forest is out of range";
    }
  }
  return NULL;
}

static int heap_fits(const heap *h, uint32_t limit) {
  uint16_t most = 0, odd = 0;
  for (int i = 0; i < 16; i++) {
    most = h->column[i] > most ? h->column[i] : most;
    odd |= h->column[i] % LANES;
  }
  return most < limit && !odd;
}

static const char *check_trees(const forest_engine *e) {
  uint32_t limit = (uint32_t)e->head.columns * LANES;
  for (uint64_t i = 0; i < e->head.uppers; i++)
    if (!heap_fits(e->uppers + i, limit)) return "a node's column is out of range";
  for (uint64_t i = 0; i < e->head.units; i++)
    if (!heap_fits(&e->units[i].nodes, limit)) return "a node's column is out of range";
  for (uint64_t i = 0; i < e->head.nodes; i++) {
    const node *n = e->nodes + i;
    if (n->column >= limit || n->column % LANES) return "a node's column is out of range";
    if ((uint64_t)n->next + 1 >= e->head.nodes) return "a node is out of range";
  }
  for (uint64_t i = 0; i < e->head.roots; i++)
    if ((uint64_t)e->roots[i].node + 1 >= e->head.nodes || e->roots[i].levels > e->head.nodes)
      return "a root is out of range";
  return NULL;
}

static const char *check_header(const header *h, size_t size) {
  if (memcmp(h->magic, "tristree", sizeof h->magic)) return "it is no packed forest";
  if (h->version != 1) return "it is of another version";
  if (h->size != size) return "it is cut short";
  if (!h->features || h->features > UINT32_MAX || !h->outputs || h->outputs > h->slots || !h->groups || !h->columns ||
      h->columns > (UINT16_MAX + 1) / LANES)
    return "its sizes are out of range";
  return NULL;
}

static const char *find_sections(forest_engine *e, const char *bytes, size_t size) {
  const header *h = &e->head;
  const void *starts[10];
  const uint64_t counts[] = {h->groups, h->searches, h->slots, h->forests, h->keys,
                             h->uppers, h->units,    h->nodes, h->nodes,   h->roots};
  const uint64_t sizes[] = {sizeof *e->groups, sizeof *e->searches, sizeof *e->slots, sizeof *e->forests,
                            sizeof *e->keys,   sizeof *e->uppers,   sizeof *e->units, sizeof *e->nodes,
                            sizeof *e->values, sizeof *e->roots};
  uint64_t at = (sizeof *h + 63) / 64 * 64;
  for (int i = 0; i < 10; i++) {
    if (at > size || counts[i] > (size - at) / sizes[i]) return "it is cut short";
    starts[i] = bytes + at;
    at += (counts[i] * sizes[i] + 63) / 64 * 64;
  }
  if (at != size) return "it holds bytes that belong to nothing";
  e->groups = starts[0];
  e->searches = starts[1];
  e->slots = starts[2];
  e->forests = starts[3];
  e->keys = starts[4];
  e->uppers = starts[5];
  e->units = starts[6];
  e->nodes = starts[7];
  e->values = starts[8];
  e->roots = starts[9];
  return NULL;
}

forest_engine *forest_open(const void *data, size_t size, const char **why) {
  forest_engine *e = calloc(1, sizeof *e);
  if (!e) *why = "there is no memory to open it";
  else if ((uintptr_t)data % 64) *why = "it is not aligned to 64 bytes";
  else if (size < sizeof e->head) *why = "it is cut short";
  else {
    memcpy(&e->head, data, sizeof e->head);
    *why = check_header(&e->head, size);
    if (!*why) *why = find_sections(e, data, size);
    if (!*why) *why = check_searches(e);
    if (!*why) *why = check_slots(e);
    if (!*why) *why = check_groups(e);
    if (!*why) *why = check_trees(e);
  }
  if (*why) {
    free(e);
    return NULL;
  }
  for (uint64_t i = 0; i < e->head.groups; i++)
    if (e->groups[i].slots > e->most_slots) e->most_slots = e->groups[i].slots;
  return e;
}

void forest_close(forest_engine *engine) { free(engine); }

size_t forest_features(const forest_engine *engine) { return engine->head.features; }

size_t forest_outputs(const forest_engine *engine) { return engine->head.outputs; }

size_t forest_groups(const forest_engine *engine) { return engine->head.groups; }
