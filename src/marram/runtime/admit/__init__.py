"""Whether a bundle may be taken in: looked into, opened and asked once, in a process that may crash, hang or starve.

`admit(folder)` is all that others need (`admit_bundle` where the folder holds other things
too, `left_behind` which). Everything that reads
a stranger's file runs in a child process of its own with bounds on memory, time and files (`child.py`): what takes that
down is refused, and takes nothing else down.
It must never unpickle, never unpack to the disk, and never follow a path that a file names.
"""

from __future__ import annotations

from marram.runtime.admit.parent import Bounds, admit, admit_bundle, left_behind

__all__ = ["Bounds", "admit", "admit_bundle", "left_behind"]
