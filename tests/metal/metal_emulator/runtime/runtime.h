// What the parts of the runtime share. It is built without sanitizers, once for all kernels.
#pragma once
#include <stdint.h>

#include <string>
#include <vector>

#include "lanes.h"

// ---- findings.cpp
// A finding at machine addresses of the kernel, from which the source lines are looked up later, or
// at lines that are known. The same finding again only counts.
struct Place {
  uint64_t pc = 0, other_pc = 0;
  uint32_t line = 0, other_line = 0;
};
void add_finding(const char* kind, Place place, const std::string& text);
std::string current_lane();
void clear_findings();
std::string text_of(const char* format, ...);

// ---- memory.cpp
struct BufDesc {  // _BufferDescription in run.py
  const char* name;
  uint64_t nbytes;
  uint32_t esz;
  uint32_t role;  // 0 input, 1 output, 3 output that has its initial value
  uint64_t offset;
  void* host;
};
void open_memory(const BufDesc* buffers, int n, bool is_checked, std::vector<void*>& pointers);
void start_threadgroup_memory(uint32_t n_simdgroups);
void close_memory(const BufDesc* buffers, bool is_complete);
// A barrier orders what came before it in device memory (flag 1) and threadgroup memory (flag 2).
void order_threadgroup(uint32_t flags);
void order_simdgroup(uint32_t sg, uint32_t flags);
int region_at(uintptr_t address);
extern uint64_t g_counts[MC_END];

// ---- traffic.cpp
extern bool g_profiled;
void clear_traffic(bool is_profiled);
void start_threadgroup_traffic(uint32_t n_simdgroups);
void note_access(const void* pc, uintptr_t address, size_t n, bool is_write);
void end_traffic_step(uint32_t sg);

// ---- fibers.cpp
void reserve_stacks(size_t n_lanes);
void start_lane(MtlLane& lane, uint32_t index, void (*main)());
void resume_lane(MtlLane& lane);  // returns when the lane waits, or has ended
void leave_lane(MtlLane& lane);   // called on the lane's stack: back to resume_lane

// ---- scheduler.cpp
extern bool g_fatal;  // nothing can go on after such a finding
void abort_lane();
