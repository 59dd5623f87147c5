"""Latents of a split, encoded once, read from memory-mapped files, and never used for anything but what they are of."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from msf.autoencoder import Autoencoder, LatentPosterior
from msf.autoencoder.batches import encode_in_parts
from msf.autoencoder.latent_store import Array, LatentStore
from msf.config import PosteriorUse
from msf.data.arrays import listed, rows_not_finite
from msf.data.dataset import ImageDataset
from msf.data.images import N_FLIPS, apply_flips, prepare_images
from msf.files.cache import CACHE_ENV, cache_root
from msf.interruption import Interrupted

LOCK_FILE = "lock"
# Pictures that are encoded between two writes; a few seconds' work for a large encoder on a CPU.
_CHUNK_PIXELS = 8 * 256 * 256
_MAX_CHUNK_ROWS = 256

_log = logging.getLogger(__name__)


class LatentCache:
    """Latents of one split, read from memory-mapped files.

    Args:
        mean: float32 [V, N, L, h, w]; V = 4 mirrored variants, or 1.
        std: The same shape, or None where latents are the mode.
    """

    def __init__(self, mean: Array, std: Array | None) -> None:
        """Keep the arrays; nothing is read yet."""
        self._mean = mean
        self._std = std

    def __len__(self) -> int:
        """Return the number of pictures."""
        return int(self._mean.shape[1])

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(L, h, w) of one picture."""
        channels, height, width = self._mean.shape[2:]
        return channels, height, width

    def batch(
        self, rows: Tensor, flips: Tensor | None = None, *, noise: Tensor | torch.Generator | None = None
    ) -> Tensor:
        """Return latents of some pictures.

        Args:
            rows: Numbers of pictures in the split; int64 [B].
            flips: Whether each picture is mirrored left-right and upside down, as `draw_flips` gives it; bool [B, 2].
                None: not mirrored.
            noise: Sample the posterior with this standard normal noise [B, L, h, w], or with noise that is drawn from
                a generator. None: its mode.

        Returns:
            [B, L, h, w], float32, on the CPU.

        Raises:
            ValueError: Flips or noise that this cache was not made for, or of another shape.
            IndexError: A row outside the split.
        """
        if flips is not None and self._mean.shape[0] == 1:
            raise ValueError("flips must be None: this cache holds no mirrored pictures")
        if flips is not None and flips.shape != (len(rows), 2):
            raise ValueError(f"flips must be [B, 2] with B = {len(rows)}; got {list(flips.shape)}")
        if noise is not None and self._std is None:
            raise ValueError("noise must be None: this cache holds the mode of the posterior only")
        variants = torch.zeros_like(rows) if flips is None else flips[:, 0].long() + 2 * flips[:, 1].long()
        where = variants.numpy(), rows.numpy()
        mean = torch.from_numpy(np.asarray(self._mean[where]))
        if noise is None or self._std is None:
            return mean
        return LatentPosterior(mean, torch.from_numpy(np.asarray(self._std[where]))).sample(noise)


def open_latent_cache(
    dataset: ImageDataset,
    split: str,
    autoencoder: Autoencoder,
    image_size: int,
    *,
    flips: bool,
    posterior: PosteriorUse = "mode",
    folder: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> LatentCache:
    """Return the latents of a split: those on the disk that are right, the missing ones encoded.

    What is on the disk is compared with what is asked for (pictures, autoencoder, settings), and all of it is read
    once against its checksums. Latents of another autoencoder, of other pictures or in damaged files are made anew,
    damaged chunks as well; the log says so. A killed call goes on where it was. Of several processes that ask for one
    cache, one encodes and the others wait.

    Args:
        dataset: Pictures.
        split: `train`, `val` or `test`.
        autoencoder: On `device`, in float32.
        image_size: Pictures are resized to this height and width, then encoded.
        flips: Also encode every picture mirrored left-right, upside down, and both: encoding a mirrored picture is
            not mirroring its latents. Four times the work and the space.
        posterior: `mode`, or `sample` to keep the standard deviations too.
        folder: Holds the caches of this data set, one folder each; default: `default_cache_folder`.
        device: Where the autoencoder is.
        progress: Called as `progress(n_done, n_total)`, in encoded pictures, while there is something to encode.

    Raises:
        ValueError: Unknown split, or a size that the autoencoder cannot encode.
        OSError: The disk is full or not writable; what was encoded before stays.
        FloatingPointError: Latents that are not finite.

    Numerics:
        float32, in batches of one size: on one device the bits are those of `encode_in_parts` on the same pictures.
        A cache from another device or another version of PyTorch is used; it differs by rounding.
    """
    images = dataset.split(split).images
    store = LatentStore(
        (default_cache_folder(dataset) if folder is None else Path(folder))
        / f"{split}-{image_size}-{'flips' if flips else 'plain'}-{posterior}-{autoencoder.fingerprint[:12]}",
        identity={
            "pictures": hashlib.blake2b(images.contiguous().numpy().data, digest_size=16).hexdigest(),
            "autoencoder": autoencoder.fingerprint,
            "image_size": image_size,
            "posterior": posterior,
        },
        shape=(N_FLIPS if flips else 1, len(images), *autoencoder.latent_shape(image_size, image_size)),
        chunk_rows=min(_MAX_CHUNK_ROWS, max(1, _CHUNK_PIXELS // image_size**2)),
        has_std=posterior == "sample",
    )
    with _telling_what_is_kept(store), _locked(store.folder / LOCK_FILE):
        store.restore()
        missing = store.missing()
        if missing:
            n_total, n_done = sum(chunk.rows.stop - chunk.rows.start for chunk in missing), 0
            _log.info("encoding %d pictures (mirrored ones counted) of split %s into %s", n_total, split, store.folder)
            with store.writing() as put:
                for chunk in missing:
                    pictures = prepare_images(images[chunk.rows], image_size, dataset.n_channels)
                    flips_of_variant = torch.tensor([chunk.variant % 2 == 1, chunk.variant >= 2])
                    mirrored = apply_flips(pictures, flips_of_variant.expand(len(pictures), 2))
                    put(chunk, _finite(encode_in_parts(autoencoder, mirrored, torch.device(device)), chunk.rows.start))
                    n_done += len(pictures)
                    if progress is not None:
                        progress(n_done, n_total)
        return LatentCache(*store.arrays())


def default_cache_folder(dataset: ImageDataset) -> Path:
    """Return the folder of a data set's caches, created. It may be deleted at any time.

    `<data file>.latents` beside the data file if that can be written. Else, and whenever the environment variable
    MSF_CACHE names a folder, a folder of this data set's own, there or under ~/.cache/medsymmflow.
    """
    named = os.environ.get(CACHE_ENV)
    if not named and dataset.path is not None:
        beside = dataset.path.with_name(f"{dataset.path.name}.latents")
        try:
            beside.mkdir(exist_ok=True)
        except OSError:
            pass  # a read-only disk or folder
        else:
            if os.access(beside, os.W_OK):
                return beside
    root = cache_root()
    name = dataset.name
    if dataset.path is not None:  # files of one name in several folders
        name += f"-{hashlib.blake2b(str(dataset.path.absolute()).encode(), digest_size=6).hexdigest()}"
    folder = root / f"{name}.latents"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _finite(posterior: LatentPosterior, first_row: int) -> LatentPosterior:
    posterior = LatentPosterior(*(part.cpu() for part in posterior))
    rows = sorted({first_row + row for part in posterior for row in rows_not_finite(part)})
    if rows:
        raise FloatingPointError(
            f"the autoencoder gives latents that are not finite for {listed('picture', rows)}; none of them was kept"
        )
    return posterior


@contextmanager
def _telling_what_is_kept(store: LatentStore) -> Iterator[None]:
    """Note on what ends the encoding early where the latents are, and how to do without them."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt, OSError) as error:
        error.add_note(
            f"{str(store.folder)!r} keeps the latents that were encoded before"
            + (
                f"; {CACHE_ENV} names another place for them, and --no-latent-cache (latent_cache=False) does without"
                if isinstance(error, OSError)
                else ""
            )
        )
        raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)  # of the operating system: a killed process leaves none behind
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.warning("waiting for another process, which works on %s", path.parent)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
