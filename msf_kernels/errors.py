"""Exceptions that the library raises beside `TypeError` and `ValueError`."""

from collections.abc import Mapping, Sequence


class BackendUnavailableError(RuntimeError):
    """No backend, or not the one that was asked for, can serve a call.

    The text names the operator, describes the inputs and lists every backend's reasons. They are also kept in
    `reasons`, so that a caller can act on them.
    """

    def __init__(
        self,
        operator: str,
        wanted: str,
        reasons: Mapping[str, Sequence[str]],
        inputs: str = "",
    ) -> None:
        """Args are kept as attributes; `reasons` maps each backend to why it cannot serve."""
        self.operator = operator
        self.wanted = wanted
        self.reasons = {name: list(texts) for name, texts in reasons.items()}
        given = f" for {inputs}" if inputs else ""
        lines = [f"  {name}: {'; '.join(texts) if texts else 'can serve'}" for name, texts in self.reasons.items()]
        super().__init__(
            f"{operator}: backend {wanted!r} cannot serve{given}. Reasons per backend:\n" + "\n".join(lines)
        )


class DerivativeUnavailableError(BackendUnavailableError, NotImplementedError):
    """The backend that was asked for serves the call, but not the derivative that is taken of it."""
