/* What a packed forest is, and how it answers.
 *
 * 1. Ranks. The distinct thresholds of a feature, over all trees, are sorted; a row's value becomes the number of them
 *    that are not above it. "value < threshold[j]" is then "rank <= j": a node is a column and a rank, 4 bytes.
 * 2. Missing values. A feature has up to two columns: NaN ranks lowest in one, highest in the other. A node reads the
 *    one that sends NaN its way, so that no walk ever asks.
 * 3. Units. A tree of at most 8 levels is padded until it is complete: `upper` levels (0 to 4) in one heap of 64
 *    bytes, and below each of its exits a unit of 4 levels and their 16 leaves, 128 bytes. A row meets three cache
 *    lines. Deeper trees are linked nodes, 8 bytes each.
 * 4. Many rows. Ranks lie column by column for 16 rows, so that an upper heap is answered for 16 rows by plain loops
 *    that compilers turn into vector instructions; then 16 walks go side by side through the units. The trees to come
 *    are prefetched whole.
 * 5. One row. 32 trees at a time: their upper heaps first, prefetching the units they lead to, and then the walks
 *    through the units of the 32 trees before them.
 *
 * The file is the header and then the sections, in this order, each at a multiple of 64 bytes; little-endian.
 * export/forest/to_engine.py writes it. */
#ifndef TRISTAGE_FOREST_PACKED_H
#define TRISTAGE_FOREST_PACKED_H

#include "engine.h"

enum {
  LANES = 16,       /* rows whose ranks lie side by side: a tile */
  FAN = 16,         /* thresholds compared at once when a rank is looked up */
  LOWER = 4,        /* levels in a unit */
  LINKED = 5,       /* a slot's `upper` where its trees are linked nodes */
  SPARE = 7,        /* trees that follow a slot's last one and may be walked with it, but do not count */
  HIGHEST = 0x7fff, /* rank of NaN in a high column, and of a node that sends nothing right */
};

enum { IDENTITY, SIGMOID, EXPONENTIAL, SOFTMAX, POSTPROCESSORS };

typedef struct {
  char magic[8];
  uint32_t version, checksum; /* CRC-32 of all that follows; whoever reads the file compares it */
  uint64_t size, features, columns, outputs;
  uint64_t groups, searches, slots, forests, keys, uppers, units, nodes, roots; /* entries in each section */
} header;

typedef struct { /* a group of rows: its slots, and its forests */
  uint32_t slot, slots, forest, forests;
} group;

typedef struct { /* a feature's value -> its rank among `count` keys -> one or two columns */
  uint32_t feature, count, key;
  uint16_t low, high; /* the columns where NaN ranks lowest and highest */
} search;

typedef struct { /* trees that are summed: start + leaves, in order; margin = sum * scale + offset */
  uint32_t upper, single, trees, first_upper, first; /* first: unit, or root where linked */
  uint32_t unused;
  double start, scale, offset;
} slot;

typedef struct { /* `width` slots -> as many outputs, to which weight * postprocess(alpha * margin) is added */
  uint32_t slot, width, output, postprocessor;
  double alpha, weight;
} forest;

typedef struct { /* 15 nodes from 1 on, children at 2i and 2i + 1: right if the column's rank is above the node's */
  uint16_t column[16], rank[16]; /* columns times LANES */
} heap;

typedef struct {
  heap nodes;
  float leaf[16];
} unit;

typedef struct { /* left is `next`, right the one after; a leaf is its own `next` */
  uint16_t column, rank;
  uint32_t next;
} node;

typedef struct {
  uint32_t node, levels;
} root;

struct forest_engine {
  header head;
  const group *groups;
  const search *searches;
  const slot *slots;
  const forest *forests;
  const float *keys;
  const heap *uppers;
  const unit *units;
  const node *nodes;
  const float *values; /* of linked leaves, one a node */
  const root *roots;
  size_t most_slots; /* of one group */
};

/* Floats of one level of keys. A look-up's keys are its sorted thresholds, then every 16th of them, and so on while
 * more than 16 are left; each level fills whole lines and ends with at least one NaN. */
static inline uint64_t level_floats(uint64_t count) { return (count / FAN + 1) * FAN; }

#endif
