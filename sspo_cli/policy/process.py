"""How this process uses the machine."""

import ctypes

import torch

# Of glibc's mallopt: from which size on a block is got from the system and given back by itself, and how much free memory
# at the end of the heap is given back.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
LARGEST_KEPT, MOST_KEPT = 64 * 2**20, 256 * 2**20  # bytes


def set_up_process(threads: int) -> None:
    """OpenMP threads, and memory that is wanted again a moment later stays with the process.

    By default glibc gives the tensors of one layer back and gets zeroed pages for those of the next: 12,000 page faults in
    a rollout batch of the tiny model, a twelfth of its time. Other C libraries are left as they are.
    """
    torch.set_num_threads(threads)
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(_TRIM_THRESHOLD, MOST_KEPT)
