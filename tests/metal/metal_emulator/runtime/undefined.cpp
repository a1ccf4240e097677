// What Clang's undefined-behaviour sanitizer calls; the driver turns on only these checks. It knows
// the source line itself. A lane does not go on where the next instruction would do harm.
#include "runtime.h"

struct SourceLocation {
  const char* file;
  uint32_t line, column;
};
struct IndexData {
  SourceLocation at;
  void *array_type, *index_type;
};
struct AlignmentData {
  SourceLocation at;
  void* type;
  uint8_t log_alignment, kind;
};

extern "C" {
void __ubsan_handle_out_of_bounds(IndexData* data, uintptr_t index) {
  mtl_report("array-index", data->at.line, "index %ld is outside a fixed-size array", (long)index);
  abort_lane();
}
void __ubsan_handle_shift_out_of_bounds(SourceLocation* at, uintptr_t, uintptr_t shift) {
  mtl_report("bad-shift", at->line, "shift by %ld or of a negative value", (long)shift);
}
void __ubsan_handle_divrem_overflow(SourceLocation* at, uintptr_t, uintptr_t) {
  mtl_report("divide-by-zero", at->line, "integer division by zero or overflow");
  abort_lane();
}
void __ubsan_handle_type_mismatch_v1(AlignmentData* data, uintptr_t p) {
  mtl_report("misaligned", data->at.line, "address %s to a %d-byte alignment (address mod 16 = %d)",
             p ? "is not aligned" : "is null, not aligned", 1 << data->log_alignment,
             (int)(p % 16));
}
}
