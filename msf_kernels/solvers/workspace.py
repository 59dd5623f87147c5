"""The name of what kept the states of a solve, for one more release."""

from __future__ import annotations

WITHOUT_EFFECT = "a Workspace has no effect: states are new memory; the name goes with the next release"


class Workspace:
    """Without effect: an integration writes its states to new memory.

    Source: own.
    """

    def clear(self) -> None:
        """Do nothing."""

    @property
    def n_bytes(self) -> int:
        """Memory that is kept: none."""
        return 0
