"""Seeds of a run's random draws, derived from its seed, the purpose and an index.

A resumed run therefore needs no stored generator state, and draws the same numbers as an uninterrupted one.
"""

import xxhash


def derive_seed(seed: int, purpose: str, index: int = 0) -> int:
    """Derive a seed in [0, 2^63); different arguments give unrelated seeds."""
    return xxhash.xxh3_64_intdigest(f"{seed}/{purpose}/{index}".encode()) >> 1
