/* Forests answered on one core: a packed forest (export/forest/to_engine.py writes it) is opened where it lies in
 * memory, and rows are answered from there. Plain C11; nothing but the C library; no state outside of what is passed. */
#ifndef TRISTAGE_FOREST_ENGINE_H
#define TRISTAGE_FOREST_ENGINE_H

#include <stddef.h>
#include <stdint.h>

typedef struct forest_engine forest_engine;

/* Opens a packed forest of `size` bytes at `data`, which must be aligned to 64 bytes and stay as it is until
 * forest_close. Everything that predicting relies on is checked: no later call reads or writes out of bounds, whatever
 * the bytes are. Returns NULL and, in `why`, a static text that says what is wrong. */
forest_engine *forest_open(const void *data, size_t size, const char **why);
void forest_close(forest_engine *engine);

size_t forest_features(const forest_engine *engine);
size_t forest_outputs(const forest_engine *engine);
size_t forest_groups(const forest_engine *engine);

/* Answers rows. `rows` is [count, features], `out` is [count, outputs], both row by row. `groups` holds the number of
 * each row's group; a row of a group that is not there is answered with NaN. NULL: all rows are of group 0.
 * May be called from several threads at once. Returns 0, or -1 if there is no memory for the scratch space, which does
 * not grow with `count`. */
int forest_predict(const forest_engine *engine, const float *rows, size_t count, const int64_t *groups, float *out);

#endif
