/* Every operation: what is made of elements x, y, z. A name says what, and of which type; see export/columns/lower.py.
 *
 * UNARY(name, type made, type of x, expression); BINARY and TERNARY with the types of y and z. */

#define ARITHMETIC(type, c, wide)                            \
  BINARY(add_##type, c, c, c, (c)((wide)x + (wide)y))        \
  BINARY(sub_##type, c, c, c, (c)((wide)x - (wide)y))        \
  BINARY(mul_##type, c, c, c, (c)((wide)x * (wide)y))
#define ORDER(type, c)                                       \
  BINARY(equal_##type, uint8_t, c, c, x == y)                \
  BINARY(less_##type, uint8_t, c, c, x < y)                  \
  BINARY(less_equal_##type, uint8_t, c, c, x <= y)
#define REAL(type, c, f)                                     \
  BINARY(div_##type, c, c, c, x / y)                         \
  /* what is no number stays none, as in ONNX Runtime */     \
  BINARY(max_##type, c, c, c, x != x || x > y ? x : y)       \
  BINARY(min_##type, c, c, c, x != x || x < y ? x : y)       \
  UNARY(is_nan_##type, uint8_t, c, x != x)                   \
  UNARY(abs_##type, c, c, f(fabs)(x))                        \
  UNARY(neg_##type, c, c, -x)                                \
  UNARY(floor_##type, c, c, f(floor)(x))                     \
  UNARY(ceil_##type, c, c, f(ceil)(x))                       \
  UNARY(sqrt_##type, c, c, f(sqrt)(x))                       \
  UNARY(log_##type, c, c, f(log)(x))                         \
  UNARY(exp_##type, c, c, f(exp)(x))                         \
  UNARY(sin_##type, c, c, f(sin)(x))                         \
  UNARY(cos_##type, c, c, f(cos)(x))

ARITHMETIC(int32, int32_t, uint32_t)
ARITHMETIC(int64, int64_t, uint64_t)
ARITHMETIC(float32, float, float)
ARITHMETIC(float64, double, double)
ORDER(int32, int32_t)
ORDER(int64, int64_t)
ORDER(float32, float)
ORDER(float64, double)
BINARY(equal_bool, uint8_t, uint8_t, uint8_t, x == y)
REAL(float32, float, SINGLE)
REAL(float64, double, DOUBLE)
BINARY(div_int64, int64_t, int64_t, int64_t, quotient(x, y))
BINARY(mod_int64, int64_t, int64_t, int64_t, modulo(x, y))
BINARY(max_int64, int64_t, int64_t, int64_t, x > y ? x : y)
BINARY(min_int64, int64_t, int64_t, int64_t, x < y ? x : y)
BINARY(shift_right_uint64, uint64_t, uint64_t, uint64_t, y < 64 ? x >> y : 0)
BINARY(shift_left_uint64, uint64_t, uint64_t, uint64_t, y < 64 ? x << y : 0)
BINARY(and_bool, uint8_t, uint8_t, uint8_t, x && y)
BINARY(or_bool, uint8_t, uint8_t, uint8_t, x || y)
BINARY(xor_bool, uint8_t, uint8_t, uint8_t, !x != !y)
UNARY(not_bool, uint8_t, uint8_t, !x)
TERNARY(where_1, uint8_t, uint8_t, uint8_t, uint8_t, x ? y : z)
TERNARY(where_4, uint32_t, uint8_t, uint32_t, uint32_t, x ? y : z)
TERNARY(where_8, uint64_t, uint8_t, uint64_t, uint64_t, x ? y : z)
UNARY(copy_1, uint8_t, uint8_t, x)
UNARY(copy_4, uint32_t, uint32_t, x)
UNARY(copy_8, uint64_t, uint64_t, x)
UNARY(cast_bool_int32, int32_t, uint8_t, x != 0)
UNARY(cast_bool_int64, int64_t, uint8_t, x != 0)
UNARY(cast_bool_float32, float, uint8_t, x != 0)
UNARY(cast_bool_float64, double, uint8_t, x != 0)
UNARY(cast_int8_int64, int64_t, int8_t, x)
UNARY(cast_int8_float32, float, int8_t, x)
UNARY(cast_uint8_int64, int64_t, uint8_t, x)
UNARY(cast_uint8_float32, float, uint8_t, x)
UNARY(cast_int32_bool, uint8_t, int32_t, x != 0)
UNARY(cast_int32_int64, int64_t, int32_t, x)
UNARY(cast_int32_float32, float, int32_t, (float)x)
UNARY(cast_int32_float64, double, int32_t, x)
UNARY(cast_int64_bool, uint8_t, int64_t, x != 0)
UNARY(cast_int64_int32, int32_t, int64_t, (int32_t)(uint32_t)(uint64_t)x)
UNARY(cast_int64_uint64, uint64_t, int64_t, (uint64_t)x)
UNARY(cast_int64_float32, float, int64_t, (float)x)
UNARY(cast_int64_float64, double, int64_t, (double)x)
UNARY(cast_uint64_int64, int64_t, uint64_t, (int64_t)x)
/* beyond what the type holds, the smallest: what x86 answers */
UNARY(cast_float32_bool, uint8_t, float, x != 0)
UNARY(cast_float32_int32, int32_t, float, x >= -0x1p31f && x < 0x1p31f ? (int32_t)x : INT32_MIN)
UNARY(cast_float32_int64, int64_t, float, x >= -0x1p63f && x < 0x1p63f ? (int64_t)x : INT64_MIN)
UNARY(cast_float32_float64, double, float, x)
UNARY(cast_float64_bool, uint8_t, double, x != 0)
UNARY(cast_float64_int32, int32_t, double, x > -0x1.00000002p31 && x < 0x1p31 ? (int32_t)x : INT32_MIN)
UNARY(cast_float64_int64, int64_t, double, x >= -0x1p63 && x < 0x1p63 ? (int64_t)x : INT64_MIN)
UNARY(cast_float64_float32, float, double, (float)x)

/* OTHER(name, function, bytes of each operand):
 * sum: extras[0] elements of the second operand.
 * gather: rows of a table that the third operand is, by the numbers that the second is; extras: the rows it has, their
 *   bytes. A number below 0 counts from the end.
 * bag: the sum of such rows of float32, one for each of a row's numbers, times the fourth operand's element if there are
 *   weights; extras: the rows of the table, the numbers of a row, and whether a weight of 0 skips what it weighs.
 * label: the number of a key; the third operand is a hash table of columns_slot, of extras[0] bits; extras[1] is the
 *   number of what is not in it. */
OTHER(sum_int32, sum_int32, 4, 4, 0, 0)
OTHER(sum_int64, sum_int64, 8, 8, 0, 0)
OTHER(gather_int32, gather_int32, 1, 4, 1, 0)
OTHER(gather_int64, gather_int64, 1, 8, 1, 0)
OTHER(bag_int64, bag_int64, 4, 8, 4, 0)
OTHER(bag_weighted_int64, bag_int64, 4, 8, 4, 4)
OTHER(label_int64, label_int64, 8, 8, 1, 0)

#undef ARITHMETIC
#undef ORDER
#undef REAL
