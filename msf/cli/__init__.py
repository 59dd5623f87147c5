"""Command line: `msf demo | train | train-autoencoder | evaluate | classify | generate | import-official | info`."""

from __future__ import annotations

import typer

from msf.cli import classify, console, demo, evaluate, generate, import_official, info, train, train_autoencoder
from msf.interruption import interruptible

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
    """Run a command; whatever ends it early is told in one line, with an exit code of its kind."""
    with interruptible(), console.errors_as_one_line():
        app()
