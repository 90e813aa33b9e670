"""Named points of a run at which tests inject faults; without a hook they do nothing."""

from collections.abc import Callable

hook: Callable[[str], None] | None = None
"""Set by tests in the processes of a run: kills, stops or raises at the given point."""


def point(moment: str, name: str) -> None:
    """A point where a run may be interrupted. moment: before or after a step. name: of the file."""
    if hook is not None:
        hook(f"{moment} {name}")
