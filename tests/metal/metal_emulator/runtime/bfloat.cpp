// Conversions to bfloat16, round to nearest even: libgcc before version 13 lacks them.
#include <stdint.h>

static const uint32_t kInfinity = 0x7f800000;

extern "C" __bf16 __truncsfbf2(float value) {
  uint32_t bits = __builtin_bit_cast(uint32_t, value);
  bool is_nan = (bits & 0x7fffffff) > kInfinity;
  uint32_t half_below_even = 0x7fff + ((bits >> 16) & 1);
  uint16_t upper = is_nan ? (bits >> 16) | 0x40 : (bits + half_below_even) >> 16;
  return __builtin_bit_cast(__bf16, upper);
}
extern "C" __bf16 __truncdfbf2(double value) { return __truncsfbf2((float)value); }
