// Every load and store of a kernel: is it inside a buffer, and is it ordered after those of others?
//
// Device buffers stand in one arena with guards around them; threadgroup variables stand in an ELF
// section of the kernel's library, each followed by a red zone. All other addresses belong to a
// lane's stack or to constants, and are not watched here.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>

#include "shadow.h"

// ---------------------------------------------------------------- state
struct Region {
  char *lo, *hi;
  const char* name;
  uint32_t esz;
  bool is_output, is_filled;
  Shadow* shadow;     // of outputs only: inputs are only read
  uint64_t rd, wr;    // bytes
  uint8_t* touched;   // a bit for every four bytes
};

struct TgVariable {
  char *lo, *hi;
  const char* name;
  uint32_t esz;
};

static const size_t kSlot = 65536;  // a slot of the arena belongs to one buffer, or to a guard
static const uint8_t kGuard = 255;
static const size_t kMaxGuard = 64u << 20;
static const int kMaxRegions = 64;
static const size_t kAppleTgMemory = 32768;

static Region g_regions[kMaxRegions];
static int g_n_regions;
static char *g_arena, *g_arena_end;
static uint8_t* g_slots;

extern "C" char __start_mtl_tg[] __attribute__((weak)), __stop_mtl_tg[] __attribute__((weak));
static char* g_tg;
static size_t g_tg_size;
static Shadow* g_tg_shadow;
static std::vector<TgVariable> g_tg_variables;

uint64_t g_counts[MC_END];

extern "C" void mtl_count(int counter, uint64_t n) { g_counts[counter] += n; }

// ---------------------------------------------------------------- bounds
// Names the variable that an address out of bounds is nearest to, and the index it would be.
static std::string nearest(char* p, bool is_device) {
  std::string best = "no buffer";
  long best_distance = 1L << 62;
  auto consider = [&](char* lo, char* hi, const char* name, uint32_t esz) {
    long distance = p < lo ? lo - p : p >= hi ? p - hi + 1 : 0;
    if (distance >= best_distance) return;
    best_distance = distance;
    long index = p >= lo ? (p - lo) / esz : -((lo - p + esz - 1) / (long)esz);
    best = text_of("%s[%ld] (it has %ld elements of %u bytes)", name, index,
                   (long)((hi - lo) / esz), esz);
  };
  if (is_device) {
    for (int i = 0; i < g_n_regions; i++) {
      Region& r = g_regions[i];
      consider(r.lo, r.hi, r.name, r.esz);
    }
  } else {
    for (auto& v : g_tg_variables) consider(v.lo, v.hi, v.name, v.esz);
  }
  return best;
}

static void report_out_of_bounds(bool is_device, bool is_write, char* p, size_t n, const void* pc) {
  std::string text =
      text_of("%zu-byte %s out of bounds in %s memory: %s [%s]", n, is_write ? "write" : "read",
              is_device ? "device" : "threadgroup", nearest(p, is_device).c_str(),
              current_lane().c_str());
  Place place;
  place.pc = (uint64_t)pc;
  add_finding("out-of-bounds", place, text);
}

int region_at(uintptr_t address) { return g_slots[((char*)address - g_arena) / kSlot]; }

static inline void access_device(char* p, size_t n, bool is_write, const void* pc, bool is_atomic) {
  int id = region_at((uintptr_t)p);
  Region* r = id == kGuard ? nullptr : &g_regions[id];
  if (!r || p < r->lo || p + n > r->hi) {
    report_out_of_bounds(true, is_write, p, n, pc);
    return;
  }
  (is_write ? r->wr : r->rd) += n;
  size_t first = p - r->lo, last = first + n - 1;
  for (size_t i = first / 4; i <= last / 4; i++) r->touched[i / 8] |= 1 << (i % 8);
  if (g_profiled) note_access(pc, (uintptr_t)p, n, is_write);
  if (is_write && !r->is_output) {
    Place place;
    place.pc = (uint64_t)pc;
    add_finding("write-to-input", place,
                text_of("write to input %s [%s]", r->name, current_lane().c_str()));
    return;
  }
  if (!r->shadow) return;
  if (is_atomic) {
    r->shadow[first / r->esz].w_lane = mtl_cur->tid + 1;
    r->shadow[first / r->esz].w_tg = kAtomic;
    return;
  }
  uint32_t te = g_tg_epoch[0], se = g_sg_epoch[0][mtl_cur->sg];
  Access a{is_write, false, r->is_filled, r->name, 0, pc, te, se};
  for (a.index = first / r->esz; a.index <= last / r->esz; a.index++) visit(r->shadow[a.index], a);
}

static inline void access_threadgroup(char* p, size_t n, bool is_write, const void* pc,
                                      bool is_atomic) {
  TgVariable* v = nullptr;
  for (auto& candidate : g_tg_variables)
    if (p >= candidate.lo && p < candidate.hi) v = &candidate;
  if (!v || p + n > v->hi) {
    report_out_of_bounds(false, is_write, p, n, pc);
    return;
  }
  g_counts[is_write ? MC_TG_WRITTEN : MC_TG_READ] += n;
  if (is_atomic) return;
  uint32_t te = g_tg_epoch[1], se = g_sg_epoch[1][mtl_cur->sg];
  Access a{is_write, true, false, v->name, 0, pc, te, se};
  for (size_t i = 0; i < n; i++) {
    a.index = (p + i - v->lo) / v->esz;
    visit(g_tg_shadow[p - g_tg + i], a);
  }
}

static inline void access(char* p, size_t n, bool is_write, const void* pc,
                          bool is_atomic = false) {
  if (p >= g_arena && p < g_arena_end) {
    access_device(p, n, is_write, pc, is_atomic);
  } else if (p >= g_tg && p < g_tg + g_tg_size) {
    access_threadgroup(p, n, is_write, pc, is_atomic);
  }
}

// ---------------------------------------------------------------- what instrumented code calls
// Clang's thread sanitizer puts these calls at every load and store; they are linked here instead.
static void access_range(const void* p, size_t n, bool is_write, const void* pc) {
  for (size_t i = 0; i < n; i += 4) access((char*)p + i, std::min<size_t>(4, n - i), is_write, pc);
}

#define CALLER __builtin_return_address(0)
#define IN_KERNEL __builtin_expect(mtl_cur != nullptr, 1)

extern "C" {
#define HANDLER(name, n, is_write)                          \
  void name##n(void* p) {                                   \
    if (IN_KERNEL) access((char*)p, n, is_write, CALLER);   \
  }
#define HANDLERS(n)                             \
  HANDLER(__tsan_read, n, false)                \
  HANDLER(__tsan_write, n, true)                \
  HANDLER(__tsan_unaligned_read, n, false)      \
  HANDLER(__tsan_unaligned_write, n, true)      \
  void __tsan_read_write##n(void* p) {          \
    if (!IN_KERNEL) return;                     \
    access((char*)p, n, false, CALLER);         \
    access((char*)p, n, true, CALLER);          \
  }
HANDLERS(1)
HANDLERS(2)
HANDLERS(4)
HANDLERS(8)
HANDLERS(16)

void* __tsan_memcpy(void* to, const void* from, size_t n) {
  if (IN_KERNEL) access_range(from, n, false, CALLER);
  if (IN_KERNEL) access_range(to, n, true, CALLER);
  return memcpy(to, from, n);
}
void* __tsan_memmove(void* to, const void* from, size_t n) {
  if (IN_KERNEL) access_range(from, n, false, CALLER);
  if (IN_KERNEL) access_range(to, n, true, CALLER);
  return memmove(to, from, n);
}
void* __tsan_memset(void* to, int value, size_t n) {
  if (IN_KERNEL) access_range(to, n, true, CALLER);
  return memset(to, value, n);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

void mtl_atomic_touch(const void* p, size_t n, const void* pc) {
  g_counts[MC_ATOMICS]++;
  access((char*)p, n, true, pc, true);
}

void mtl_tg_register(const char* name, void* p, size_t n, size_t esz) {
  for (auto& v : g_tg_variables)
    if (v.lo == p) return;
  g_tg_variables.push_back({(char*)p, (char*)p + n, name, (uint32_t)esz});
}
}

// ---------------------------------------------------------------- a run's memory
// Each buffer stands in slots of its own between guards as long as itself, up to a limit: an index
// that is wrong by a factor of two, or in sign, ends in a guard.
static size_t lay_out(const BufDesc* buffers, int n, std::vector<size_t>& starts) {
  size_t total = kSlot * 16;
  for (int i = 0; i < n; i++) {
    size_t size = (buffers[i].nbytes + buffers[i].offset + kSlot - 1) / kSlot * kSlot;
    size_t guard = std::min(size, kMaxGuard) + kSlot * 4;
    starts.push_back(total + guard);
    total += guard + size + guard;
  }
  return total + kSlot * 16;
}

static void place_buffer(const BufDesc& buffer, int i, size_t start, bool is_checked) {
  Region& r = g_regions[i];
  r = {};
  r.lo = g_arena + start + buffer.offset;
  r.hi = r.lo + buffer.nbytes;
  r.name = buffer.name;
  r.esz = buffer.esz;
  r.is_output = buffer.role & 1;
  r.is_filled = buffer.role & 2;
  memcpy(r.lo, buffer.host, buffer.nbytes);
  size_t end = start + buffer.offset + buffer.nbytes;
  for (size_t slot = start / kSlot; slot <= end / kSlot; slot++) g_slots[slot] = i;
  r.touched = (uint8_t*)calloc(buffer.nbytes / 32 + 2, 1);
  if (r.is_output && is_checked)
    r.shadow = (Shadow*)calloc(buffer.nbytes / r.esz + 1, sizeof(Shadow));
}

void open_memory(const BufDesc* buffers, int n, bool is_checked, std::vector<void*>& pointers) {
  std::vector<size_t> starts;
  size_t total = lay_out(buffers, n, starts);
  // Guards cost addresses only: pages that nobody touches are never there.
  g_arena = (char*)mmap(nullptr, total, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  g_arena_end = g_arena + total;
  g_slots = (uint8_t*)malloc(total / kSlot + 1);
  memset(g_slots, kGuard, total / kSlot + 1);
  g_n_regions = n;
  for (int i = 0; i < n; i++) {
    place_buffer(buffers[i], i, starts[i], is_checked);
    pointers.push_back(g_regions[i].lo);
  }
  g_tg = __start_mtl_tg;
  g_tg_size = g_tg ? __stop_mtl_tg - __start_mtl_tg : 0;
  g_tg_shadow = (Shadow*)calloc(g_tg_size + 1, sizeof(Shadow));
  g_tg_variables.clear();
  g_tg_number = 0;
  memset(g_counts, 0, sizeof g_counts);
}

void start_threadgroup_memory(uint32_t n_simdgroups) {
  g_tg_number++;
  for (int space = 0; space < 2; space++) {
    g_tg_epoch[space] = 0;
    g_sg_epoch[space].assign(n_simdgroups, 0);
  }
  if (g_tg_size) memset(g_tg, 0xFF, g_tg_size);  // NaN in every float format
}

static void report_unwritten(const Region& r) {
  uint64_t n_missing = 0, first = 0, n = (r.hi - r.lo) / r.esz;
  for (uint64_t i = 0; i < n; i++) {
    if (r.shadow[i].w_lane) continue;
    if (!n_missing++) first = i;
  }
  if (!n_missing) return;
  add_finding("output-not-written", {},
              text_of("%llu elements of %s were never written, the first is [%llu]",
                      (unsigned long long)n_missing, r.name, (unsigned long long)first));
}

// Copies the outputs to the host, and reports what can only be told at the end of a complete run.
void close_memory(const BufDesc* buffers, bool is_complete) {
  size_t tg_bytes = 0;
  for (auto& v : g_tg_variables) tg_bytes += v.hi - v.lo;
  g_counts[MC_TG_BYTES] = tg_bytes;
  if (tg_bytes > kAppleTgMemory)
    add_finding("threadgroup-memory", {},
                text_of("threadgroup variables need %zu bytes; Apple GPUs give %zu", tg_bytes,
                        kAppleTgMemory));
  for (int i = 0; i < g_n_regions; i++) {
    Region& r = g_regions[i];
    if (!r.is_output) continue;
    if (r.shadow && !r.is_filled && is_complete) report_unwritten(r);
    memcpy(buffers[i].host, r.lo, buffers[i].nbytes);
  }
}

extern "C" void mtl_get_counts(uint64_t* counts) { memcpy(counts, g_counts, sizeof g_counts); }

// Bytes of a buffer that were read, written, and touched at all.
extern "C" void mtl_get_region(int i, uint64_t* traffic) {
  Region& r = g_regions[i];
  uint64_t n_words = 0;
  for (size_t k = 0; k < (size_t)(r.hi - r.lo) / 32 + 1; k++)
    n_words += __builtin_popcount(r.touched[k]);
  traffic[0] = r.rd;
  traffic[1] = r.wr;
  traffic[2] = n_words * 4;
}

extern "C" void mtl_cleanup() {
  for (int i = 0; i < g_n_regions; i++) {
    free(g_regions[i].shadow);
    free(g_regions[i].touched);
  }
  g_n_regions = 0;
  if (g_arena) munmap(g_arena, g_arena_end - g_arena);
  g_arena = g_arena_end = nullptr;
  free(g_slots);
  g_slots = nullptr;
  free(g_tg_shadow);
  g_tg_shadow = nullptr;
}
