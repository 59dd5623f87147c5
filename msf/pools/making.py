"""Making a pool: what is missing of it, a part at a time."""

from __future__ import annotations

from collections.abc import Callable

from msf.interruption import undisturbed
from msf.medsymmflow import MedSymmFlow
from msf.pools.plan import PoolPlan, make_part, parts_of
from msf.pools.stores import Store


def make_pool(
    flow: MedSymmFlow, plan: PoolPlan, store: Store, *, progress: Callable[[int, int], None] | None = None
) -> int:
    """Make the pictures of a pool that its store does not have; memory does not grow with the pool.

    Args:
        flow: Makes the pictures; that of the plan.
        plan: Which pictures.
        store: Where they go; this process has its folder for itself.
        progress: Called as `progress(n_done, n_total)`, in pictures, those found included.

    Returns:
        How many were there before.

    Raises:
        ValueError: The store holds something else, or the network's outputs are not finite.
        OSError: A picture could not be written; those before stay.
    """
    store.open()
    missing = store.missing()
    n_before = n_done = len(plan) - len(missing)
    for part in parts_of(plan, missing):
        if progress is not None:
            progress(n_done, len(plan))
        pictures = make_part(flow, plan, part)
        with undisturbed():
            store.put(part, pictures.numpy())
        n_done += len(part)
    if progress is not None:
        progress(n_done, len(plan))
    store.finish()
    return n_before
