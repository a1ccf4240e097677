// Atomic operations. Lanes never run at the same time here, so plain operations are atomic.
#pragma once
#include "msl_types.h"

namespace metal {
enum memory_order { memory_order_relaxed };
template <typename T>
struct atomic {
  T v;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;

// `old` is what stood there, `b` the argument. They are not inlined: the return address leads to the
// line of the kernel.
#define MTL_ATOMIC(name, expression)                                            \
  template <typename T, typename U>                                             \
  MTL_NOSAN __attribute__((noinline)) T name(atomic<T>* p, U u, memory_order) { \
    mtl_atomic_touch(p, sizeof(T), __builtin_return_address(0));                \
    T old = p->v, b = (T)u;                                                     \
    (void)b;                                                                    \
    p->v = (T)(expression);                                                     \
    return old;                                                                 \
  }
MTL_ATOMIC(atomic_fetch_add_explicit, old + b)
MTL_ATOMIC(atomic_fetch_sub_explicit, old - b)
MTL_ATOMIC(atomic_fetch_max_explicit, old < b ? b : old)
MTL_ATOMIC(atomic_fetch_min_explicit, b < old ? b : old)
MTL_ATOMIC(atomic_fetch_or_explicit, old | b)
MTL_ATOMIC(atomic_fetch_and_explicit, old & b)
MTL_ATOMIC(atomic_exchange_explicit, b)
#undef MTL_ATOMIC

template <typename T, typename U>
MTL_NOSAN void atomic_store_explicit(atomic<T>* p, U u, memory_order) {
  mtl_atomic_touch(p, sizeof(T), __builtin_return_address(0));
  p->v = (T)u;
}
template <typename T>
MTL_NOSAN T atomic_load_explicit(const atomic<T>* p, memory_order) {
  return p->v;
}
}  // namespace metal
