// Are accesses to the same memory ordered? Included by memory.cpp alone, which calls `visit` for
// each granule of an access: it is to be inlined there.
#pragma once
#include <string.h>

#include "runtime.h"

// Who wrote and read a granule last, and at what time. Time is counted in barriers: program order
// orders a lane's own accesses, simdgroup_barrier those of a SIMD-group, threadgroup_barrier those
// of a threadgroup, and nothing those of different threadgroups. A granule is an element in device
// memory and a byte in threadgroup memory.
struct Shadow {
  uint32_t w_tg, r_tg;  // the threadgroup, 0 for none
  uint32_t w_lane;      // index of the lane in the threadgroup + 1; 0: never written
  int32_t r_lane;       // index of the lane; kManyGroups; or -2 - s: many lanes of SIMD-group s
  uint32_t w_te, w_se, r_te, r_se;  // barriers of the threadgroup and of the SIMD-group before
  const void *w_pc, *r_pc;
};
static const int32_t kManyGroups = -1;
static const uint32_t kAtomic = 0xffffffff;  // as w_tg: written by an atomic operation

// ---------------------------------------------------------------- time
static uint32_t g_tg_number;                 // of the threadgroup that runs, from 1
static uint32_t g_tg_epoch[2];               // barriers so far: [0] device, [1] threadgroup
static std::vector<uint32_t> g_sg_epoch[2];  // the same for each SIMD-group

void order_threadgroup(uint32_t flags) {
  for (int space = 0; space < 2; space++) g_tg_epoch[space] += flags >> space & 1;
}

void order_simdgroup(uint32_t sg, uint32_t flags) {
  for (int space = 0; space < 2; space++) g_sg_epoch[space][sg] += flags >> space & 1;
}

// ---------------------------------------------------------------- rules
// One access to one granule.
struct Access {
  bool is_write, is_tg;
  bool is_filled;  // the memory had a value before the kernel started
  const char* name;
  uint64_t index;
  const void* pc;
  uint32_t te, se;  // barriers before it
};

static void report_race(const Access& a, bool other_is_write, const void* other_pc, int other) {
  std::string who = other == kManyGroups  ? "several SIMD-groups"
                    : other < kManyGroups ? "several lanes of a SIMD-group"
                                          : "thread " + std::to_string(other);
  std::string text =
      text_of("%s of %s[%llu] by %s is not ordered after the %s by %s",
              a.is_write ? "write" : "read", a.name, (unsigned long long)a.index,
              current_lane().c_str(), other_is_write ? "write" : "read", who.c_str());
  Place place;
  place.pc = (uint64_t)a.pc;
  place.other_pc = (uint64_t)other_pc;
  add_finding(a.is_tg ? "threadgroup-race" : "device-race", place, text);
}

static void report_uninitialised(const Access& a) {
  const char* format = a.is_tg ? "read of %s[%llu] that no lane has written [%s]"
                               : "read of output %s[%llu] before any write [%s]";
  Place place;
  place.pc = (uint64_t)a.pc;
  add_finding(a.is_tg ? "uninitialised-threadgroup-read" : "uninitialised-output-read", place,
              text_of(format, a.name, (unsigned long long)a.index, current_lane().c_str()));
}

// Any access has to be ordered after the last write.
static inline void check_against_write(Shadow& s, const Access& a) {
  if (!s.w_lane) return;
  if (a.is_tg && s.w_tg != g_tg_number) {  // of an earlier threadgroup: its memory is gone
    memset(&s, 0, sizeof s);
    return;
  }
  uint32_t writer = s.w_lane - 1;
  bool is_ordered = s.w_tg == g_tg_number && (writer == mtl_cur->tid || s.w_te < a.te ||
                                              (writer / 32 == mtl_cur->sg && s.w_se < a.se));
  if (!is_ordered) report_race(a, true, s.w_pc, (int)writer);
}

// A write has to be ordered after all reads since the last barrier.
static inline void check_against_reads(const Shadow& s, const Access& a) {
  bool is_ordered;
  if (s.r_tg != g_tg_number) {
    is_ordered = a.is_tg || !s.r_tg;
  } else if (s.r_te < a.te) {
    is_ordered = true;
  } else if (s.r_lane >= 0) {
    is_ordered =
        s.r_lane == (int)mtl_cur->tid || ((uint32_t)s.r_lane / 32 == mtl_cur->sg && s.r_se < a.se);
  } else {
    is_ordered = s.r_lane == -2 - (int)mtl_cur->sg && s.r_se < a.se;
  }
  if (!is_ordered) report_race(a, false, s.r_pc, s.r_lane);
}

// Readers are remembered as one lane, one SIMD-group, or many: enough to judge a later write.
static inline void remember_read(Shadow& s, const Access& a) {
  int own_group = -2 - (int)mtl_cur->sg;
  if (s.r_tg != g_tg_number || s.r_te < a.te) {
    s.r_tg = g_tg_number;
    s.r_te = a.te;
    s.r_lane = mtl_cur->tid;
  } else if (s.r_lane >= 0 && s.r_lane != (int)mtl_cur->tid) {
    s.r_lane = (uint32_t)s.r_lane / 32 == mtl_cur->sg ? own_group : kManyGroups;
  } else if (s.r_lane < kManyGroups && s.r_lane != own_group) {
    s.r_lane = kManyGroups;
  }
  s.r_se = a.se;
  s.r_pc = a.pc;
}

static inline void visit(Shadow& s, const Access& a) {
  check_against_write(s, a);
  if (a.is_tg && s.r_tg != g_tg_number) s.r_tg = 0;
  if (a.is_write) {
    check_against_reads(s, a);
    s.w_tg = g_tg_number;
    s.w_lane = mtl_cur->tid + 1;
    s.w_te = a.te;
    s.w_se = a.se;
    s.w_pc = a.pc;
  } else {
    if (!s.w_lane && !a.is_filled) report_uninitialised(a);
    remember_read(s, a);
  }
}
