// Mathematics. 16-bit types are computed in float and rounded once, vectors component by component.
#pragma once
#include <math.h>

#include "msl_types.h"

namespace metal {
#define MTL_FUNCTION(name, expression)                                   \
  template <typename T, typename = typename mtl::on<mtl::is_f<T>>::type> \
  MTL_I T name(T a_) {                                                   \
    float a = (float)a_;                                                 \
    (void)a;                                                             \
    return (T)(expression);                                              \
  }                                                                      \
  template <typename T, int N>                                           \
  MTL_I mtl_vec<T, N> name(mtl_vec<T, N> v) {                            \
    mtl_vec<T, N> r;                                                     \
    for (int i = 0; i < N; i++) r[i] = name((T)v[i]);                    \
    return r;                                                            \
  }
#define MTL_FUNCTIONS                             \
  MTL_FUNCTION(exp, __builtin_expf(a))            \
  MTL_FUNCTION(exp2, __builtin_exp2f(a))          \
  MTL_FUNCTION(log, __builtin_logf(a))            \
  MTL_FUNCTION(log2, __builtin_log2f(a))          \
  MTL_FUNCTION(sqrt, __builtin_sqrtf(a))          \
  MTL_FUNCTION(rsqrt, 1.0f / __builtin_sqrtf(a))  \
  MTL_FUNCTION(tanh, __builtin_tanhf(a))          \
  MTL_FUNCTION(sin, __builtin_sinf(a))            \
  MTL_FUNCTION(cos, __builtin_cosf(a))            \
  MTL_FUNCTION(floor, __builtin_floorf(a))        \
  MTL_FUNCTION(ceil, __builtin_ceilf(a))          \
  MTL_FUNCTION(trunc, __builtin_truncf(a))        \
  MTL_FUNCTION(rint, __builtin_rintf(a))          \
  MTL_FUNCTION(round, __builtin_roundf(a))        \
  MTL_FUNCTION(fabs, __builtin_fabsf(a))          \
  MTL_FUNCTION(sign, a > 0 ? 1.0f : a < 0 ? -1.0f : a)
MTL_FUNCTIONS
// Metal's fast functions may be off by more than these.
namespace fast {
MTL_FUNCTIONS
}
namespace precise {
MTL_FUNCTIONS
}
#undef MTL_FUNCTIONS
#undef MTL_FUNCTION

template <typename T>
MTL_I T abs(T a) {
  return a < (T)0 ? (T)-a : a;
}
template <typename T>
MTL_I T min(T a, T b) {
  if constexpr (mtl::len<T> == 1) {
    return b < a ? b : a;
  } else {
    T r;
    for (int i = 0; i < mtl::len<T>; i++) r[i] = b[i] < a[i] ? b[i] : a[i];
    return r;
  }
}
template <typename T>
MTL_I T max(T a, T b) {
  if constexpr (mtl::len<T> == 1) {
    return a < b ? b : a;
  } else {
    T r;
    for (int i = 0; i < mtl::len<T>; i++) r[i] = a[i] < b[i] ? b[i] : a[i];
    return r;
  }
}
template <typename T>
MTL_I T clamp(T x, T lowest, T highest) {
  return min(max(x, lowest), highest);
}
template <typename T>
MTL_I T fma(T a, T b, T c) {
  if constexpr (mtl::len<T> == 1) {
    return (T)__builtin_fmaf((float)a, (float)b, (float)c);
  } else {
    typedef mtl::elem_t<T> E;
    T r;
    for (int i = 0; i < mtl::len<T>; i++) r[i] = fma((E)a[i], (E)b[i], (E)c[i]);
    return r;
  }
}
template <typename T>
MTL_I T pow(T a, T b) {
  return (T)__builtin_powf((float)a, (float)b);
}
template <typename T>
MTL_I T select(T a, T b, bool c) {
  return c ? b : a;
}
template <typename T>
MTL_I bool isnan(T a) {
  return a != a;
}
template <typename T>
MTL_I bool isinf(T a) {
  return __builtin_isinf((float)a);
}
template <typename T, int N>
MTL_I T dot(mtl_vec<T, N> a, mtl_vec<T, N> b) {
  T r = (T)0;
  for (int i = 0; i < N; i++) r = (T)(r + a[i] * b[i]);
  return r;
}

// ---- bits
template <typename T>
constexpr int mtl_bits = 8 * sizeof(T);
template <typename T>
MTL_I T popcount(T a) {
  unsigned long long own = mtl_bits<T> == 64 ? ~0ull : (1ull << (mtl_bits<T> & 63)) - 1;
  return (T)__builtin_popcountll((unsigned long long)a & own);
}
template <typename T>
MTL_I T clz(T a) {
  return a ? (T)(__builtin_clzll((unsigned long long)a) - (64 - mtl_bits<T>)) : (T)mtl_bits<T>;
}
template <typename T>
MTL_I T ctz(T a) {
  return a ? (T)__builtin_ctzll((unsigned long long)a) : (T)mtl_bits<T>;
}
template <typename T>
MTL_I T extract_bits(T v, uint offset, uint bits) {
  return bits == 0 ? T(0) : (T)((v >> offset) & ((T)~(T)0 >> (mtl_bits<T> - bits)));
}
}  // namespace metal
