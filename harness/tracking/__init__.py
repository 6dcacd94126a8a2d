"""Records, the journal and trackers; a tracker of one's own is a `Backend`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from harness.tracking.backends.backend import Backend as Backend
    from harness.tracking.backends.backend import MeasuredRow as MeasuredRow
    from harness.tracking.backends.backend import Picture as Picture
    from harness.tracking.backends.backend import RunLabels as RunLabels
    from harness.tracking.backends.registry import register_tracker as register_tracker

_MODULES = {
    "Backend": "harness.tracking.backends.backend",
    "MeasuredRow": "harness.tracking.backends.backend",
    "Picture": "harness.tracking.backends.backend",
    "RunLabels": "harness.tracking.backends.backend",
    "register_tracker": "harness.tracking.backends.registry",
}
__all__ = ["Backend", "MeasuredRow", "Picture", "RunLabels", "register_tracker"]

__getattr__ = lazy_attributes(__name__, _MODULES)
