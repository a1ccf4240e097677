// Barriers, and the collectives of a SIMD-group: every lane leaves a slot and waits; when all have
// come, one function computes all results.
#pragma once
#include "msl_types.h"

namespace metal {
enum class mem_flags : uint {
  mem_none = 0,
  mem_device = 1,
  mem_threadgroup = 2,
  mem_device_and_threadgroup = 3,
  mem_texture = 4,
};
MTL_I mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags((uint)a | (uint)b); }

MTL_I void threadgroup_barrier(mem_flags f, MTL_SITE_ARGS) {
  mtl_sync(MK_TGBAR, "threadgroup_barrier", MTL_SITE, (uint)f, nullptr, nullptr, nullptr);
}
MTL_I void simdgroup_barrier(mem_flags f, MTL_SITE_ARGS) {
  mtl_sync(MK_SGBAR, "simdgroup_barrier", MTL_SITE, (uint)f, nullptr, nullptr, nullptr);
}
// For collectives that only have to be come to together.
MTL_NOSAN static void mtl_combine_nothing(void**, uint, void*) {}

template <typename T>
struct mtl_slot {
  T in, out;
  int source;       // of a shuffle: the lane to read from
  bool is_no_lane;  // of a shuffle: that lane does not take part
};
template <typename T>
MTL_NOSAN static mtl_slot<T>& mtl_slot_of(void** slots, int lane) {
  return *(mtl_slot<T>*)slots[lane];
}
template <typename T>
MTL_I T mtl_collective(const char* name, T v, MtlCombine combine, uint site) {
  mtl_slot<T> slot;
  slot.in = v;
  mtl_sync(MK_SIMD, name, site, 0, &slot, combine, nullptr);
  return slot.out;
}

// ---- reductions: `r` is the result so far, in lane order, `b` the next lane's value
#define MTL_REDUCTION(name, step)                                                           \
  template <typename T>                                                                     \
  MTL_NOSAN void mtl_combine_##name(void** slots, uint active, void*) {                     \
    T result = mtl_slot_of<T>(slots, __builtin_ctz(active)).in;                             \
    for (int i = __builtin_ctz(active) + 1; i < 32; i++) {                                  \
      if (!(active >> i & 1)) continue;                                                     \
      if constexpr (mtl::len<T> == 1) {                                                     \
        T r = result, b = mtl_slot_of<T>(slots, i).in;                                      \
        result = (T)(step);                                                                 \
      } else {                                                                              \
        for (int c = 0; c < mtl::len<T>; c++) {                                             \
          mtl::elem_t<T> r = result[c], b = mtl_slot_of<T>(slots, i).in[c];                 \
          result[c] = (mtl::elem_t<T>)(step);                                               \
        }                                                                                   \
      }                                                                                     \
    }                                                                                       \
    for (int i = 0; i < 32; i++)                                                            \
      if (active >> i & 1) mtl_slot_of<T>(slots, i).out = result;                           \
  }                                                                                         \
  template <typename T>                                                                     \
  MTL_I T name(T v, MTL_SITE_ARGS) {                                                        \
    return mtl_collective(#name, v, mtl_combine_##name<T>, MTL_SITE);                       \
  }
MTL_REDUCTION(simd_sum, r + b)
MTL_REDUCTION(simd_product, r * b)
MTL_REDUCTION(simd_max, r < b ? b : r)
MTL_REDUCTION(simd_min, b < r ? b : r)
MTL_REDUCTION(simd_and, r & b)
MTL_REDUCTION(simd_or, r | b)
MTL_REDUCTION(simd_xor, r ^ b)
#undef MTL_REDUCTION

// ---- scans
template <typename T, bool IS_EXCLUSIVE>
MTL_NOSAN void mtl_combine_scan(void** slots, uint active, void*) {
  T sum = (T)0;
  for (int i = 0; i < 32; i++) {
    if (!(active >> i & 1)) continue;
    mtl_slot<T>& slot = mtl_slot_of<T>(slots, i);
    T before = sum;
    sum = (T)(sum + slot.in);
    slot.out = IS_EXCLUSIVE ? before : sum;
  }
}
template <typename T>
MTL_I T simd_prefix_inclusive_sum(T v, MTL_SITE_ARGS) {
  return mtl_collective("simd_prefix_inclusive_sum", v, mtl_combine_scan<T, false>, MTL_SITE);
}
template <typename T>
MTL_I T simd_prefix_exclusive_sum(T v, MTL_SITE_ARGS) {
  return mtl_collective("simd_prefix_exclusive_sum", v, mtl_combine_scan<T, true>, MTL_SITE);
}

// ---- shuffles
template <typename T>
MTL_NOSAN void mtl_combine_shuffle(void** slots, uint active, void*) {
  for (int i = 0; i < 32; i++) {
    if (!(active >> i & 1)) continue;
    mtl_slot<T>& slot = mtl_slot_of<T>(slots, i);
    int source = slot.source;
    slot.is_no_lane = source < 0 || source > 31 || !(active >> source & 1);
    slot.out = slot.is_no_lane ? slot.in : mtl_slot_of<T>(slots, source).in;
  }
}
template <typename T>
MTL_I T mtl_shuffle(const char* name, T v, int source, uint line, uint site) {
  mtl_slot<T> slot;
  slot.in = v;
  slot.source = source;
  mtl_sync(MK_SIMD, name, site, 0, &slot, mtl_combine_shuffle<T>, nullptr);
  if (slot.is_no_lane)
    mtl_report("shuffle-source", line, "%s reads lane %d, which is not active", name, source);
  return slot.out;
}
// `l` is the lane's own index, `d` the argument. Past the ends, up and down leave a lane its value.
#define MTL_SHUFFLE(name, index)                                     \
  template <typename T>                                              \
  MTL_I T name(T v, ushort d_, MTL_SITE_ARGS) {                      \
    int l = (int)mtl_cur->lane, d = (int)d_;                         \
    (void)l;                                                         \
    return mtl_shuffle(#name, v, (index), _line, MTL_SITE);          \
  }
MTL_SHUFFLE(simd_shuffle, d)
MTL_SHUFFLE(simd_broadcast, d)
MTL_SHUFFLE(simd_shuffle_xor, l ^ d)
MTL_SHUFFLE(simd_shuffle_down, l + d > 31 ? l : l + d)
MTL_SHUFFLE(simd_shuffle_up, l - d < 0 ? l : l - d)
MTL_SHUFFLE(simd_shuffle_rotate_down, (l + d) & 31)
MTL_SHUFFLE(simd_shuffle_rotate_up, (l - d) & 31)
MTL_SHUFFLE(quad_shuffle, (l & ~3) | d)
MTL_SHUFFLE(quad_broadcast, (l & ~3) | d)
MTL_SHUFFLE(quad_shuffle_xor, l ^ d)
#undef MTL_SHUFFLE

template <typename T>
MTL_I T quad_sum(T v, MTL_SITE_ARGS) {
  v = v + quad_shuffle_xor(v, 1, _line, _col);
  return v + quad_shuffle_xor(v, 2, _line, _col);
}
template <typename T>
MTL_I T simd_broadcast_first(T v, MTL_SITE_ARGS) {
  return simd_shuffle(v, 0, _line, _col);
}

// ---- votes
MTL_I bool simd_any(bool v, MTL_SITE_ARGS) { return simd_or((uint)v, _line, _col) != 0; }
MTL_I bool simd_all(bool v, MTL_SITE_ARGS) { return simd_and((uint)v, _line, _col) != 0; }
struct simd_vote {
  ulong bits;
  explicit operator ulong() const { return bits; }
  bool all() const { return bits == 0xFFFFFFFFul; }
  bool any() const { return bits != 0; }
};
MTL_I simd_vote simd_ballot(bool v, MTL_SITE_ARGS) {
  return {(ulong)simd_or((uint)v << mtl_cur->lane, _line, _col)};
}
MTL_I bool simd_is_first() { return mtl_cur->lane == 0; }
}  // namespace metal
