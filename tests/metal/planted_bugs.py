"""A kernel that sums rows, with bugs to choose from; each is a mistake that Metal would accept."""

import re
from typing import NamedTuple

ROWS, WIDTH, THREADS = 3, 300, 128


class Bug(NamedTuple):
    """A planted bug and how it is reported."""

    name: str
    kind: str
    has_line: bool = True


BUGS = [
    Bug("array_index", "array-index"),
    Bug("bad_shift", "bad-shift"),
    Bug("barrier_for_a_simdgroup_only", "threadgroup-race"),
    Bug("barrier_without_memory", "threadgroup-race"),
    Bug("divergent_barrier", "divergent-barrier"),
    Bug("divergent_matrix_product", "divergent-collective"),
    Bug("divergent_reduction", "divergent-collective"),
    Bug("division_by_zero", "divide-by-zero"),
    Bug("early_return", "divergent-collective"),
    Bug("lanes_write_one_output", "device-race"),
    Bug("misaligned_vector", "misaligned"),
    Bug("missing_barrier", "threadgroup-race"),
    Bug("missing_barrier_reads_early", "uninitialised-threadgroup-read"),
    Bug("missing_simdgroup_barrier", "threadgroup-race"),
    Bug("output_not_written", "output-not-written", has_line=False),
    Bug("output_read_early", "uninitialised-output-read"),
    Bug("read_before_the_start", "out-of-bounds"),
    Bug("read_past_the_end", "out-of-bounds"),
    Bug("shuffle_from_no_lane", "shuffle-source"),
    Bug("threadgroup_read_past_the_end", "out-of-bounds"),
    Bug("threadgroup_write_past_the_end", "out-of-bounds"),
    Bug("threadgroups_write_one_output", "device-race"),
    Bug("uninitialised_fragment", "uninitialised-fragment"),
    Bug("uninitialised_threadgroup_read", "uninitialised-threadgroup-read"),
    Bug("wild_store", "crash"),
    Bug("write_past_the_end", "out-of-bounds"),
    Bug("write_to_input", "write-to-input"),
]

NUMBERS = "".join(f"#define NUMBER_{bug.name} {i}\n" for i, bug in enumerate(BUGS, 1))
HEADER = NUMBERS + "#define BUG(name) (bug == NUMBER_##name)\n"

# A line that a finding may name carries the bug's name, in the code or behind it.
SOURCE = """
uint lane = thread_index_in_simdgroup, sg = simdgroup_index_in_threadgroup;
uint tid = thread_index_in_threadgroup, row = threadgroup_position_in_grid.y;
int width = x_shape[1];
threadgroup float part[4];
threadgroup float swap[128];

if (BUG(output_not_written) && row == 1) return;
if (BUG(output_read_early)) swap[tid] = y[row];
if (BUG(early_return) && lane == 31) return;

float sum = 0.0f;
for (int i = tid; i < width; i += 128) sum += x[row * width + i];
if (BUG(read_past_the_end)) sum += x[3 * width + lane];
if (BUG(read_before_the_start)) sum += x[-1 - int(lane)];
if (BUG(write_past_the_end)) y[3 + lane] = sum;
if (BUG(wild_store)) y[1ul << 40] = sum;
if (BUG(write_to_input)) ((device float*)x)[tid] = sum;
float4 four = 0.0f;
if (BUG(misaligned_vector)) four = *(const device float4*)(x + 1);
sum += four.w;
if (BUG(shuffle_from_no_lane)) sum += simd_shuffle(sum, lane + 1);
if (BUG(bad_shift)) sum += float(1u << (lane + 8));
if (BUG(division_by_zero)) sum += float(width / int(lane));
int own[4] = {1, width, 3, 4};
if (BUG(array_index)) sum += float(own[lane]);
if (BUG(threadgroups_write_one_output) && tid == 0) y[0] = sum;

simdgroup_float8x8 a = make_filled_simdgroup_matrix<float, 8, 8>(1.0f), b = a, c = a, empty;
if (BUG(uninitialised_fragment)) simdgroup_multiply_accumulate(c, empty, b, c);
if (BUG(divergent_matrix_product) && lane < 31) simdgroup_multiply_accumulate(c, a, b, c);

swap[tid] = sum;
if (!BUG(missing_simdgroup_barrier)) simdgroup_barrier(mem_flags::mem_threadgroup);  // early_return
float other = swap[tid ^ 1];  // missing_simdgroup_barrier
sum = 0.5f * (sum + other);

if (!BUG(divergent_reduction) || lane < 20) sum = simd_sum(sum);
if (lane == 0 && !(BUG(uninitialised_threadgroup_read) && sg == 2)) part[sg] = sum;
if (BUG(missing_barrier) || BUG(missing_barrier_reads_early)) {
} else if (BUG(barrier_without_memory)) {
  threadgroup_barrier(mem_flags::mem_none);
} else if (BUG(barrier_for_a_simdgroup_only)) {
  simdgroup_barrier(mem_flags::mem_threadgroup);
} else if (!BUG(divergent_barrier) || sg < 2) {
  threadgroup_barrier(mem_flags::mem_threadgroup);  // divergent_barrier divergent_matrix_product
}

if (sg == 0) {
  threadgroup float* parts = part;
  // The next line has the reads that the barriers order, or do not.
  float total = lane < 4 ? parts[lane] : 0.0f;  // @reads
  total = simd_sum(total);
  if (BUG(threadgroup_read_past_the_end)) total += parts[4 + lane];
  if (BUG(threadgroup_write_past_the_end)) parts[4 + lane] = total;
  if (lane == 0 || BUG(lanes_write_one_output)) y[row] = total;
}
"""
READS = (
    "barrier_for_a_simdgroup_only barrier_without_memory missing_barrier "
    "missing_barrier_reads_early uninitialised_threadgroup_read"
)
SOURCE = SOURCE.replace("@reads", READS)


def lines_of(bug: Bug) -> list[int]:
    """Return the lines of the source that carry a bug's name."""
    word = re.compile(rf"\b{bug.name}\b")
    return [i for i, line in enumerate(SOURCE.split("\n"), 1) if word.search(line)]
