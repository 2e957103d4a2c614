"""Every random draw of a run is a function of its seed, its purpose and its index.

So a resumed run needs no stored generator state: it draws what the uninterrupted run would have drawn.
"""

import xxhash


def derive_seed(seed: int, purpose: str, index: int = 0) -> int:
    """Derive a seed in [0, 2^63), unrelated for any two different triples."""
    return xxhash.xxh3_64_intdigest(f"{seed}/{purpose}/{index}".encode()) >> 1
