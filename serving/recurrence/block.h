/* A block of rows, all steps. Included once for each width of vectors, with these defined:
 *   FLOATS           numbers in a vector
 *   ROWS, VECTORS    of a tile: its sums and some weights must fit the registers; VECTORS * FLOATS divides PANEL
 *   TARGET           what the compiler may use
 *   NAMED(name)      the name of a function or type of this width */
#define VECTOR NAMED(vector)
#define INTEGERS NAMED(integers)
typedef float VECTOR __attribute__((vector_size(4 * FLOATS), aligned(4), may_alias));
typedef uint32_t INTEGERS __attribute__((vector_size(4 * FLOATS), aligned(4), may_alias));

/* sums[rows][VECTORS * FLOATS] += states[rows][depth] @ panel[depth][PANEL] */
INLINE void NAMED(tile)(const int rows, const float *states, size_t stride, size_t depth,
                 const float *panel, float *sums, size_t columns) {
  VECTOR sum[ROWS][VECTORS];
#pragma GCC unroll 6
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) sum[i][v] = LOAD(sums + (size_t)i * columns + v * FLOATS);
  for (size_t k = 0; k < depth; k++) {
    VECTOR weight[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) weight[v] = LOAD(panel + k * PANEL + v * FLOATS);
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) sum[i][v] += states[(size_t)i * stride + k] * weight[v];
  }
#pragma GCC unroll 6
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) STORE(sums + (size_t)i * columns + v * FLOATS, sum[i][v]);
}

/* sums[rows][columns] += states[rows][depth] @ panels */
TARGET static void NAMED(multiply)(const float *states, size_t stride, size_t rows, size_t depth, const float *panels,
                                   float *sums, size_t columns) {
  for (size_t column = 0; column < columns; column += PANEL, panels += depth * PANEL)
    for (size_t part = 0; part < PANEL; part += VECTORS * FLOATS)
      for (size_t row = 0; row < rows; row += ROWS) {
        size_t left = rows - row < ROWS ? rows - row : ROWS;
        const float *from = states + row * stride, *weights = panels + part;
        float *to = sums + row * columns + column + part;
        /* how many rows is known as it is compiled, so that the sums lie in registers */
        switch (left) {
#if ROWS > 5
        case 6: NAMED(tile)(6, from, stride, depth, weights, to, columns); break;
        case 5: NAMED(tile)(5, from, stride, depth, weights, to, columns); break;
#endif
        case 4: NAMED(tile)(4, from, stride, depth, weights, to, columns); break;
        case 3: NAMED(tile)(3, from, stride, depth, weights, to, columns); break;
        case 2: NAMED(tile)(2, from, stride, depth, weights, to, columns); break;
        default: NAMED(tile)(1, from, stride, depth, weights, to, columns);
        }
      }
}

INLINE void NAMED(gru_gates)(size_t padded, const float *sums, const float *given, float *state) {
  for (size_t j = 0; j < padded; j += FLOATS) {
    VECTOR z, r, n, h = LOAD(state + j);
    SIGMOID(z, LOAD(sums + j));
    SIGMOID(r, LOAD(sums + padded + j));
    TANH(n, LOAD(given + j) + r * LOAD(sums + 2 * padded + j));
    STORE(state + j, n + z * (h - n));
  }
}

/* A GRU that resets before its product: reset states, and then the gates. */
INLINE void NAMED(gru_reset)(size_t padded, const float *sums, const float *state, float *reset) {
  for (size_t j = 0; j < padded; j += FLOATS) {
    VECTOR r;
    SIGMOID(r, LOAD(sums + padded + j));
    STORE(reset + j, r * LOAD(state + j));
  }
}

INLINE void NAMED(gru_reset_gates)(size_t padded, const float *sums, const float *candidate, float *state) {
  for (size_t j = 0; j < padded; j += FLOATS) {
    VECTOR z, n, h = LOAD(state + j);
    SIGMOID(z, LOAD(sums + j));
    TANH(n, LOAD(candidate + j));
    STORE(state + j, n + z * (h - n));
  }
}

INLINE void NAMED(lstm_gates)(size_t padded, const float *sums, float *cell, float *state) {
  for (size_t j = 0; j < padded; j += FLOATS) {
    VECTOR i, o, f, c, shown;
    SIGMOID(i, LOAD(sums + j));
    SIGMOID(o, LOAD(sums + padded + j));
    SIGMOID(f, LOAD(sums + 2 * padded + j));
    TANH(c, LOAD(sums + 3 * padded + j));
    c = f * LOAD(cell + j) + i * c;
    TANH(shown, c);
    STORE(cell + j, c);
    STORE(state + j, o * shown);
  }
}

/* All steps of rows first to first + count. */
TARGET static void NAMED(block)(const recurrence *layer, const recurrence_call *call, size_t first, size_t count,
                                const space *s) {
  const recurrence_header *head = &layer->head;
  size_t width = head->width, padded = layer->padded, columns = layer->columns, wide = layer->gates * width;
  size_t candidates = layer->second ? layer->second : padded;
  memset(s->states, 0, count * padded * sizeof *s->states);
  memset(s->cells, 0, count * padded * sizeof *s->cells);
  memset(s->sums, 0, count * columns * sizeof *s->sums); /* what pads a gate stays 0 */
  memset(s->given, 0, count * candidates * sizeof *s->given);
  for (size_t turn = 0; turn < call->steps; turn++) {
    size_t step = head->backwards ? call->steps - 1 - turn : turn;
    size_t next = head->backwards ? step - 1 : step + 1;
    const unsigned char *mask = call->mask ? call->mask + first * call->steps + step : NULL;
    size_t valid = 0;
    for (size_t i = 0; i < count; i++) {
      if (call->ids && turn + 1 < call->steps) prefetch(inputs(layer, call, next, first + i), wide);
      if (mask && !mask[i * call->steps]) continue;
      begin(layer, inputs(layer, call, step, first + i), s->sums + i * columns, s->given + i * candidates);
      valid++;
    }
    if (valid) NAMED(multiply)(s->states, padded, count, width, layer->weights, s->sums, columns);
    if (valid && head->kind == GRU_RESET_BEFORE) {
      for (size_t i = 0; i < count; i++)
        NAMED(gru_reset)(padded, s->sums + i * columns, s->states + i * padded, s->reset + i * padded);
      NAMED(multiply)(s->reset, padded, count, width, layer->after, s->given, candidates);
    }
    for (size_t i = 0; i < count; i++) {
      float *state = s->states + i * padded, *sums = s->sums + i * columns, *given = s->given + i * candidates;
      int taken = !mask || mask[i * call->steps];
      if (taken && head->kind == LSTM) NAMED(lstm_gates)(padded, sums, s->cells + i * padded, state);
      else if (taken && head->kind == GRU_RESET_AFTER) NAMED(gru_gates)(padded, sums, given, state);
      else if (taken) NAMED(gru_reset_gates)(padded, sums, given, state);
      if (!call->every) continue;
      float *shown = call->every + ((first + i) * call->steps + step) * width;
      if (taken || !head->zeros) memcpy(shown, state, width * sizeof *shown);
      else memset(shown, 0, width * sizeof *shown);
    }
  }
  for (size_t i = 0; i < count; i++) {
    if (call->last) memcpy(call->last + (first + i) * width, s->states + i * padded, width * sizeof(float));
    if (call->cells) memcpy(call->cells + (first + i) * width, s->cells + i * padded, width * sizeof(float));
  }
}

#undef VECTOR
#undef INTEGERS
#undef FLOATS
#undef ROWS
#undef VECTORS
#undef TARGET
#undef NAMED
