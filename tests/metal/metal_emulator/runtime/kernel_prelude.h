// What stands before every kernel: the Metal library and the storage of threadgroup variables.
#pragma once
#include "msl.h"

#ifdef MTL_SPACES
// Type check only: the variable gets its address space, and nothing is registered.
#define MTL_TGVAR static threadgroup
#define MTL_TGREG(variable, number)
#else
// A section of their own lets the runtime tell threadgroup memory from the lanes' stacks. The red
// zone behind each variable belongs to none, so that an index past its end is seen.
#define MTL_TGVAR static __attribute__((section("mtl_tg"), aligned(256)))
#define MTL_TGREG(variable, number)                                                         \
  {                                                                                         \
    static __attribute__((section("mtl_tg"), aligned(256), used)) char _rz##number[256];    \
    mtl_tg_register(#variable, (void*)&variable, sizeof(variable),                          \
                    sizeof(*(::mtl_strip(&variable))));                                     \
  }
#endif

// The innermost element of an array, whatever its dimensions: findings count in it.
template <typename T>
T* mtl_strip(T* p) {
  return p;
}
template <typename T, int N>
auto mtl_strip(T (*p)[N]) {
  return mtl_strip((T*)p);
}

MTL_I uint3 mtl_u3(MtlU3 v) {
  uint3 r;
  r[0] = v.x;
  r[1] = v.y;
  r[2] = v.z;
  return r;
}
MTL_I uint mtl_u3(uint v) { return v; }
