// Memory traffic of SIMD instructions: how many cache lines do the lanes' accesses touch together?
#include <algorithm>
#include <iterator>
#include <map>
#include <unordered_map>

#include "runtime.h"

struct LaneAccess {
  const void* pc;
  uintptr_t address;
  uint32_t lane, n;
  bool is_write;
};

// Totals of one load or store of the machine code, in one buffer.
struct Totals {
  uint64_t ops, lanes, bytes, lines, sectors;
  int region;
  bool is_write;
};

static const uintptr_t kSector = 32, kSectorsPerLine = 4;

bool g_profiled;
static std::vector<std::vector<LaneAccess>> g_accesses;  // of each SIMD-group since its last wait
static std::map<std::pair<const void*, int>, Totals> g_totals;

void clear_traffic(bool is_profiled) {
  g_profiled = is_profiled;
  g_totals.clear();
}

void start_threadgroup_traffic(uint32_t n_simdgroups) { g_accesses.resize(n_simdgroups); }

void note_access(const void* pc, uintptr_t address, size_t n, bool is_write) {
  g_accesses[mtl_cur->sg].push_back({pc, address, mtl_cur->lane, (uint32_t)n, is_write});
}

static uint64_t count_different(std::vector<uintptr_t>& values) {
  std::sort(values.begin(), values.end());
  return std::unique(values.begin(), values.end()) - values.begin();
}

static void add_instruction(const std::vector<const LaneAccess*>& lanes) {
  std::vector<uintptr_t> sectors, lines;
  uint64_t n_bytes = 0;
  for (auto* access : lanes) {
    n_bytes += access->n;
    uintptr_t last = (access->address + access->n - 1) / kSector;
    for (uintptr_t sector = access->address / kSector; sector <= last; sector++) {
      sectors.push_back(sector);
      lines.push_back(sector / kSectorsPerLine);
    }
  }
  int region = region_at(lanes[0]->address);
  Totals& totals = g_totals[{lanes[0]->pc, region}];
  totals.region = region;
  totals.is_write = lanes[0]->is_write;
  totals.ops++;
  totals.lanes += lanes.size();
  totals.bytes += n_bytes;
  totals.lines += count_different(lines);
  totals.sectors += count_different(sectors);
}

// Lanes run one after the other here: the n-th time that a lane comes to an instruction goes with
// the n-th time that the others do, as one SIMD instruction.
void end_traffic_step(uint32_t sg) {
  auto& accesses = g_accesses[sg];
  std::unordered_map<uint64_t, uint32_t> times;
  std::map<std::pair<const void*, uint32_t>, std::vector<const LaneAccess*>> instructions;
  for (auto& access : accesses) {
    uint64_t key = ((uint64_t)access.pc << 8) ^ access.lane;
    instructions[{access.pc, times[key]++}].push_back(&access);
  }
  for (auto& instruction : instructions) add_instruction(instruction.second);
  accesses.clear();
}

// Returns whether there is an i-th instruction, and copies its totals.
extern "C" int mtl_get_prof(int i, uint64_t* row) {
  if (i >= (int)g_totals.size()) return 0;
  auto entry = std::next(g_totals.begin(), i);
  const Totals& totals = entry->second;
  row[0] = (uint64_t)entry->first.first;
  row[1] = totals.region;
  row[2] = totals.is_write;
  row[3] = totals.ops;
  row[4] = totals.lanes;
  row[5] = totals.bytes;
  row[6] = totals.lines;
  row[7] = totals.sectors;
  return 1;
}
