"""Command line: `msf demo | train | train-autoencoder | evaluate | classify | generate | import-official | info`."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from msf.cli import classify, demo, evaluate, generate, import_official, info, train, train_autoencoder

app = typer.Typer(
    name="msf",
    help="MedSymmFlow: train a flow that classifies medical images with uncertainty and generates them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("train-autoencoder")(train_autoencoder.train_autoencoder)
app.command("evaluate")(evaluate.evaluate)
app.command("classify")(classify.classify)
app.command("generate")(generate.generate)
app.command("import-official")(import_official.import_official)
app.command("info")(info.info)


def main() -> None:
    """Run a command; bad input ends with one line and exit code 2."""
    try:
        app()
    except (ValueError, TypeError, OSError) as error:
        _stop(error, 2)
    except FloatingPointError as error:  # a diverged training
        _stop(error, 1)
    except RuntimeError as error:
        from msf_kernels import BackendUnavailableError

        if not isinstance(error, BackendUnavailableError):
            raise
        _stop(error, 2)
    except KeyboardInterrupt:
        print("msf: interrupted", file=sys.stderr)
        sys.exit(130)


def _stop(error: Exception, code: int) -> NoReturn:
    print(f"msf: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(code)
