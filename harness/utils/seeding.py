"""Randomness as a function of where it is used, so that nothing random has to be saved.

A resumed run draws what the uninterrupted one would have drawn, because the seed of every draw comes from
the run's seed and the place of the draw, never from how many draws went before.
"""

from __future__ import annotations

import hashlib


def seed_for(seed: int, *where: str | int) -> int:
    """A seed in 0..2**63-1 for one place, for example `seed_for(0, "order", epoch)`.

    Equal arguments give the equal seed on every machine and Python; different ones give unrelated seeds.
    """
    words = "\x1f".join([str(int(seed)), *map(str, where)])
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "big") >> 1
