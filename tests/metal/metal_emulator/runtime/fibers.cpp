// Lanes as fibers: each has a stack of its own, and a switch saves and restores the registers that
// the calling convention lets a function keep.
#include <string.h>
#include <sys/mman.h>

#include "runtime.h"

// Saves the registers on the current stack and its pointer in *save, then goes on where the stack
// `to` was left.
extern "C" void mtl_switch(void** save, void* to);

#if defined(__x86_64__)
asm(R"(.text
.globl mtl_switch
.hidden mtl_switch
mtl_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");
static const int kSavedRegisters = 6;

// After `ret` has taken the address of `main`, the stack pointer is 8 above a multiple of 16, as
// after a call.
static void* prepare(char* top, void (*main)()) {
  uint64_t* sp = (uint64_t*)(top - 64 - 8);
  *--sp = (uint64_t)main;
  for (int i = 0; i < kSavedRegisters; i++) *--sp = 0;
  return sp;
}
#elif defined(__aarch64__)
asm(R"(.text
.globl mtl_switch
.hidden mtl_switch
mtl_switch:
  sub sp, sp, #160
  stp x19,x20,[sp,#0]; stp x21,x22,[sp,#16]; stp x23,x24,[sp,#32]; stp x25,x26,[sp,#48]
  stp x27,x28,[sp,#64]; stp x29,x30,[sp,#80]
  stp d8,d9,[sp,#96]; stp d10,d11,[sp,#112]; stp d12,d13,[sp,#128]; stp d14,d15,[sp,#144]
  mov x9, sp
  str x9,[x0]
  mov sp, x1
  ldp x19,x20,[sp,#0]; ldp x21,x22,[sp,#16]; ldp x23,x24,[sp,#32]; ldp x25,x26,[sp,#48]
  ldp x27,x28,[sp,#64]; ldp x29,x30,[sp,#80]
  ldp d8,d9,[sp,#96]; ldp d10,d11,[sp,#112]; ldp d12,d13,[sp,#128]; ldp d14,d15,[sp,#144]
  add sp, sp, #160
  ret
)");
static const int kFrame = 160, kReturnAddress = 11;  // bytes; index of x30 among the saved

static void* prepare(char* top, void (*main)()) {
  uint64_t* sp = (uint64_t*)(top - 64 - kFrame);
  memset(sp, 0, kFrame);
  sp[kReturnAddress] = (uint64_t)main;
  return sp;
}
#endif

static const size_t kStack = 256 * 1024;
static char* g_stacks;
static size_t g_n_stacks;
static void* g_scheduler_sp;

void reserve_stacks(size_t n_lanes) {
  if (n_lanes <= g_n_stacks) return;
  if (g_stacks) munmap(g_stacks, g_n_stacks * kStack);
  g_n_stacks = n_lanes;
  g_stacks = (char*)mmap(nullptr, n_lanes * kStack, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

void start_lane(MtlLane& lane, uint32_t index, void (*main)()) {
  lane.stk_lo = g_stacks + index * kStack;
  lane.stk_hi = lane.stk_lo + kStack;
  lane.sp = prepare((char*)((uintptr_t)lane.stk_hi & ~(uintptr_t)63), main);
}

void resume_lane(MtlLane& lane) { mtl_switch(&g_scheduler_sp, lane.sp); }

void leave_lane(MtlLane& lane) { mtl_switch(&lane.sp, g_scheduler_sp); }
