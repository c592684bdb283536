/* Answers rows with an opened forest; packed.h says how. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "packed.h"

#if defined(__GNUC__)
#define PREFETCH(address) __builtin_prefetch(address)
#define INLINE static inline __attribute__((always_inline))
#else
#define PREFETCH(address) ((void)(address))
#define INLINE static inline
#endif

enum {
  ROWS = 256,    /* rows that meet a tree before the next tree does */
  FEW = 12,      /* up to so many rows are answered one by one */
  AHEAD = 4,     /* trees from the one that is walked to the one that is prefetched */
  CHUNK = 32,    /* trees that one row enters before it leaves those before them */
  ABREAST = 8,   /* trees that one row walks side by side; SPARE is one less */
  SORTED = 1024, /* rows that are sorted by group at a time */
};

/* ---- ranks ---- */

/* How many of FAN keys are not above a value. */
INLINE uint32_t not_above(const float *keys, float value) {
#if defined(__GNUC__)
  typedef float four __attribute__((vector_size(16), may_alias));
  typedef int32_t counts __attribute__((vector_size(16)));
  const four *at = (const four *)(const void *)keys, all = {value, value, value, value};
  counts n = (at[0] <= all) + (at[1] <= all) + (at[2] <= all) + (at[3] <= all); /* what holds is -1 */
  return (uint32_t) - (n[0] + n[1] + n[2] + n[3]);
#else
  uint32_t n = 0;
  for (int i = 0; i < FAN; i++) n += keys[i] <= value;
  return n;
#endif
}

/* How many of a look-up's keys are not above a value, from the coarsest level down; 0 for NaN. */
INLINE uint32_t rank_of(const float *const *level, int levels, float value) {
  uint32_t rank = 0;
  for (int i = levels - 1; i >= 0; i--) rank = rank * FAN + not_above(level[i] + (size_t)rank * FAN, value);
  return rank;
}

/* Ranks of `count` rows, which `order` picks, or all from the first on where it is NULL. Lanes that no row needs
 * repeat the last row. ranks: [tiles][columns][LANES]. */
static void encode(const forest_engine *e, const float *rows, const uint32_t *order, size_t count, size_t lanes,
                   uint16_t *ranks) {
  size_t stride = e->head.columns * LANES;
  for (uint64_t i = 0; i < e->head.searches; i++) {
    const search *s = e->searches + i;
    const float *level[8];
    int levels = 0;
    const float *at = e->keys + s->key;
    for (uint32_t left = s->count;; left /= FAN) {
      level[levels++] = at;
      at += level_floats(left);
      if (left <= FAN) break;
    }
    for (size_t lane = 0; lane < lanes; lane++) {
      size_t row = lane < count ? lane : count - 1;
      float value = rows[(order ? order[row] : row) * e->head.features + s->feature];
      uint32_t rank = rank_of(level, levels, value);
      uint16_t *to = ranks + lane / LANES * stride + lane % LANES;
      to[(size_t)s->low * LANES] = (uint16_t)rank;
      to[(size_t)s->high * LANES] = (uint16_t)(isnan(value) ? HIGHEST : rank);
    }
  }
}

/* ---- walks ---- */

INLINE uint64_t step(const heap *b, uint64_t at, const uint16_t *ranks) {
  return at + at + (b->rank[at] < ranks[b->column[at]]);
}

INLINE uint64_t follow(const node *n, const uint16_t *ranks) { return n->next + (uint64_t)(n->rank < ranks[n->column]); }

/* Exits of a heap of `levels` levels for LANES rows: all its nodes are asked, the answers that count are picked. */
INLINE void exits(const heap *b, int levels, const uint16_t *ranks, uint16_t *out) {
  const int16_t *value[16];
  int16_t limit[16];
  for (int i = 1; i < 1 << levels; i++) {
    value[i] = (const int16_t *)ranks + b->column[i]; /* ranks have 15 bits: signed and unsigned are the same */
    limit[i] = (int16_t)b->rank[i];
  }
  for (int lane = 0; lane < LANES; lane++) {
#define ASK(i) ((int16_t) - (value[i][lane] > limit[i]))
#define PICK(which, yes, no) ((int16_t)((no) ^ (((yes) ^ (no)) & (which))))
    int16_t first = 0, second = 0, third = 0, fourth = 0; /* 0 is left, -1 is right */
    if (levels > 0) first = ASK(1);
    if (levels > 1) second = PICK(first, ASK(3), ASK(2));
    if (levels > 2) third = PICK(first, PICK(second, ASK(7), ASK(6)), PICK(second, ASK(5), ASK(4)));
    if (levels > 3)
      fourth = PICK(first,
                    PICK(second, PICK(third, ASK(15), ASK(14)), PICK(third, ASK(13), ASK(12))),
                    PICK(second, PICK(third, ASK(11), ASK(10)), PICK(third, ASK(9), ASK(8))));
    int exit = 0;
    if (levels > 0) exit = first;
    if (levels > 1) exit = 2 * exit + second;
    if (levels > 2) exit = 2 * exit + third;
    if (levels > 3) exit = 2 * exit + fourth;
    out[lane] = (uint16_t)-exit;
#undef ASK
#undef PICK
  }
}

/* What a slot's sums are held in: float where the training library adds float32, in its order; double elsewhere. */
typedef union {
  float single[LANES];
  double twice[LANES];
} sums;

INLINE void add(sums *to, int lane, int single, float leaf) {
  if (single) to->single[lane] += leaf;
  else to->twice[lane] += (double)leaf;
}

/* Trees of a slot over up to ROWS rows, in tiles of LANES. The two flags are constants where it is called. */
INLINE void many_rows(const forest_engine *e, const slot *s, int upper, int single, const uint16_t *ranks, size_t tiles,
                      sums *to, size_t apart) {
  size_t stride = e->head.columns * LANES, units = (size_t)1 << upper;
  const unit *first = e->units + s->first;
  const heap *uppers = e->uppers + s->first_upper;
  for (size_t tree = 0; tree < s->trees; tree++, first += units) {
    if (tree + AHEAD < s->trees)
      for (size_t i = AHEAD * units; i < (AHEAD + 1) * units; i++) {
        PREFETCH(&first[i].nodes);
        PREFETCH(first[i].leaf);
      }
    for (size_t tile = 0; tile < tiles; tile++) {
      const uint16_t *of = ranks + tile * stride;
      sums *sum = to + tile * apart;
      uint16_t exit[LANES];
      if (!upper) { /* the only unit is asked like an upper heap */
        exits(&first->nodes, LOWER, of, exit);
        for (int lane = 0; lane < LANES; lane++) add(sum, lane, single, first->leaf[exit[lane]]);
        continue;
      }
      exits(uppers + tree, upper, of, exit);
      const unit *in[LANES];
      uint64_t at[LANES];
      for (int lane = 0; lane < LANES; lane++) {
        in[lane] = first + exit[lane];
        at[lane] = 1;
      }
      for (int level = 0; level < LOWER; level++)
        for (int lane = 0; lane < LANES; lane++) at[lane] = step(&in[lane]->nodes, at[lane], of + lane);
      for (int lane = 0; lane < LANES; lane++) add(sum, lane, single, in[lane]->leaf[at[lane] - 16]);
    }
  }
}

static void many_rows_linked(const forest_engine *e, const slot *s, const uint16_t *ranks, size_t tiles, sums *to,
                             size_t apart) {
  size_t stride = e->head.columns * LANES;
  for (size_t tree = 0; tree < s->trees; tree++) {
    root start = e->roots[s->first + tree];
    for (size_t tile = 0; tile < tiles; tile++) {
      const uint16_t *of = ranks + tile * stride;
      uint64_t at[LANES];
      for (int lane = 0; lane < LANES; lane++) at[lane] = start.node;
      for (uint32_t level = 0; level < start.levels; level++)
        for (int lane = 0; lane < LANES; lane++) at[lane] = follow(e->nodes + at[lane], of + lane);
      for (int lane = 0; lane < LANES; lane++) add(to + tile * apart, lane, (int)s->single, e->values[at[lane]]);
    }
  }
}

static void walk_many(const forest_engine *e, const group *g, const uint16_t *ranks, size_t tiles, sums *to) {
  for (uint32_t i = 0; i < g->slots; i++) {
    const slot *s = e->slots + g->slot + i;
    switch (s->upper * 2 + !!s->single) {
#define CASE(upper) \
  case upper * 2: many_rows(e, s, upper, 0, ranks, tiles, to + i, g->slots); break; \
  case upper * 2 + 1: many_rows(e, s, upper, 1, ranks, tiles, to + i, g->slots); break;
      CASE(0) CASE(1) CASE(2) CASE(3) CASE(4)
#undef CASE
      default: many_rows_linked(e, s, ranks, tiles, to + i, g->slots);
    }
  }
}

/* Trees of one slot that one row is on its way through. */
typedef struct {
  const unit *in[CHUNK];
  size_t trees;
  uint32_t single;
  sums *to;
} chunk;

/* Walks a row through the upper heaps of a chunk's trees, and prefetches the units it comes to. */
INLINE void enter(const forest_engine *e, const slot *s, uint32_t upper, size_t first, const uint16_t *ranks, chunk *c) {
  c->trees = s->trees - first < CHUNK ? s->trees - first : CHUNK;
  const heap *uppers = e->uppers + s->first_upper + first;
  const unit *units = e->units + s->first + (first << upper);
  for (size_t i = 0; i < c->trees; i += ABREAST) {
    uint64_t at[ABREAST];
    for (size_t j = 0; j < ABREAST; j++) at[j] = 1;
    for (uint32_t level = 0; level < upper; level++)
      for (size_t j = 0; j < ABREAST; j++) at[j] = step(uppers + i + j, at[j], ranks);
    for (size_t j = 0; j < ABREAST; j++) {
      c->in[i + j] = units + ((i + j) << upper) + (at[j] - ((uint64_t)1 << upper));
      PREFETCH(&c->in[i + j]->nodes);
      PREFETCH(c->in[i + j]->leaf);
    }
  }
}

/* Walks a row through the units of a chunk's trees, and adds their leaves in order. */
static void leave(const chunk *c, const uint16_t *ranks) {
  float leaf[CHUNK];
  for (size_t i = 0; i < c->trees; i += ABREAST) {
    uint64_t at[ABREAST];
    for (size_t j = 0; j < ABREAST; j++) at[j] = 1;
    for (int level = 0; level < LOWER; level++)
      for (size_t j = 0; j < ABREAST; j++) at[j] = step(&c->in[i + j]->nodes, at[j], ranks);
    for (size_t j = 0; j < ABREAST; j++) leaf[i + j] = c->in[i + j]->leaf[at[j] - 16];
  }
  if (c->single) {
    float sum = c->to->single[0];
    for (size_t i = 0; i < c->trees; i++) sum += leaf[i];
    c->to->single[0] = sum;
  } else
    for (size_t i = 0; i < c->trees; i++) c->to->twice[0] += (double)leaf[i];
}

static void one_row_linked(const forest_engine *e, const slot *s, const uint16_t *ranks, sums *to) {
  for (size_t i = 0; i < s->trees; i += ABREAST) {
    uint64_t at[ABREAST];
    uint32_t levels = 0;
    for (size_t j = 0; j < ABREAST; j++) {
      root start = e->roots[s->first + (i + j < s->trees ? i + j : s->trees - 1)];
      at[j] = start.node;
      levels = start.levels > levels ? start.levels : levels;
    }
    for (uint32_t level = 0; level < levels; level++)
      for (size_t j = 0; j < ABREAST; j++) at[j] = follow(e->nodes + at[j], ranks);
    for (size_t j = 0; j < ABREAST && i + j < s->trees; j++) add(to, 0, (int)s->single, e->values[at[j]]);
  }
}

static void walk_one(const forest_engine *e, const group *g, const uint16_t *ranks, sums *to) {
  chunk chunks[2];
  int now = 0, before = 0; /* which chunk is entered; whether the other one waits to be left */
  for (size_t i = 0; i < g->slots; i++) {
    const slot *s = e->slots + g->slot + i;
    if (s->upper == LINKED) {
      one_row_linked(e, s, ranks, to + i);
      continue;
    }
    for (size_t first = 0; first < s->trees; first += CHUNK) {
      chunks[now].single = s->single;
      chunks[now].to = to + i;
      if (s->upper == LOWER) enter(e, s, LOWER, first, ranks, &chunks[now]); /* the most trees by far: unrolled */
      else enter(e, s, s->upper, first, ranks, &chunks[now]);
      now = !now;
      if (before) leave(&chunks[now], ranks);
      before = 1;
    }
  }
  if (before) leave(&chunks[!now], ranks);
}

/* ---- answers ---- */

/* Sums of one lane -> the outputs of one row. */
static void finish(const forest_engine *e, const group *g, const sums *of, int lane, double *answer, float *out) {
  for (uint64_t i = 0; i < e->head.outputs; i++) answer[i] = 0;
  for (uint32_t i = 0; i < g->forests; i++) {
    const forest *f = e->forests + g->forest + i;
    double most = -INFINITY, total = 0;
    for (int pass = f->postprocessor == SOFTMAX ? 0 : 2; pass < 3; pass++) /* softmax: the largest, the total, each */
      for (uint32_t j = 0; j < f->width; j++) {
        const slot *s = e->slots + g->slot + f->slot + j;
        const sums *sum = of + f->slot + j;
        double x = f->alpha * ((s->single ? (double)sum->single[lane] : sum->twice[lane]) * s->scale + s->offset);
        if (pass == 0) most = x > most ? x : most;
        else if (pass == 1) total += exp(x - most);
        else {
          if (f->postprocessor == SIGMOID) x = 1 / (1 + exp(-x));
          else if (f->postprocessor == EXPONENTIAL) x = exp(x);
          else if (f->postprocessor == SOFTMAX) x = exp(x - most) / total;
          answer[f->output + j] += f->weight * x;
        }
      }
  }
  for (uint64_t i = 0; i < e->head.outputs; i++) out[i] = (float)answer[i];
}

static void begin(const forest_engine *e, const group *g, sums *of, int lanes) {
  for (uint32_t i = 0; i < g->slots; i++)
    for (int lane = 0; lane < lanes; lane++) {
      const slot *s = e->slots + g->slot + i;
      if (s->single) of[i].single[lane] = (float)s->start;
      else of[i].twice[lane] = s->start;
    }
}

/* What one call works in. */
typedef struct {
  uint16_t *ranks; /* [tiles][columns][LANES] */
  sums *sums;      /* [tiles][slots of the group] */
  double *answer;  /* [outputs] */
  uint32_t *order; /* [SORTED] rows, group by group */
  uint32_t *start; /* [groups + 1] where each group's rows start */
} scratch;

static void answer_group(const forest_engine *e, const group *g, const scratch *in, const float *rows,
                         const uint32_t *order, size_t count, float *out) {
  while (count) {
    size_t tail = count % LANES, take = count >= ROWS ? ROWS : tail > FEW ? count : count - tail;
    size_t tiles = (take + LANES - 1) / LANES;
    if (take) {
      encode(e, rows, order, take, tiles * LANES, in->ranks);
      for (size_t tile = 0; tile < tiles; tile++) begin(e, g, in->sums + tile * g->slots, LANES);
      walk_many(e, g, in->ranks, tiles, in->sums);
    } else {
      take = 1;
      encode(e, rows, order, 1, 1, in->ranks);
      begin(e, g, in->sums, 1);
      walk_one(e, g, in->ranks, in->sums);
    }
    for (size_t row = 0; row < take; row++)
      finish(e, g, in->sums + row / LANES * g->slots, (int)(row % LANES), in->answer,
             out + (order ? order[row] : row) * e->head.outputs);
    count -= take;
    if (order) order += take;
    else {
      rows += take * e->head.features;
      out += take * e->head.outputs;
    }
  }
}

static void answer_groups(const forest_engine *e, const scratch *in, const float *rows, size_t count,
                          const int64_t *groups, float *out) {
  uint64_t n = e->head.groups;
  memset(in->start, 0, (n + 1) * sizeof *in->start);
  for (size_t row = 0; row < count; row++) {
    if (groups[row] >= 0 && (uint64_t)groups[row] < n) in->start[groups[row] + 1]++;
    else
      for (uint64_t i = 0; i < e->head.outputs; i++) out[row * e->head.outputs + i] = NAN;
  }
  for (uint64_t i = 0; i < n; i++) in->start[i + 1] += in->start[i];
  for (size_t row = 0; row < count; row++)
    if (groups[row] >= 0 && (uint64_t)groups[row] < n) in->order[in->start[groups[row]]++] = (uint32_t)row;
  for (uint64_t i = 0, from = 0; i < n; from = in->start[i++]) /* a start has moved to its group's end */
    answer_group(e, e->groups + i, in, rows, in->order + from, in->start[i] - from, out);
}

static size_t lines(size_t bytes) { return (bytes + 63) / 64 * 64; }

int forest_predict(const forest_engine *e, const float *rows, size_t count, const int64_t *groups, float *out) {
  if (!count) return 0;
  size_t tiles = ((count < ROWS ? count : ROWS) + LANES - 1) / LANES;
  size_t ranks = lines(tiles * e->head.columns * LANES * sizeof(uint16_t));
  size_t sum = lines(tiles * e->most_slots * sizeof(sums));
  size_t answer = lines(e->head.outputs * sizeof(double)), order = groups ? lines(SORTED * sizeof(uint32_t)) : 0;
  size_t start = groups ? lines((e->head.groups + 1) * sizeof(uint32_t)) : 0;
  char *memory = malloc(ranks + sum + answer + order + start + 64);
  if (!memory) return -1;
  char *at = memory + (64 - (uintptr_t)memory % 64) % 64;
  scratch in = {
      .ranks = (uint16_t *)(void *)at,
      .sums = (sums *)(void *)(at + ranks),
      .answer = (double *)(void *)(at + ranks + sum),
      .order = (uint32_t *)(void *)(at + ranks + sum + answer),
      .start = (uint32_t *)(void *)(at + ranks + sum + answer + order),
  };
  if (!groups) answer_group(e, e->groups, &in, rows, NULL, count, out);
  else
    for (size_t row = 0; row < count; row += SORTED)
      answer_groups(e, &in, rows + row * e->head.features, count - row < SORTED ? count - row : SORTED, groups + row,
                    out + row * e->head.outputs);
  free(memory);
  return 0;
}
