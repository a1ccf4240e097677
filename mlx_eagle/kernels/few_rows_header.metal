// Functions of the quantized product of a few rows; few_rows.metal is the kernel's body.

// The loops that index arrays of registers have constant bounds: unless all of them are unrolled,
// the arrays are spilled to memory.
#define UNROLL _Pragma("clang loop unroll(full)")

// A code put into the low bits of these numbers is the offset plus the code, without a conversion.
template <typename T> struct Magic {};
template <> struct Magic<float16_t> {
  static constexpr constant uint bits = 0x64006400u;
  static constexpr constant float offset = 1024.0f;
};
template <> struct Magic<bfloat16_t> {
  static constexpr constant uint bits = 0x43004300u;
  static constexpr constant float offset = 128.0f;
};

// Read COUNT packed words in as few loads as there can be; the caller aligns them.
template <int COUNT> inline void load_words(const device uint* from, thread uint* to) {
  if (COUNT >= 4) {
    UNROLL for (int i = 0; i + 3 < COUNT; i += 4) {
      const uint4 four = *(const device uint4*)(from + i);
      UNROLL for (int u = 0; u < 4; ++u) to[i + u] = four[u];
    }
  } else if (COUNT == 2) {
    const uint2 two = *(const device uint2*)from;
    to[0] = two.x;
    to[COUNT - 1] = two.y;
  } else {
    to[0] = *from;
  }
}
