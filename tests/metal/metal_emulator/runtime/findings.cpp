// The log of findings.
#include <stdarg.h>
#include <stdio.h>

#include <map>

#include "runtime.h"

struct Finding {
  std::string kind, text;
  Place place;
  uint64_t count;
};

static const size_t kMaxFindings = 64;  // different ones; a broken kernel has many of each
static std::vector<Finding> g_findings;
static std::map<std::string, size_t> g_index;

std::string text_of(const char* format, ...) {
  char text[400];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return text;
}

void clear_findings() {
  g_findings.clear();
  g_index.clear();
}

void add_finding(const char* kind, Place at, const std::string& text) {
  std::string key =
      text_of("%s|%lx|%lx|%u|%u", kind, (long)at.pc, (long)at.other_pc, at.line, at.other_line);
  auto known = g_index.find(key);
  if (known != g_index.end()) {
    g_findings[known->second].count++;
  } else if (g_findings.size() < kMaxFindings) {
    g_index[key] = g_findings.size();
    g_findings.push_back({kind, text, at, 1});
  }
}

std::string current_lane() {
  if (!mtl_cur) return "host";
  return text_of("threadgroup (%u,%u,%u) simdgroup %u lane %u", mtl_grp.tg_pos.x, mtl_grp.tg_pos.y,
                 mtl_grp.tg_pos.z, mtl_cur->sg, mtl_cur->lane);
}

extern "C" void mtl_report(const char* kind, uint32_t line, const char* format, ...) {
  char text[400];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  Place place;
  place.line = line;
  add_finding(kind, place, std::string(text) + " [" + current_lane() + "]");
}

// Returns whether there is an i-th finding, and copies it.
extern "C" int mtl_get_report(int i, char* kind, char* text, uint64_t* pcs, uint32_t* lines,
                              uint64_t* count) {
  if (i >= (int)g_findings.size()) return 0;
  Finding& finding = g_findings[i];
  snprintf(kind, 64, "%s", finding.kind.c_str());
  snprintf(text, 1024, "%s", finding.text.c_str());
  pcs[0] = finding.place.pc;
  pcs[1] = finding.place.other_pc;
  lines[0] = finding.place.line;
  lines[1] = finding.place.other_line;
  *count = finding.count;
  return 1;
}
