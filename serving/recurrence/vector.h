/* Numbers side by side: GCC's and Clang's vector types. VECTOR is such a type of floats, INTEGERS of uint32_t. */
#ifndef TRISTAGE_RECURRENCE_VECTOR_H
#define TRISTAGE_RECURRENCE_VECTOR_H

#define LOAD(at) (*(const VECTOR *)(at))
#define STORE(at, value) (*(VECTOR *)(at) = (value))

/* Macros and not functions, as what such a type is passed in hangs on the processor that is compiled for. */
#define CHOOSE(which, yes, no) ((VECTOR)(((which) & (INTEGERS)(yes)) | (~(which) & (INTEGERS)(no))))

/* e^x to 2 units in the last place, between e^-87 and e^87; NaN of NaN. Cephes' polynomial. */
#define EXPONENTIAL(result, argument)                                                                                  \
  do {                                                                                                                 \
    VECTOR x_ = (argument);                                                                                            \
    x_ = CHOOSE(x_ > 87.0f, (VECTOR){0} + 87.0f, x_);                                                                  \
    x_ = CHOOSE(x_ < -87.0f, (VECTOR){0} - 87.0f, x_);                                                                 \
    VECTOR shifted_ = x_ * 1.44269504088896341f + 12582912.0f; /* rounds: the fraction is shifted out */               \
    VECTOR whole_ = shifted_ - 12582912.0f;                                                                            \
    VECTOR r_ = x_ - whole_ * 0.693359375f + whole_ * 2.12194440e-4f;                                                  \
    VECTOR p_ = r_ * 1.9875691500e-4f + 1.3981999507e-3f;                                                              \
    p_ = p_ * r_ + 8.3334519073e-3f;                                                                                   \
    p_ = p_ * r_ + 4.1665795894e-2f;                                                                                   \
    p_ = p_ * r_ + 1.6666665459e-1f;                                                                                   \
    p_ = p_ * r_ + 5.0000001201e-1f;                                                                                   \
    p_ = p_ * r_ * r_ + r_ + 1.0f;                                                                                     \
    INTEGERS power_ = (((INTEGERS)shifted_ - 0x4b400000) + 127) << 23;                                                 \
    (result) = p_ * (VECTOR)power_;                                                                                    \
  } while (0)

#define SIGMOID(result, argument)                                                                                      \
  do {                                                                                                                 \
    VECTOR e_;                                                                                                         \
    EXPONENTIAL(e_, -(argument));                                                                                      \
    (result) = 1.0f / (1.0f + e_);                                                                                     \
  } while (0)

#define TANH(result, argument)                                                                                         \
  do {                                                                                                                 \
    VECTOR t_;                                                                                                         \
    EXPONENTIAL(t_, 2.0f * (argument));                                                                                \
    (result) = 1.0f - 2.0f / (1.0f + t_);                                                                              \
  } while (0)

#endif
