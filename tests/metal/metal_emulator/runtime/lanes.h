// What compiled kernels and the runtime know of each other.
#pragma once
#include <stddef.h>
#include <stdint.h>

// For the emulator's own code inside a kernel's library: it is not what is to be checked.
#define MTL_NOSAN __attribute__((no_sanitize("thread"), no_sanitize("undefined")))

struct MtlU3 {
  uint32_t x, y, z;
};

// What a lane waits for.
enum MtlKind : uint8_t { MK_NONE, MK_SIMD, MK_SGBAR, MK_TGBAR, MK_DONE };

// Computes a collective for the whole SIMD-group. `slots` has what each lane left, null behind the
// last lane of a ragged SIMD-group; `active` has one bit for each lane that takes part.
typedef void (*MtlCombine)(void** slots, uint32_t active, void* aux);

struct MtlLane {
  void* sp;  // the saved stack pointer
  char *stk_lo, *stk_hi;
  uint32_t tid, lane, sg;  // index in the threadgroup, in the SIMD-group, and that SIMD-group's
  MtlKind kind;
  bool done;
  uint32_t site;        // where in the source it waits: line << 10 | column
  uint32_t nsync, ntg;  // how many collectives and barriers it has come to, and how many of the
                        // latter were of the threadgroup
  const char* op;       // the name of what it waits at
  uint32_t flags;       // mem_flags of a barrier
  void* slot;
  MtlCombine combine;
  void* aux;
  MtlU3 pos_grid, pos_tg;
};

struct MtlGroup {
  MtlU3 tg_pos, tgs_per_grid, tg_size, grid, disp_tg_size;
  uint32_t nsg, nthreads;
};

// Counters, in the order of COUNTERS in report.py.
enum MtlCounter {
  MC_MMA,
  MC_SIMD_OPS,
  MC_TG_BARRIERS,
  MC_SG_BARRIERS,
  MC_TG_READ,
  MC_TG_WRITTEN,
  MC_ATOMICS,
  MC_TG_BYTES,
  MC_THREADGROUPS,
  MC_END
};

extern "C" {
extern MtlLane* mtl_cur;  // the lane that runs, null outside of kernels
extern MtlGroup mtl_grp;  // the threadgroup that runs

// Waits until every lane of the SIMD-group, or of the threadgroup, has come to the same place.
void mtl_sync(MtlKind kind, const char* op, uint32_t site, uint32_t flags, void* slot,
              MtlCombine combine, void* aux);
// Makes a threadgroup variable known: `p` with `n` bytes, in elements of `esz`.
void mtl_tg_register(const char* name, void* p, size_t n, size_t esz);
void mtl_report(const char* kind, uint32_t line, const char* format, ...);
void mtl_atomic_touch(const void* p, size_t n, const void* pc);
void mtl_count(int counter, uint64_t n);
}
