// Types of the Metal Shading Language in C++20, and the vectors' constructors.
#pragma once
#include <stdint.h>

#include "lanes.h"

// Everything a kernel calls is inlined, so that a finding's address leads to the kernel's own line.
#define MTL_I static inline __attribute__((always_inline))
// Collectives know where they were called from: lanes that meet must have come to the same place.
#define MTL_SITE_ARGS uint _line = __builtin_LINE(), uint _col = __builtin_COLUMN()
#define MTL_SITE ((_line << 10) | (_col & 1023))

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef _Float16 half;
typedef __bf16 bfloat;
typedef half float16_t;
typedef bfloat bfloat16_t;

// Clang's vectors have Metal's components, swizzles, sizes and alignment.
template <typename T, int N>
using mtl_vec = T __attribute__((ext_vector_type(N)));
#define MTL_VECTORS(T)                                \
  typedef T T##2 __attribute__((ext_vector_type(2))); \
  typedef T T##3 __attribute__((ext_vector_type(3))); \
  typedef T T##4 __attribute__((ext_vector_type(4)));
MTL_VECTORS(float)
MTL_VECTORS(half)
MTL_VECTORS(bfloat)
MTL_VECTORS(int)
MTL_VECTORS(uint)
MTL_VECTORS(short)
MTL_VECTORS(ushort)
MTL_VECTORS(char)
MTL_VECTORS(uchar)
MTL_VECTORS(long)
MTL_VECTORS(ulong)
#undef MTL_VECTORS

namespace mtl {
// A scalar is treated as a vector of one component.
template <typename T>
struct elem {
  typedef T type;
  static constexpr int n = 1;
};
template <typename T, int N>
struct elem<mtl_vec<T, N>> {
  typedef T type;
  static constexpr int n = N;
};
template <typename T>
using elem_t = typename elem<T>::type;
template <typename T>
constexpr int len = elem<T>::n;

template <bool B, typename T = int>
struct on {};
template <typename T>
struct on<true, T> {
  typedef T type;
};
template <typename T>
constexpr bool is_f = false;
template <>
inline constexpr bool is_f<float> = true;
template <>
inline constexpr bool is_f<half> = true;
template <>
inline constexpr bool is_f<bfloat> = true;
template <typename A, typename B>
constexpr bool same = false;
template <typename A>
inline constexpr bool same<A, A> = true;

template <typename V, typename A>
MTL_I void put(V& v, int& i, A a) {
  if constexpr (len<A> == 1) {
    v[i++] = (elem_t<V>)a;
  } else {
    for (int k = 0; k < len<A>; k++) v[i++] = (elem_t<V>)a[k];
  }
}

// float4(), float4(x), float4(a, b, c, d), float4(v2, v2), float4(half4)
template <typename V, typename... A>
MTL_I V make(A... a) {
  V v = {};
  if constexpr (sizeof...(A) > 0) {
    constexpr int total = (len<A> + ...);
    if constexpr (sizeof...(A) == 1 && total == 1) {
      for (int k = 0; k < len<V>; k++) ((v[k] = (elem_t<V>)a), ...);
    } else {
      static_assert(total == len<V>, "wrong number of components for this vector");
      int i = 0;
      (put(v, i, a), ...);
    }
  }
  return v;
}
}  // namespace mtl

namespace metal {
template <typename T, int N>
using vec = mtl_vec<T, N>;
template <typename To, typename From>
MTL_I To mtl_as_type(From f) {
  static_assert(sizeof(To) == sizeof(From));
  return __builtin_bit_cast(To, f);
}
template <typename A, typename B>
constexpr bool is_same_v = mtl::same<A, B>;

template <typename T>
struct numeric_limits;
#define MTL_FLOAT_LIMITS(T, largest, smallest)                      \
  template <>                                                       \
  struct numeric_limits<T> {                                        \
    static constexpr T max() { return (T)(largest); }               \
    static constexpr T min() { return (T)(smallest); }              \
    static constexpr T lowest() { return (T)(-(largest)); }         \
    static constexpr T infinity() { return (T)__builtin_inff(); }   \
  };
MTL_FLOAT_LIMITS(float, 3.402823466e38f, 1.175494351e-38f)
MTL_FLOAT_LIMITS(half, 65504.0f, 6.103515625e-5f)
MTL_FLOAT_LIMITS(bfloat, 3.38953139e38f, 1.175494351e-38f)
#undef MTL_FLOAT_LIMITS
template <>
struct numeric_limits<int> {
  static constexpr int max() { return 2147483647; }
  static constexpr int min() { return -2147483647 - 1; }
};
template <>
struct numeric_limits<uint> {
  static constexpr uint max() { return 4294967295u; }
  static constexpr uint min() { return 0; }
};
}  // namespace metal
