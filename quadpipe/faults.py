"""Named points of a run at which tests bring a fault; anywhere else nothing happens there."""

from collections.abc import Callable

hook: Callable[[str], None] | None = None
"""Set by tests in the processes of a run: kills, stops or raises at the point it is told of."""


def point(moment: str, name: str) -> None:
    """A place where a run may end: before or after a step, and of which file."""
    if hook is not None:
        hook(f"{moment} {name}")
