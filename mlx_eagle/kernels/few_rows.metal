// The first line of the body is replaced by the constants and the pointers of this launch.
// y[m][n] = sum over k of x[m][k] * (scale * code[n][k] + bias), for up to 8 * RT rows m.
// One product of 8x8 matrices is C[n][m] += A[n][k] B[k][m] with A = 8 rows of codes and
// B = 8 rows of activations. Inside a group the order of k is free as long as A and B agree, so
// lanes take the k whose codes stand in the words that they hold, and nothing is staged in between.
constexpr int PER_WORD = 32 / BITS;        // codes in a word
constexpr int STEPS = PER_WORD / 2;        // 8x8 products for 4 words of each row of codes
constexpr int WORDS = GROUP / 4 / PER_WORD;  // words of a group that a lane holds of one row
constexpr int GROUPS = K / GROUP;
constexpr int ROW_WORDS = K / PER_WORD;
constexpr uint CODE = (1u << BITS) - 1;
constexpr uint TWO_CODES = CODE | (CODE << 16);
using T2 = vec<T, 2>;
using TX = vec<T, STEPS>;
const int lane = int(thread_index_in_simdgroup);
const int split = int(simdgroup_index_in_threadgroup);
const int fragment_row = ((lane >> 4) << 2) | ((lane >> 1) & 3);       // of the lane's two elements
const int fragment_column = (((lane >> 3) & 1) << 2) | ((lane & 1) << 1);  // of the first of them
const int M = x_shape[1];
const int word = fragment_column >> 1;     // which quarter of a group this lane reads, in A
const int first_k = PER_WORD * WORDS * (fragment_row >> 1) + STEPS * (fragment_row & 1);  // in B

const device uint* words[NT];
int row_of_codes[NT];
UNROLL for (int t = 0; t < NT; ++t) {
  row_of_codes[t] = min(n0 + 8 * (t % NA) + fragment_row, N - 1);
  words[t] = (t < NA ? w_a : w_b) + size_t(row_of_codes[t]) * ROW_WORDS + WORDS * word;
}
const device T* inputs[RT][2];
UNROLL for (int r = 0; r < RT; ++r)
  UNROLL for (int e = 0; e < 2; ++e)
    inputs[r][e] = x + size_t(min(8 * r + fragment_column + e, M - 1)) * K + first_k;

float total[RT][NT][2];
UNROLL for (int r = 0; r < RT; ++r)
  UNROLL for (int t = 0; t < NT; ++t) { total[r][t][0] = 0.0f; total[r][t][1] = 0.0f; }

uint ahead[NT][WORDS];                     // the next group's words, while this group is multiplied
UNROLL for (int t = 0; t < NT; ++t)
  load_words<WORDS>(words[t] + min(split, GROUPS - 1) * (GROUP / PER_WORD), ahead[t]);
for (int g = split; g < GROUPS; g += SPLITS) {
  simdgroup_matrix<float, 8, 8> product[RT][NT];
  float sum[RT][2];                        // of the group's activations, for the biases
  UNROLL for (int r = 0; r < RT; ++r) {
    sum[r][0] = 0.0f;
    sum[r][1] = 0.0f;
    UNROLL for (int t = 0; t < NT; ++t)
      product[r][t] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  }
  uint packed[NT][WORDS];
  UNROLL for (int t = 0; t < NT; ++t) {
    UNROLL for (int u = 0; u < WORDS; ++u) packed[t][u] = ahead[t][u];
    load_words<WORDS>(words[t] + min(g + SPLITS, GROUPS - 1) * (GROUP / PER_WORD), ahead[t]);
  }
  UNROLL for (int u = 0; u < WORDS; ++u) {
    TX values[RT][2];
    UNROLL for (int r = 0; r < RT; ++r)
      UNROLL for (int e = 0; e < 2; ++e) {
        values[r][e] = *(const device TX*)(inputs[r][e] + g * GROUP + PER_WORD * u);
        UNROLL for (int j = 0; j < STEPS; ++j) sum[r][e] += float(values[r][e][j]);
      }
    UNROLL for (int j = 0; j < STEPS; ++j) {
      // Codes that stay where they are in their word are 2^(BITS j) too large; this is exact.
      const float smaller = IN_PLACE ? as_type<float>(uint(127 - BITS * j) << 23) : 1.0f;
      simdgroup_matrix<F, 8, 8> b[RT];
      UNROLL for (int r = 0; r < RT; ++r)
        UNROLL for (int e = 0; e < 2; ++e)
          b[r].thread_elements()[e] = IN_PLACE ? F(float(values[r][e][j]) * smaller) : F(values[r][e][j]);
      UNROLL for (int t = 0; t < NT; ++t) {
        simdgroup_matrix<F, 8, 8> a;
        if (IN_PLACE) {
          const ushort2 halves = as_type<ushort2>(packed[t][u] & (TWO_CODES << (BITS * j)));
          a.thread_elements()[0] = F(float(halves.x));
          a.thread_elements()[1] = F(float(halves.y));
        } else if (MAGIC) {
          T2 two = as_type<T2>(((packed[t][u] >> (BITS * j)) & TWO_CODES) | Magic<T>::bits);
          two -= T2(T(Magic<T>::offset));
          a.thread_elements()[0] = F(two[0]);
          a.thread_elements()[1] = F(two[1]);
        } else {
          const uint two = (packed[t][u] >> (BITS * j)) & TWO_CODES;
          a.thread_elements()[0] = F(float(two & CODE));
          a.thread_elements()[1] = F(float(two >> 16));
        }
        UNROLL for (int r = 0; r < RT; ++r)
          simdgroup_multiply_accumulate(product[r][t], a, b[r], product[r][t]);
      }
    }
  }
  UNROLL for (int r = 0; r < RT; ++r)
    UNROLL for (int e = 0; e < 2; ++e) {   // lanes that hold the same row of x: bits 1, 2 and 4
      sum[r][e] += simd_shuffle_xor(sum[r][e], 2);
      sum[r][e] += simd_shuffle_xor(sum[r][e], 4);
      sum[r][e] += simd_shuffle_xor(sum[r][e], 16);
    }
  UNROLL for (int t = 0; t < NT; ++t) {
    const float scale = float((t < NA ? s_a : s_b)[size_t(row_of_codes[t]) * GROUPS + g]);
    const float offset = float((t < NA ? o_a : o_b)[size_t(row_of_codes[t]) * GROUPS + g]);
    UNROLL for (int r = 0; r < RT; ++r)
      UNROLL for (int e = 0; e < 2; ++e)
        total[r][t][e] = fma(offset, sum[r][e], fma(scale, product[r][t].thread_elements()[e], total[r][t][e]));
  }
}

threadgroup float parts[SPLITS * RT * NT * 64];  // of the sum over k, one per SIMD-group
UNROLL for (int r = 0; r < RT; ++r)
  UNROLL for (int t = 0; t < NT; ++t)
    UNROLL for (int e = 0; e < 2; ++e)
      parts[((split * RT + r) * NT + t) * 64 + fragment_row * 8 + fragment_column + e] = total[r][t][e];
threadgroup_barrier(mem_flags::mem_threadgroup);
for (int i = split * 32 + lane; i < RT * NA * 64; i += SPLITS * 32) {
  const int n = i % (8 * NA), m = i / (8 * NA);  // neighbouring lanes write neighbouring n
  float first = 0.0f, second = 0.0f;
  for (int s = 0; s < SPLITS; ++s) {
    const int at = ((s * RT + m / 8) * NT + n / 8) * 64 + (n % 8) * 8 + m % 8;
    first += parts[at];
    if (NA < NT) second += parts[at + NA * 64];
  }
  if (m < M && n0 + n < N) {
    if (HAS_BIAS) first += float(added[n0 + n]);
    if (NA < NT) first = first / (1.0f + metal::exp(-first)) * second;  // SwiGLU
    y[size_t(m) * N + n0 + n] = T(first);
  }
}
