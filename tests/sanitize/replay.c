/* Replays cases that tests/sanitize/cases.py wrote, built under sanitizers or run by valgrind: every buffer is exactly
 * as large as it must be, so that one element too far is seen. Then opens the same forests forged, many times over.
 * Usage: replay FORGERIES CASE... */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

static uint64_t state = 88172645463325252u;

static uint64_t next(void) {
  state ^= state << 13;
  state ^= state >> 7;
  return state ^= state << 17;
}

static void *take(FILE *file, size_t bytes) {
  void *data = aligned_alloc(64, (bytes + 63) / 64 * 64 + !bytes * 64);
  if (!data || fread(data, 1, bytes, file) != bytes) {
    fprintf(stderr, "a case is cut short\n");
    exit(2);
  }
  return data;
}

/* The first `count` rows, in buffers of their own: how many answers are wrong. */
static size_t wrong(const forest_engine *engine, const float *rows, size_t count, const int64_t *groups,
                    const float *answers) {
  size_t features = forest_features(engine), outputs = forest_outputs(engine), differ = 0;
  float *own = malloc(count * features * sizeof *own), *out = malloc(count * outputs * sizeof *out);
  int64_t *of = malloc(count * sizeof *of);
  if (count && (!own || !out || !of)) exit(2);
  if (count) memcpy(own, rows, count * features * sizeof *own);
  if (count && groups) memcpy(of, groups, count * sizeof *of);
  if (forest_predict(engine, own, count, groups ? of : NULL, out)) exit(2);
  for (size_t i = 0; i < count * outputs; i++)
    differ += isnan(answers[i]) ? !isnan(out[i]) : !(fabsf(out[i] - answers[i]) <= 1e-6f * (1 + fabsf(answers[i])));
  free(own);
  free(out);
  free(of);
  return differ;
}

static void forge(const unsigned char *packed, size_t size, size_t forgeries, size_t counts[2]) {
  unsigned char *copy = aligned_alloc(64, size);
  if (!copy) exit(2);
  for (size_t i = 0; i < forgeries; i++) {
    size_t end = i % 8 ? size : next() % size / 64 * 64;
    memcpy(copy, packed, size);
    for (size_t changes = next() % 4; changes < 4; changes++) {
      size_t at = next() % (i % 2 && size > 2048 ? 2048 : size - 8);
      static const uint32_t words[] = {0, 1, 7, 0x7fff, 0xffff, 0x10000, 0x7fffffff, 0xffffffff};
      uint32_t word = next() % 2 ? words[next() % 8] : (uint32_t)next();
      memcpy(copy + (next() % 2 ? at / 4 * 4 : at), &word, 1 + next() % 4);
    }
    const char *why;
    forest_engine *engine = forest_open(copy, end, &why);
    counts[engine != NULL]++;
    if (engine && forest_features(engine) < 1000 && forest_outputs(engine) < 1000) {
      size_t count = next() % 2 ? 1 : 40, features = forest_features(engine);
      float *rows = malloc(count * features * sizeof *rows), *out = malloc(count * forest_outputs(engine) * sizeof *out);
      int64_t *groups = malloc(count * sizeof *groups);
      if (!rows || !out || !groups) exit(2);
      for (size_t j = 0; j < count * features; j++) rows[j] = (float)(next() % 2000) / 500 - 2;
      for (size_t j = 0; j < count; j++) groups[j] = (int64_t)(next() % 8) - 1;
      if (forest_predict(engine, rows, count, next() % 2 ? groups : NULL, out)) exit(2);
      free(rows);
      free(out);
      free(groups);
    }
    forest_close(engine);
  }
  free(copy);
}

int main(int argc, char **argv) {
  size_t differ = 0, answers_seen = 0, counts[2] = {0, 0};
  for (int i = 2; i < argc; i++) {
    FILE *file = fopen(argv[i], "rb");
    if (!file) return 2;
    uint64_t sizes[5]; /* bytes of the packed forest, rows, features, outputs, whether there are groups */
    if (fread(sizes, sizeof *sizes, 5, file) != 5) return 2;
    unsigned char *packed = take(file, sizes[0]);
    float *rows = take(file, sizes[1] * sizes[2] * sizeof *rows), *answers = take(file, sizes[1] * sizes[3] * sizeof *answers);
    int64_t *groups = sizes[4] ? take(file, sizes[1] * sizeof *groups) : NULL;
    fclose(file);
    const char *why = NULL;
    forest_engine *engine = forest_open(packed, sizes[0], &why);
    if (!engine || forest_features(engine) != sizes[2] || forest_outputs(engine) != sizes[3]) {
      fprintf(stderr, "%s: %s\n", argv[i], why ? why : "other features or outputs");
      return 1;
    }
    static const size_t some[] = {0, 1, 2, 7, 12, 13, 16, 17, 29, 64, 255, 256, 257, SIZE_MAX};
    for (size_t j = 0; j < sizeof some / sizeof *some; j++) {
      size_t count = some[j] < sizes[1] ? some[j] : sizes[1];
      differ += wrong(engine, rows, count, groups, answers);
      answers_seen += count * sizes[3];
    }
    forest_close(engine);
    forge(packed, sizes[0], (size_t)strtoull(argv[1], NULL, 10), counts);
    free(packed);
    free(rows);
    free(answers);
    free(groups);
  }
  printf("%d forests, %zu answers, %zu wrong; forged: %zu refused, %zu answered\n", argc - 2, answers_seen, differ,
         counts[0], counts[1]);
  return differ || argc < 3;
}
