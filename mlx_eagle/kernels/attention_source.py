"""The Metal source of attention for a few rows.

Names in capitals are constants and macros that `mlx_eagle.kernels.attention_text` puts before it: D
head_dim, N rows, G query heads per KV head, Q = N * G, QT tiles of 8 queries in a threadgroup, S
SIMD-groups, CT tiles of 8 columns that a SIMD-group owns, BITS of a number, GS numbers in a
quantization group, UNIT numbers of a key that 4 lanes load at once, SCALE the scale times log2(e).

How a SIMD-group of 32 lanes holds an 8x8 fragment: a lane has two adjacent columns `fn`, `fn + 1`
of one row `fm`. Sums over head_dim may run in any order, and columns of the output may be dealt out
in any order, so both are dealt out such that each lane loads adjacent numbers. 4 lanes share a row;
`part` says which of the 4 a lane is.
"""

HEADER = """
#define UNROLL _Pragma("clang loop unroll(full)")

// Adjacent 16-bit pieces of memory as 32-bit words. The row starts at a multiple of their size.
template <int PIECES> inline void load_pieces(const device ushort* from, thread uint* to) {
  if (PIECES == 1) {
    to[0] = *from;
  } else if (PIECES == 2) {
    to[0] = *(const device uint*)from;
  } else if (PIECES == 4) {
    uint2 words = *(const device uint2*)from;
    to[0] = words.x;
    to[1] = words.y;
  } else {
    UNROLL for (int i = 0; i < PIECES / 8; ++i) {
      uint4 words = ((const device uint4*)from)[i];
      UNROLL for (int j = 0; j < 4; ++j) to[4 * i + j] = words[j];
    }
  }
}
"""

# The bits of number i among the words that a lane loaded.
FIELD = "((words[(i) * BITS / 32] >> ((i) * BITS % 32)) & ((1u << BITS) - 1))"

PARTIAL = """
  // [Hk, splits, Q, D]: the sums of one split, and for each query its largest score and sum of
  // weights in [Hk, splits, Q, 2]. With one split: the attention.
  constexpr int KEYS = 8 * S;                   // keys in a block: 8 for each SIMD-group
  constexpr int LINE = KEYS + 4;                // stride of scores that avoids bank conflicts
  constexpr int QUERIES = 8 * QT;
  constexpr int RUN = UNIT / 4;                 // adjacent numbers of a key in a lane
  constexpr int UNITS = D / UNIT;
  constexpr int STEPS = UNIT / 8;
  constexpr int COLUMNS = 2 * CT;               // adjacent numbers of a value in a lane
  constexpr int ROUNDS = (QT + S - 1) / S;
  constexpr float MASKED = -3e38f;              // below LOWEST by so much that its weight is 0
  constexpr float LOWEST = -1e30f;
  using Fragment = simdgroup_matrix<float, 8, 8>;

  const int lane = int(thread_index_in_simdgroup);
  const int group = int(simdgroup_index_in_threadgroup);
  const int fm = ((lane >> 4) << 2) | ((lane >> 1) & 3);
  const int fn = (((lane >> 3) & 1) << 2) | ((lane & 1) << 1);
  const int part = fn >> 1;

  const int split = int(threadgroup_position_in_grid.x);
  const int splits = int(threadgroups_per_grid.x);
  const int head = int(threadgroup_position_in_grid.y);
  const int q0 = int(threadgroup_position_in_grid.z) * QUERIES;
  const int length = keys_shape[2];
  const int blocks = (length + KEYS - 1) / KEYS;
  const int begin = split * blocks / splits * KEYS;
  const int end = min(length, (split + 1) * blocks / splits * KEYS);

  const int column = group * 8 * CT + COLUMNS * part;   // this lane's first column of values

  // Strides in 16-bit pieces: a word of packed numbers has two.
  constexpr uint PIECES = BITS == 16 ? 1 : 2;
  const device ushort* key =
      (const device ushort*)keys + size_t(head) * size_t(keys_strides[1]) * PIECES;
  const device ushort* value =
      (const device ushort*)values + size_t(head) * size_t(values_strides[1]) * PIECES +
      column * BITS / 16;
  const uint key_stride = uint(keys_strides[2]) * PIECES;
  const uint value_stride = uint(values_strides[2]) * PIECES;

  threadgroup uint query[QUERIES * D / 2];      // in the order in which fragments read them
  threadgroup float score[QUERIES * LINE];      // a line of keys for each query
  threadgroup float factor[QUERIES];

  for (int i = group * 32 + lane; i < QUERIES * D; i += S * 32) {
    const int q = i / D, d = i % D, r = d % UNIT;
    const int row = 2 * (r / RUN) + (r & 1);    // of the fragment, for number d of a query
    const int step = d / UNIT * STEPS + r % RUN / 2;
    const int owner = ((row >> 2) << 4) | (((q >> 2) & 1) << 3) | ((row & 3) << 1) | ((q >> 1) & 1);
    const int from = min(q0 + q, Q - 1);
    const uint at = uint(head * G + from / N) * uint(queries_strides[1]) +
                    uint(from % N) * uint(queries_strides[2]) + uint(d) * uint(queries_strides[3]);
    ((threadgroup ushort*)query)[((step * QT + q / 8) * 32 + owner) * 2 + (q & 1)] =
        ((const device ushort*)queries)[at];
  }

  float largest[ROUNDS], total[ROUNDS];
  UNROLL for (int r = 0; r < ROUNDS; ++r) {
    largest[r] = LOWEST;
    total[r] = 0.0f;
  }
  Fragment sums[QT][CT];
  UNROLL for (int t = 0; t < QT; ++t)
    UNROLL for (int c = 0; c < CT; ++c)
      sums[t][c] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  for (int first = begin; first < end; first += KEYS) {
    // Scores of 8 keys with all queries: [key][query], so that keys are read along their rows.
    const bool has_keys = first + 8 * group < end;
    Fragment products[QT];
    UNROLL for (int t = 0; t < QT; ++t)
      products[t] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    if (has_keys) {
      const uint row = uint(min(first + 8 * group + fm, length - 1));
      uint loaded[UNITS][RUN * BITS / 32];
      const device ushort* from = key + row * key_stride + RUN * part * BITS / 16;
      UNROLL for (int u = 0; u < UNITS; ++u)    // all before the first product: they overlap
        load_pieces<RUN * BITS / 16>(from + u * UNIT * BITS / 16, loaded[u]);
      UNROLL for (int u = 0; u < UNITS; ++u) {
        const thread uint* words = loaded[u];
        KEY_SCALE(row, (u * UNIT + RUN * part) / GS)
        UNROLL for (int j = 0; j < STEPS; ++j) {
          Fragment a, b;
          a.thread_elements()[0] = NUMBER(FIELD(2 * j));
          a.thread_elements()[1] = NUMBER(FIELD(2 * j + 1));
          UNROLL for (int t = 0; t < QT; ++t) {
            const uint pair = query[((u * STEPS + j) * QT + t) * 32 + lane];
            b.thread_elements()[0] = FLOAT(pair & 0xFFFFu);
            b.thread_elements()[1] = FLOAT(pair >> 16);
            simdgroup_multiply_accumulate(products[t], a, b, products[t]);
          }
        }
      }
    }
    // The values of the whole block: under way while the weights are made.
    uint held[S][(COLUMNS * BITS + 31) / 32];
    UNROLL for (int k = 0; k < S; ++k)
      if (first + 8 * k < end) {
        const uint row = uint(min(first + 8 * k + fm, length - 1));
        load_pieces<COLUMNS * BITS / 16>(value + row * value_stride, held[k]);
      }

    threadgroup_barrier(mem_flags::mem_threadgroup);    // the last block's weights were read
    if (has_keys)
      UNROLL for (int t = 0; t < QT; ++t)
        UNROLL for (int e = 0; e < 2; ++e)
          score[(8 * t + fn + e) * LINE + 8 * group + fm] = products[t].thread_elements()[e];
    threadgroup_barrier(mem_flags::mem_threadgroup);

    // Weights: 4 lanes for each query.
    UNROLL for (int r = 0; r < ROUNDS; ++r) {
      const int tile = group + S * r;
      if (tile < QT) {
        const int q = 8 * tile + (lane >> 2);
        const int n = min(q0 + q, Q - 1) % N;
        threadgroup float* line = score + q * LINE;
        float weight[KEYS / 4];
        float top = largest[r];
        UNROLL for (int i = 0; i < KEYS / 4; ++i) {
          const int k = (lane & 3) + 4 * i;
          weight[i] = MASKED;
          if (first + k < end && VISIBLE(n, first + k)) weight[i] = line[k] * SCALE;
          top = max(top, weight[i]);
        }
        top = max(top, simd_shuffle_xor(top, 1));
        top = max(top, simd_shuffle_xor(top, 2));
        float sum = 0.0f;
        UNROLL for (int i = 0; i < KEYS / 4; ++i) {
          weight[i] = fast::exp2(weight[i] - top);
          sum += weight[i];
          line[(lane & 3) + 4 * i] = weight[i];
        }
        sum += simd_shuffle_xor(sum, 1);
        sum += simd_shuffle_xor(sum, 2);
        const float kept = fast::exp2(largest[r] - top);
        total[r] = total[r] * kept + sum;
        largest[r] = top;
        if ((lane & 3) == 0) factor[q] = kept;
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    // Sums: every SIMD-group adds the whole block to the columns that it owns.
    UNROLL for (int t = 0; t < QT; ++t) {
      const float kept = factor[8 * t + fm];
      UNROLL for (int c = 0; c < CT; ++c) {
        sums[t][c].thread_elements()[0] *= kept;
        sums[t][c].thread_elements()[1] *= kept;
      }
    }
    UNROLL for (int k = 0; k < S; ++k)
      if (first + 8 * k < end) {
        const thread uint* words = held[k];
        VALUE_SCALE(uint(min(first + 8 * k + fm, length - 1)), column / GS)
        Fragment b[CT];
        UNROLL for (int c = 0; c < CT; ++c) {
          b[c].thread_elements()[0] = NUMBER(FIELD(2 * c));
          b[c].thread_elements()[1] = NUMBER(FIELD(2 * c + 1));
        }
        UNROLL for (int t = 0; t < QT; ++t) {
          Fragment a;
          a.thread_elements()[0] = score[(8 * t + fm) * LINE + 8 * k + fn];
          a.thread_elements()[1] = score[(8 * t + fm) * LINE + 8 * k + fn + 1];
          UNROLL for (int c = 0; c < CT; ++c)
            simdgroup_multiply_accumulate(sums[t][c], a, b[c], sums[t][c]);
        }
      }
  }

  const size_t line = size_t(head * splits + split) * Q;
  FINISH
  UNROLL for (int t = 0; t < QT; ++t) {
    const int q = q0 + 8 * t + fm;
    if (q < Q)
      UNROLL for (int c = 0; c < CT; ++c)
        UNROLL for (int e = 0; e < 2; ++e)
          out[(line + q) * D + column + 2 * c + e] = RESULT(sums[t][c].thread_elements()[e]);
  }
"""

# Of several splits: what the second kernel needs to weigh this one's sums.
WRITE_TOTALS = """
  UNROLL for (int r = 0; r < ROUNDS; ++r) {
    const int q = q0 + 8 * (group + S * r) + (lane >> 2);
    if (group + S * r < QT && q < Q && (lane & 3) == 0) {
      totals[(line + q) * 2] = largest[r];
      totals[(line + q) * 2 + 1] = total[r];
    }
  }
"""

# Of one split: its sums only need to be divided.
SHARE_TOTALS = """
  threadgroup_barrier(mem_flags::mem_threadgroup);
  UNROLL for (int r = 0; r < ROUNDS; ++r)
    if (group + S * r < QT && (lane & 3) == 0) factor[8 * (group + S * r) + (lane >> 2)] = total[r];
  threadgroup_barrier(mem_flags::mem_threadgroup);
"""

COMBINE = """
  const int d = int(thread_position_in_grid.x);
  const int q = int(thread_position_in_grid.y);
  const int head = int(thread_position_in_grid.z);
  const int splits = sums_shape[1];
  const size_t line = size_t(head) * splits * Q + q;
  float top = -1e30f;
  for (int s = 0; s < splits; ++s) top = max(top, totals[(line + size_t(s) * Q) * 2]);
  float sum = 0.0f, total = 0.0f;
  for (int s = 0; s < splits; ++s) {
    const size_t at = line + size_t(s) * Q;
    const float share = fast::exp2(totals[at * 2] - top);
    total += share * totals[at * 2 + 1];
    sum += share * sums[at * D + d];
  }
  out[(size_t(head) * Q + q) * D + d] = T(sum / total);
"""
