"""Memory that stays with the process between updates, where MLX computes on a Linux CPU.

MLX takes an array's memory from the C library there. glibc gives large pieces back to the system as
soon as they are free, so the next update waits for the system to clear every page again.
"""

import ctypes

import mlx.core as mx

# Parameters of glibc's mallopt (malloc.h), and the largest value that it takes.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let the C library keep memory that is freed; returns whether it does.

    It does not on a GPU, or where the C library is another one: nothing is changed there.
    """
    if mx.default_device() != mx.Device(mx.cpu):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    values = {MMAP_THRESHOLD: LARGEST, TRIM_THRESHOLD: LARGEST, TOP_PAD: 64 << 20}
    taken = [mallopt(name, value) for name, value in values.items()]
    return all(taken)
