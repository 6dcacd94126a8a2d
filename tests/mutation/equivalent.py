"""Mistakes that change nothing that a test could see, with the reason: they are not counted.

A mistake is named by `Mutant.key`; when its text or its function changes it has to be judged again.
"""

from __future__ import annotations

EQUIVALENT: dict[str, str] = {}
