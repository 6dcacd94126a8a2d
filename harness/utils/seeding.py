"""Seeds as a function of the run's seed and of what they are used for, so that no random state has to be saved.

A resumed run draws the same random numbers as an uninterrupted one, because no seed depends on earlier draws.
"""

from __future__ import annotations

import hashlib


def seed_for(seed: int, *purpose: str | int) -> int:
    """Return a seed in 0..2**63-1 for one purpose, for example `seed_for(0, "order", epoch)`.

    Equal arguments give equal seeds with every machine and Python version; different arguments give unrelated seeds.
    """
    key = "\x1f".join([str(int(seed)), *map(str, purpose)])
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1
