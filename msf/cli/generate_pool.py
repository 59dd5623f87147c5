"""`msf generate --per-class`: a pool of generated pictures, in class folders or as an archive."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msf.cli import console
from msf.cli.targets import check_apart
from msf.files.claim import claimed_folder
from msf.interruption import Interrupted

if TYPE_CHECKING:
    from msf.medsymmflow import MedSymmFlow
    from msf.pools.plan import PoolPlan


def generate_pool(
    network: MedSymmFlow, plan: PoolPlan, out: Path, json_file: Path | None, inputs: Sequence[Path]
) -> None:
    """Make a pool, or what is left of it.

    Args:
        network: Makes the pictures.
        plan: Which pictures.
        out: A folder, or an archive that ends in `.npz`.
        json_file: Gets what the pool was made with.
        inputs: Files that no result may replace.
    """
    from msf.pools.making import make_pool
    from msf.pools.stores import store_for, table_of

    store = store_for(out, plan)
    check_apart({"--json": json_file}, [*inputs, out, table_of(out)])
    n_before = n_done = 0

    try:
        with claimed_folder(store.folder, "generation"), console.progress_bar("generating", lines=True) as advance:

            def show(done: int, total: int) -> None:
                nonlocal n_done
                n_done = done
                advance(done, total)

            n_before = make_pool(network, plan, store, progress=show)
    except (Interrupted, KeyboardInterrupt, OSError) as error:
        error.add_note(f"{n_done} of {len(plan)} pictures are kept beside or in {str(out)!r}")
        error.add_note("the same command makes the others too")
        raise
    found = f", {n_before} of them made before" if n_before else ""
    console.out.print(f"{len(plan)} pictures in {console.printable(str(out))}{found}")
    console.out.print(f"what each was made with: {console.printable(str(table_of(out)))}")
    console.write_json(json_file, {"pool": str(out), "n": len(plan), "n_made_before": n_before, **plan.note()})
