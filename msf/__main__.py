"""The program `msf`, also as `python -m msf`."""

from __future__ import annotations

from msf.interruption import interruptible, undisturbed


def main() -> None:
    """Run the command line; signals are waited for before the imports that take a while."""
    with interruptible():
        with undisturbed(is_last=True):
            from msf.cli import main as run
        run()


if __name__ == "__main__":
    main()
