"""The command line `msf`, with one module per command."""

from __future__ import annotations

import sys
from typing import Any, TextIO, cast

import typer

from msf.cli import (
    augment_study,
    calibrate,
    classify,
    console,
    demo,
    evaluate,
    filter_pool,
    generate,
    import_official,
    info,
    pack,
    pool_report,
    report,
    train,
    train_autoencoder,
    tune,
)
from msf.interruption import end_in_peace, interruptible, raise_if_requested

app = typer.Typer(
    name="msf",
    help="MedSymmFlow: train a flow that classifies medical images with uncertainty and generates them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)
app.command("pack")(pack.pack)
app.command("train")(train.train)
app.command("train-autoencoder")(train_autoencoder.train_autoencoder)
app.command("evaluate")(evaluate.evaluate)
app.command("calibrate")(calibrate.calibrate)
app.command("report")(report.report)
app.command("classify")(classify.classify)
app.command("generate")(generate.generate)
app.command("pool-report")(pool_report.pool_report)
app.command("filter")(filter_pool.filter_pool)
app.command("augment-study")(augment_study.augment_study)
app.command("import-official")(import_official.import_official)
app.command("info")(info.info)
app.command("tune")(tune.tune)


def main() -> None:
    """Run a command; whatever ends it early is told in one line, with an exit code of its kind."""
    for stream in (sys.stdout, sys.stderr):
        _write_anything(stream)
    try:
        with interruptible(), console.errors_as_one_line():
            raise_if_requested()  # since before this was called
            sys.exit(_run() or 0)
    finally:
        end_in_peace()


def _run() -> int | None:
    """Run the command that was asked for; a mistake in its flags becomes an error like any other."""
    try:
        code: int | None = app(prog_name="msf", standalone_mode=False)
    except Exception as error:
        # Typer's own class or Click's, by the version of Typer; both tell themselves in this way.
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            cast(Any, error).show()
            sys.exit(2)
        context = getattr(error, "ctx", None)
        command = "msf" if context is None else context.command_path
        raise ValueError(f"{error.format_message().rstrip('.')} (see '{command} --help')") from error
    return code


def _write_anything(stream: TextIO) -> None:
    """Let names that the stream's encoding does not have be written with escapes, instead of losing what follows."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
