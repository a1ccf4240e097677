// Runs a grid: the lanes of a SIMD-group take turns up to the next collective, the SIMD-groups of a
// threadgroup up to the next barrier of the threadgroup, and threadgroups follow each other.
#include <signal.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "runtime.h"

static const uint32_t kLanes = 32;  // of a SIMD-group

extern "C" {
MtlLane* mtl_cur;
MtlGroup mtl_grp;
}
bool g_fatal;
static std::vector<MtlLane> g_lanes;
static void (*g_entry)(void**);
static void** g_buffers;
static uint32_t g_seed;

// ---------------------------------------------------------------- a lane
extern "C" void mtl_sync(MtlKind kind, const char* op, uint32_t site, uint32_t flags, void* slot,
                         MtlCombine combine, void* aux) {
  MtlLane& lane = *mtl_cur;
  lane.kind = kind;
  lane.op = op;
  lane.site = site;
  lane.flags = flags;
  lane.slot = slot;
  lane.combine = combine;
  lane.aux = aux;
  lane.nsync++;
  lane.ntg += kind == MK_TGBAR;
  leave_lane(lane);
}

static void lane_main() {
  g_entry(g_buffers);
  mtl_cur->done = true;
  mtl_cur->kind = MK_DONE;
  leave_lane(*mtl_cur);
  __builtin_trap();
}

void abort_lane() {
  g_fatal = true;
  mtl_cur->kind = MK_NONE;
  leave_lane(*mtl_cur);
}

static uint32_t line_of(const MtlLane& lane) { return lane.site >> 10; }

// ---------------------------------------------------------------- the order of turns
static uint32_t next_random() {  // xorshift: the same seed gives the same order everywhere
  g_seed ^= g_seed << 13;
  g_seed ^= g_seed >> 17;
  g_seed ^= g_seed << 5;
  return g_seed;
}

static std::vector<uint32_t> turns(uint32_t n) {
  std::vector<uint32_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  if (g_seed)
    for (uint32_t i = n; i > 1; i--) std::swap(order[i - 1], order[next_random() % i]);
  return order;
}

// ---------------------------------------------------------------- a SIMD-group
// Says which lanes wait where, with the lines of the first two places.
static void report_divergence(uint32_t sg, uint32_t n) {
  std::map<std::string, uint32_t> lanes_at, line_at;
  for (uint32_t i = 0; i < n; i++) {
    MtlLane& lane = g_lanes[sg * kLanes + i];
    std::string place =
        lane.done ? "returned"
                  : text_of("at %s line %u (sync number %u)", lane.op, line_of(lane), lane.nsync);
    lanes_at[place] |= 1u << i;
    if (!lane.done) line_at[place] = line_of(lane);
  }
  std::string text;
  Place where;
  for (auto& [place, lanes] : lanes_at) {
    text += text_of("%slanes %08x %s", text.empty() ? "" : "; ", lanes, place.c_str());
    if (!line_at.count(place)) continue;
    (where.line ? where.other_line : where.line) = line_at[place];
  }
  text += text_of(" [threadgroup (%u,%u,%u) simdgroup %u]", mtl_grp.tg_pos.x, mtl_grp.tg_pos.y,
                  mtl_grp.tg_pos.z, sg);
  add_finding("divergent-collective", where, text);
  g_fatal = true;
}

static bool wait_together(const MtlLane& a, const MtlLane& b) {
  return a.kind == b.kind && a.site == b.site && a.combine == b.combine && a.nsync == b.nsync;
}

// Lets each lane run up to its next wait; returns whether none met something fatal.
static bool step_lanes(MtlLane* lanes, uint32_t n) {
  for (uint32_t i : turns(n)) {
    MtlLane& lane = lanes[i];
    if (lane.done) continue;
    mtl_cur = &lane;
    lane.kind = MK_NONE;
    resume_lane(lane);
    mtl_cur = nullptr;
    if (g_fatal) return false;
  }
  return true;
}

enum Outcome { FINISHED, AT_BARRIER, BROKEN };

// Runs a SIMD-group until all its lanes wait at a threadgroup barrier or have returned.
static Outcome run_simdgroup(uint32_t sg) {
  uint32_t n = std::min(kLanes, mtl_grp.nthreads - sg * kLanes);
  MtlLane* lanes = &g_lanes[sg * kLanes];
  for (;;) {
    if (!step_lanes(lanes, n)) return BROKEN;
    if (g_profiled) end_traffic_step(sg);
    MtlLane* first = nullptr;
    uint32_t n_live = 0, active = 0;
    bool is_together = true;
    for (uint32_t i = 0; i < n; i++) {
      if (lanes[i].done) continue;
      if (!first) first = &lanes[i];
      is_together &= wait_together(*first, lanes[i]);
      active |= 1u << i;
      n_live++;
    }
    if (!first) return FINISHED;
    if (!is_together || n_live != n) {
      report_divergence(sg, n);
      return BROKEN;
    }
    if (first->kind == MK_TGBAR) return AT_BARRIER;
    if (first->kind == MK_SGBAR) {
      mtl_count(MC_SG_BARRIERS, 1);
      order_simdgroup(sg, first->flags);
      continue;
    }
    mtl_count(MC_SIMD_OPS, 1);
    void* slots[kLanes] = {};
    for (uint32_t i = 0; i < n; i++) slots[i] = lanes[i].slot;
    first->combine(slots, active, first->aux);
  }
}

// ---------------------------------------------------------------- a threadgroup
static void start_threadgroup(MtlU3 at, MtlU3 full) {
  const MtlGroup& g = mtl_grp;
  start_threadgroup_memory(g.nsg);
  start_threadgroup_traffic(g.nsg);
  for (uint32_t i = 0; i < g.nthreads; i++) {
    MtlLane& lane = g_lanes[i];
    lane = {};
    lane.tid = i;
    lane.lane = i % kLanes;
    lane.sg = i / kLanes;
    lane.pos_tg = {i % g.tg_size.x, i / g.tg_size.x % g.tg_size.y, i / g.tg_size.x / g.tg_size.y};
    lane.pos_grid = {at.x * full.x + lane.pos_tg.x, at.y * full.y + lane.pos_tg.y,
                     at.z * full.z + lane.pos_tg.z};
    start_lane(lane, i, lane_main);
  }
}

static void report_barrier(const std::vector<Outcome>& outcomes, uint32_t line) {
  std::string text = "threadgroup_barrier not reached by every SIMD-group:";
  for (uint32_t sg = 0; sg < mtl_grp.nsg && text.size() < 400; sg++) {
    text += outcomes[sg] == FINISHED
                ? text_of(" simdgroup %u returned;", sg)
                : text_of(" simdgroup %u at line %u;", sg, line_of(g_lanes[sg * kLanes]));
  }
  Place place;
  place.line = line;
  add_finding("divergent-barrier", place, text);
  g_fatal = true;
}

// Passes the barrier that all SIMD-groups wait at; returns false if they do not wait at the same.
static bool pass_barrier(const std::vector<Outcome>& outcomes) {
  MtlLane* first = nullptr;
  bool is_together = true;
  for (uint32_t sg = 0; sg < mtl_grp.nsg; sg++) {
    MtlLane& lane = g_lanes[sg * kLanes];
    if (outcomes[sg] == FINISHED) {
      is_together = false;
    } else if (!first) {
      first = &lane;
    } else {
      is_together &= lane.site == first->site && lane.ntg == first->ntg;
    }
  }
  if (!is_together) {
    report_barrier(outcomes, line_of(*first));
    return false;
  }
  mtl_count(MC_TG_BARRIERS, 1);
  order_threadgroup(first->flags);
  return true;
}

static void run_threadgroup() {
  std::vector<Outcome> outcomes(mtl_grp.nsg);
  do {
    for (uint32_t sg : turns(mtl_grp.nsg)) {
      outcomes[sg] = run_simdgroup(sg);
      if (outcomes[sg] == BROKEN) return;
    }
    if (std::count(outcomes.begin(), outcomes.end(), FINISHED) == (int)mtl_grp.nsg) return;
  } while (pass_barrier(outcomes));
}

// ---------------------------------------------------------------- crashes
static const int kSignals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
static const int kExit = 99;

static uint64_t program_counter(void* context) {
#if defined(__x86_64__)
  return ((ucontext_t*)context)->uc_mcontext.gregs[REG_RIP];
#elif defined(__aarch64__)
  return ((ucontext_t*)context)->uc_mcontext.pc;
#endif
}

// A lane that crashes is left as it is, and the run ends with a finding.
static void on_crash(int, siginfo_t* info, void* context) {
  Place place;
  place.pc = program_counter(context) + 1;  // the other addresses are those of next instructions
  add_finding("crash", place,
              text_of("access to an unmapped address, or undefined behaviour the compiler removed, "
                      "at %p [%s]",
                      info->si_addr, current_lane().c_str()));
  if (!mtl_cur) _exit(kExit);
  sigset_t signals;  // they are blocked in a handler, and this one is never returned from
  sigemptyset(&signals);
  for (int signal : kSignals) sigaddset(&signals, signal);
  sigprocmask(SIG_UNBLOCK, &signals, nullptr);
  abort_lane();
}

// Handles crashes while it exists.
struct CrashHandlers {
  struct sigaction before[4];
  CrashHandlers() {
    static char stack[65536];  // a lane's own may be what is broken
    stack_t alternative = {};
    alternative.ss_sp = stack;
    alternative.ss_size = sizeof stack;
    sigaltstack(&alternative, nullptr);
    struct sigaction action = {};
    action.sa_sigaction = on_crash;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 4; i++) sigaction(kSignals[i], &action, &before[i]);
  }
  ~CrashHandlers() {
    for (int i = 0; i < 4; i++) sigaction(kSignals[i], &before[i], nullptr);
  }
};

// ---------------------------------------------------------------- a grid
// Runs `max_tg` threadgroups from number `first_tg` on. As with Metal's dispatchThreads, those at
// the upper edges of the grid are ragged.
static uint32_t run_grid(MtlU3 grid, MtlU3 tg, uint32_t first_tg, uint32_t max_tg) {
  MtlU3 full = {std::min(tg.x, grid.x), std::min(tg.y, grid.y), std::min(tg.z, grid.z)};
  MtlU3 n = {(grid.x + full.x - 1) / full.x, (grid.y + full.y - 1) / full.y,
             (grid.z + full.z - 1) / full.z};
  uint32_t n_lanes = full.x * full.y * full.z;
  g_lanes.assign((n_lanes + kLanes - 1) / kLanes * kLanes, {});
  reserve_stacks(g_lanes.size());
  uint32_t total = n.x * n.y * n.z, n_done = 0;
  for (uint32_t i = first_tg; i < total && !g_fatal && n_done < max_tg; i++, n_done++) {
    MtlU3 at = {i % n.x, i / n.x % n.y, i / n.x / n.y};
    MtlU3 size = {std::min(full.x, grid.x - at.x * full.x),
                  std::min(full.y, grid.y - at.y * full.y),
                  std::min(full.z, grid.z - at.z * full.z)};
    uint32_t threads = size.x * size.y * size.z;
    mtl_grp = {at, n, size, grid, full, (threads + kLanes - 1) / kLanes, threads};
    start_threadgroup(at, full);
    run_threadgroup();
  }
  mtl_count(MC_THREADGROUPS, n_done);
  return total - n_done;
}

extern "C" void mtl_run(void (*entry)(void**), const BufDesc* buffers, int n_buffers,
                        const uint32_t grid[3], const uint32_t tg[3], uint32_t seed, int is_checked,
                        int is_profiled, uint32_t first_tg, uint32_t max_tg) {
  std::vector<void*> pointers;
  g_fatal = false;
  g_seed = seed;
  g_entry = entry;
  clear_findings();
  clear_traffic(is_profiled);
  open_memory(buffers, n_buffers, is_checked, pointers);
  g_buffers = pointers.data();
  CrashHandlers handlers;
  uint32_t n_left = run_grid({grid[0], grid[1], grid[2]}, {tg[0], tg[1], tg[2]}, first_tg, max_tg);
  close_memory(buffers, !g_fatal && n_left == 0);
}
