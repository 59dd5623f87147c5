import errno
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
from unittest import mock

import numpy as np
import pytest
import torch

from msf.autoencoder import LatentPosterior, latent_cache, latent_store
from msf.autoencoder.batches import encode_in_parts
from msf.autoencoder.latent_cache import default_cache_folder, open_latent_cache
from msf.data import (
    ImageDataset,
    Split,
    apply_flips,
    draw_flips,
    load_dataset,
    prepare_images,
)
from msf.interruption import Interrupted, interruptible

SIZE = 24
CHUNK = 14
N = 37  # three chunks, the last one short


class SmallAutoencoder:
    """A linear map of patches with random weights, which counts the pictures that it encodes."""

    latent_channels, down_factor, scaling_factor = 2, 3, 1.0

    def __init__(self, seed=0):
        self.weight = torch.randn(4, 3 * 3 * 3, generator=torch.Generator().manual_seed(seed)) / 5
        self.fingerprint = hashlib.sha256(self.weight.numpy().tobytes()).hexdigest()
        self.n_encoded = 0

    def latent_shape(self, height, width):
        return 2, height // 3, width // 3

    def encode(self, images):
        self.n_encoded += len(images)
        n, height, width = len(images), images.shape[2] // 3, images.shape[3] // 3
        patches = images.reshape(n, 3, height, 3, width, 3).permute(0, 2, 4, 1, 3, 5).flatten(3)
        mean, log_std = (patches @ self.weight.T).permute(0, 3, 1, 2).chunk(2, 1)
        return LatentPosterior(mean, log_std.exp())


def dataset(seed=0, *, size=20, path=None):
    generator = torch.Generator().manual_seed(seed)
    part = Split(torch.randint(0, 256, (N, size, size, 3), generator=generator, dtype=torch.uint8), torch.arange(N) % 2)
    return ImageDataset(
        name="tiny", train=part, val=part, test=part, class_names=("a", "b"), flips=True, is_ordinal=False, licence="",
        citation="", fingerprint="of a file", path=path,
    )  # fmt: skip


def opened(folder, *, data=None, autoencoder=None, flips=False, posterior="mode", **more):
    with mock.patch.object(latent_cache, "_CHUNK_PIXELS", CHUNK * SIZE**2):
        return open_latent_cache(
            data or dataset(), "train", autoencoder or SmallAutoencoder(), SIZE, flips=flips, posterior=posterior,
            folder=folder, **more,
        )  # fmt: skip


def n_encoded_by_opening(folder, **arguments):
    autoencoder = arguments.pop("autoencoder", None) or SmallAutoencoder()
    autoencoder.n_encoded = 0
    cache = opened(folder, autoencoder=autoencoder, **arguments)
    return autoencoder.n_encoded, cache


def files(folder):
    (inside,) = (path for path in folder.iterdir() if path.is_dir())
    return inside


def on_the_fly(data, rows, flips=None, autoencoder=None):
    pictures = prepare_images(data.train.images[rows], SIZE, 3)
    if flips is not None:
        pictures = apply_flips(pictures, flips)
    return encode_in_parts(autoencoder or SmallAutoencoder(), pictures)


ROWS = torch.tensor([36, 0, 17, 17, 5])


def test_the_cache_gives_the_latents_of_the_encoder_to_the_bit(tmp_path):
    cache = opened(tmp_path)
    assert (len(cache), cache.latent_shape) == (N, (2, 8, 8))
    assert torch.equal(cache.batch(ROWS), on_the_fly(dataset(), ROWS).mean)
    assert cache.batch(ROWS).dtype == torch.float32


def test_mirrored_pictures_are_encoded_not_mirrored_latents(tmp_path):
    cache = opened(tmp_path, flips=True)
    for flips in torch.tensor([[False, False], [True, False], [False, True], [True, True]]):
        chosen = flips.expand(len(ROWS), 2)
        assert torch.equal(cache.batch(ROWS, chosen), on_the_fly(dataset(), ROWS, chosen).mean)
    chosen = draw_flips(len(ROWS), torch.Generator().manual_seed(0))
    assert torch.equal(cache.batch(ROWS, chosen), on_the_fly(dataset(), ROWS, chosen).mean)
    mirrored_latents = cache.batch(ROWS).flip(3)
    left_right = torch.tensor([[True, False]]).expand(len(ROWS), 2)
    assert not torch.allclose(cache.batch(ROWS, left_right), mirrored_latents, atol=1e-3)


def test_a_sampled_posterior_is_mean_plus_std_times_noise(tmp_path):
    cache = opened(tmp_path, posterior="sample")
    mean, std = on_the_fly(dataset(), ROWS)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(cache.batch(ROWS, noise=noise), mean + std * noise)
    assert torch.equal(cache.batch(ROWS, noise=torch.Generator().manual_seed(1)), mean + std * noise)
    assert torch.equal(cache.batch(ROWS), mean)


def test_latents_do_not_depend_on_how_many_pictures_are_encoded_together():
    data = dataset()
    together = on_the_fly(data, torch.arange(N)).mean
    assert torch.equal(together[3:4], on_the_fly(data, torch.tensor([3])).mean)


def test_what_a_cache_was_not_made_for_is_refused(tmp_path):
    cache = opened(tmp_path)
    with pytest.raises(ValueError, match="no mirrored pictures"):
        cache.batch(ROWS, torch.zeros(len(ROWS), 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="mode of the posterior only"):
        cache.batch(ROWS, noise=torch.zeros(len(ROWS), 2, 8, 8))
    with pytest.raises(ValueError, match=r"\[B, 2\] with B = 5; got \[4, 2\]"):
        opened(tmp_path, flips=True).batch(ROWS, torch.zeros(4, 2, dtype=torch.bool))
    with pytest.raises(IndexError):
        cache.batch(torch.tensor([N]))
    with pytest.raises(ValueError, match="split must be one of"):
        open_latent_cache(dataset(), "all", SmallAutoencoder(), SIZE, flips=False, folder=tmp_path)


def test_a_whole_cache_is_opened_without_the_encoder(tmp_path):
    n_first, first = n_encoded_by_opening(tmp_path, flips=True)
    n_again, again = n_encoded_by_opening(tmp_path, flips=True)
    assert n_first == 4 * N
    assert n_again == 0
    assert torch.equal(again.batch(ROWS), first.batch(ROWS))


def test_progress_counts_encoded_pictures(tmp_path):
    seen = []
    opened(tmp_path, flips=True, progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (CHUNK, 4 * N)
    assert seen[-1] == (4 * N, 4 * N)
    opened(tmp_path, flips=True, progress=lambda done, total: pytest.fail("nothing is to be encoded"))


def test_another_autoencoder_never_sees_this_ones_latents(tmp_path):
    other = SmallAutoencoder(seed=1)
    opened(tmp_path)
    _, cache = n_encoded_by_opening(tmp_path, autoencoder=other)
    assert torch.equal(cache.batch(ROWS), on_the_fly(dataset(), ROWS, autoencoder=other).mean)


def test_files_of_another_autoencoder_in_the_place_of_this_ones_are_encoded_anew(tmp_path, caplog):
    other = SmallAutoencoder(seed=1)
    opened(tmp_path)
    files(tmp_path).rename(
        tmp_path / files(tmp_path).name.replace(SmallAutoencoder().fingerprint[:12], other.fingerprint[:12])
    )
    n_encoded, cache = n_encoded_by_opening(tmp_path, autoencoder=other)
    assert n_encoded == N
    assert torch.equal(cache.batch(ROWS), on_the_fly(dataset(), ROWS, autoencoder=other).mean)
    assert "autoencoder was" in caplog.text


def test_changed_pictures_are_encoded_anew(tmp_path, caplog):
    opened(tmp_path)
    changed = dataset()
    changed.train.images[36, 0, 0, 0] ^= 1
    n_encoded, cache = n_encoded_by_opening(tmp_path, data=changed)
    assert n_encoded == N
    assert torch.equal(cache.batch(ROWS), on_the_fly(changed, ROWS).mean)
    assert "pictures was" in caplog.text


def test_changed_labels_need_no_encoding(tmp_path):
    opened(tmp_path)
    changed = dataset()
    changed.train.labels[:] = 0
    assert n_encoded_by_opening(tmp_path, data=changed)[0] == 0


@pytest.mark.parametrize("n_left", [0, 100, 4096])
def test_a_truncated_cache_is_encoded_anew(tmp_path, caplog, n_left):
    opened(tmp_path)
    os.truncate(files(tmp_path) / "mean.npy", n_left)
    n_encoded, cache = n_encoded_by_opening(tmp_path)
    assert n_encoded == N
    assert torch.equal(cache.batch(ROWS), on_the_fly(dataset(), ROWS).mean)
    assert "mean.npy is damaged" in caplog.text


@pytest.mark.parametrize("name", ["mean.npy", "std.npy"])
def test_a_damaged_chunk_is_found_and_encoded_anew(tmp_path, caplog, name):
    opened(tmp_path, posterior="sample")
    path = files(tmp_path) / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # in the last, short chunk
    path.write_bytes(content)
    n_encoded, cache = n_encoded_by_opening(tmp_path, posterior="sample")
    assert n_encoded == N - 2 * CHUNK
    noise = torch.ones(len(ROWS), 2, 8, 8)
    assert torch.equal(cache.batch(ROWS, noise=noise), sum(on_the_fly(dataset(), ROWS)))
    assert "1 of 3 chunks" in caplog.text
    assert n_encoded_by_opening(tmp_path, posterior="sample")[0] == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda meta: "{",
        lambda meta: "[]",
        lambda meta: json.dumps({**meta, "format": 0}),
        lambda meta: json.dumps({**meta, "checksums": meta["checksums"][:-1]}),
        lambda meta: json.dumps({name: value for name, value in meta.items() if name != "shape"}),
    ],
    ids=["no JSON", "a list", "another format", "too few checksums", "a missing field"],
)
def test_files_without_an_intact_description_are_encoded_anew(tmp_path, caplog, damage):
    opened(tmp_path)
    path = files(tmp_path) / latent_store.META_FILE
    path.write_text(damage(json.loads(path.read_text())))
    n_encoded, cache = n_encoded_by_opening(tmp_path)
    assert n_encoded == N
    assert torch.equal(cache.batch(ROWS), on_the_fly(dataset(), ROWS).mean)
    assert "encoded anew" in caplog.text


def test_an_array_of_another_shape_is_encoded_anew(tmp_path, caplog):
    opened(tmp_path)
    np.save(files(tmp_path) / "mean.npy", np.zeros((1, N, 2, 8, 4), np.float32))
    assert n_encoded_by_opening(tmp_path)[0] == N
    assert "mean.npy must be float32 [1, 37, 2, 8, 8]" in caplog.text


def npy_header(text):
    content = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content


def changed_meta(**fields):
    return lambda folder: (folder / "meta.json").write_text(
        json.dumps({**json.loads((folder / "meta.json").read_text()), **fields})
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "meta.json").write_text("[" * 200_000),
        lambda folder: (folder / "meta.json").write_text("[]"),
        lambda folder: (folder / "meta.json").write_bytes(b"\xff\xfe\xfd"),
        changed_meta(checksums=3),
        changed_meta(checksums=[]),
        changed_meta(checksums=[3, [], {}]),
        changed_meta(shape=None),
        changed_meta(shape=[[1]]),
        changed_meta(pictures=["x" * 10**5]),
        lambda folder: (folder / "mean.npy").write_bytes(b""),
        lambda folder: (folder / "mean.npy").write_bytes(npy_header("{'descr': '<f4', 'fortran_order': False}")),
        lambda folder: (folder / "mean.npy").write_bytes(
            npy_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**40},), }}")
        ),
        lambda folder: (folder / "mean.npy").write_bytes(npy_header("{" + "(" * 9000 + "}")),
        lambda folder: np.save(folder / "mean.npy", np.array([{}]), allow_pickle=True),
        lambda folder: np.save(folder / "mean.npy", np.zeros((1, N, 2, 8, 8), ">f4")),
        lambda folder: np.save(folder / "mean.npy", np.zeros((8, 8, 2, N, 1), np.float32).T),
    ],
)
def test_whatever_stands_in_the_files_they_are_used_or_made_anew(tmp_path, damage, caplog):
    opened(tmp_path)
    damage(files(tmp_path))
    n_encoded, cache = n_encoded_by_opening(tmp_path)
    assert n_encoded == N
    assert torch.equal(cache.batch(torch.arange(N)), on_the_fly(dataset(), torch.arange(N)).mean)
    assert "encoded anew" in caplog.text
    assert "allow_pickle" not in caplog.text
    assert all(len(record.getMessage()) < 1000 for record in caplog.records)


def test_latents_that_are_not_finite_are_encoded_anew_whatever_vouches_for_them(tmp_path):
    opened(tmp_path)
    array = np.load(files(tmp_path) / "mean.npy", mmap_mode="r+")
    array[0, CHUNK, 0, 0, 0] = np.nan
    array.flush()
    meta = json.loads((files(tmp_path) / "meta.json").read_text())
    meta["checksums"][1] = latent_store._checksum([array[0, CHUNK : 2 * CHUNK]])
    changed_meta(**meta)(files(tmp_path))
    n_encoded, cache = n_encoded_by_opening(tmp_path)
    assert n_encoded == CHUNK
    assert cache.batch(torch.arange(N)).isfinite().all()


def test_an_error_on_the_way_keeps_what_was_encoded(tmp_path):
    class Failing(SmallAutoencoder):
        def encode(self, images):
            if self.n_encoded == CHUNK:
                raise RuntimeError("the machine is tired")
            return super().encode(images)

    with pytest.raises(RuntimeError, match="tired"):
        opened(tmp_path, autoencoder=Failing())
    n_encoded, cache = n_encoded_by_opening(tmp_path)
    assert n_encoded == N - CHUNK
    assert torch.equal(cache.batch(torch.arange(N)), on_the_fly(dataset(), torch.arange(N)).mean)


@pytest.mark.parametrize("posterior", ["mode", "sample"])
@pytest.mark.parametrize("n_bytes", [0, 1, 1000])
def test_a_full_disk_keeps_what_was_encoded_and_says_how_to_go_on(tmp_path, monkeypatch, posterior, n_bytes):
    """The disk takes the first chunk, and of the second one not all: some bytes, then none."""
    room = CHUNK * 2 * 8 * 8 * 4 * (1 if posterior == "mode" else 2) + n_bytes
    write, open_file, written = latent_store.FileIO.write, latent_store.Path.open, []

    class Full(latent_store.FileIO):
        def write(self, content):
            n_left = room - sum(written)
            if n_left <= 0:
                raise OSError(errno.ENOSPC, "No space left on device", self.name)
            written.append(write(self, memoryview(content)[:n_left]))
            return written[-1]

    def open_full(path, mode="r", **keywords):
        return Full(path, mode) if mode == "r+b" else open_file(path, mode, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(latent_store.Path, "open", open_full)
        with pytest.raises(OSError, match="No space left") as caught:
            opened(tmp_path, posterior=posterior)
    (note,) = caught.value.__notes__
    assert "keeps the latents that were encoded before; MSF_CACHE names another place" in note
    assert "--no-latent-cache (latent_cache=False)" in note
    n, cache = n_encoded_by_opening(tmp_path, posterior=posterior)
    assert n == N - CHUNK
    whole = opened(tmp_path / "whole", posterior=posterior)
    assert torch.equal(cache.batch(torch.arange(N)), whole.batch(torch.arange(N)))


@pytest.mark.skipif(os.name != "posix", reason="signals are sent as POSIX sends them")
def test_a_signal_keeps_what_was_encoded(tmp_path):
    def interrupt(n_done, n_total):
        if n_done >= 2 * CHUNK:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as caught, interruptible():
        opened(tmp_path, progress=interrupt)
    assert "keeps the latents that were encoded before" in caught.value.__notes__[0]
    assert n_encoded_by_opening(tmp_path)[0] == N - 2 * CHUNK


def test_latents_that_are_not_finite_are_never_kept(tmp_path):
    class Broken(SmallAutoencoder):
        def encode(self, images):
            mean, std = super().encode(images)
            return LatentPosterior(mean * torch.inf, std)

    with pytest.raises(FloatingPointError, match="not finite"):
        opened(tmp_path, autoencoder=Broken())
    assert n_encoded_by_opening(tmp_path)[0] == N


KILLED = """
    import os, signal, sys
    sys.path.insert(0, {folder!r})
    from test_latent_cache import SmallAutoencoder, opened
    from msf.autoencoder import latent_store
    from pathlib import Path

    latent_store.SAVE_SECONDS = {seconds}

    class Dying(SmallAutoencoder):
        def encode(self, images):
            if self.n_encoded == {last}:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().encode(images)

    opened(Path({cache!r}), autoencoder=Dying(), flips=True)
"""


@pytest.mark.parametrize(("seconds", "n_kept"), [(-1.0, N + CHUNK), (1000.0, 0)])
def test_a_killed_build_goes_on_where_it_was_last_saved(tmp_path, seconds, n_kept):
    script = KILLED.format(
        folder=str(__file__).rpartition("/")[0], seconds=seconds, last=N + CHUNK + 3, cache=str(tmp_path)
    )
    finished = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert finished.returncode == -signal.SIGKILL
    n_encoded, cache = n_encoded_by_opening(tmp_path, flips=True)
    assert n_encoded == 4 * N - n_kept
    rows = torch.arange(N)
    for flips in (None, torch.ones(N, 2, dtype=torch.bool)):
        assert torch.equal(cache.batch(rows, flips), on_the_fly(dataset(), rows, flips).mean)


def test_a_kill_between_latents_and_checksums_loses_only_that_chunk(tmp_path):
    # What a power failure can leave: a checksum that is not (yet) true, beside zeros.
    opened(tmp_path)
    array = np.load(files(tmp_path) / "mean.npy", mmap_mode="r+")
    array[0, CHUNK : 2 * CHUNK] = 0
    array.flush()
    n_encoded, cache = n_encoded_by_opening(tmp_path)
    assert n_encoded == CHUNK
    assert torch.equal(cache.batch(torch.arange(N)), on_the_fly(dataset(), torch.arange(N)).mean)


def test_of_two_that_want_one_cache_one_encodes_and_the_other_waits(tmp_path, caplog):
    entered, may_go_on = threading.Event(), threading.Event()

    class Slow(SmallAutoencoder):
        def encode(self, images):
            entered.set()
            assert may_go_on.wait(30)
            return super().encode(images)

    slow, quick, caches = Slow(), SmallAutoencoder(), {}
    first = threading.Thread(target=lambda: caches.update(first=opened(tmp_path, autoencoder=slow)))
    second = threading.Thread(target=lambda: caches.update(second=opened(tmp_path, autoencoder=quick)))
    with caplog.at_level(logging.INFO, logger="msf.autoencoder.latent_cache"):
        first.start()
        assert entered.wait(30)
        second.start()
        second.join(0.3)
        assert second.is_alive()
        may_go_on.set()
        first.join(30)
        second.join(30)
    assert quick.n_encoded == 0
    assert "waiting for another process" in caplog.text
    assert torch.equal(caches["first"].batch(ROWS), caches["second"].batch(ROWS))


def test_two_processes_that_start_together_leave_one_intact_cache(tmp_path):
    script = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(__file__).rpartition("/")[0]!r})
        from pathlib import Path
        from test_latent_cache import opened
        opened(Path({str(tmp_path)!r}), flips=True)
    """)
    processes = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert n_encoded_by_opening(tmp_path, flips=True)[0] == 0


def test_no_more_than_a_chunk_of_pictures_is_prepared_at_once(tmp_path, monkeypatch):
    sizes = []

    def watched(images, size, channels):
        sizes.append(len(images))
        return prepare_images(images, size, channels)

    monkeypatch.setattr(latent_cache, "prepare_images", watched)
    opened(tmp_path, flips=True)
    assert max(sizes) == CHUNK
    assert sum(sizes) == 4 * N


def test_caches_lie_beside_the_data_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv("MSF_CACHE", raising=False)
    path = tmp_path / "cells.npz"
    assert default_cache_folder(dataset(path=path)) == tmp_path / "cells.npz.latents"
    monkeypatch.setenv("MSF_CACHE", str(tmp_path / "elsewhere"))
    here, there = (default_cache_folder(dataset(path=folder / "cells.npz")) for folder in (tmp_path, tmp_path / "b"))
    assert here.parent == there.parent == tmp_path / "elsewhere"
    assert here != there
    assert default_cache_folder(dataset()) == tmp_path / "elsewhere" / "tiny.latents"


def test_a_folder_that_cannot_be_written_sends_caches_to_the_users_own(tmp_path, monkeypatch):
    monkeypatch.delenv("MSF_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    blocked = tmp_path / "cells.npz.latents"
    blocked.write_text("a file where the folder should be")
    assert default_cache_folder(dataset(path=tmp_path / "cells.npz")).parent == tmp_path / ".cache" / "medsymmflow"


def test_a_data_set_from_a_file_knows_the_file(tmp_path):
    part = dataset()
    arrays = {}
    for split in ("train", "val", "test"):
        arrays |= {f"{split}_images": part.train.images.numpy(), f"{split}_labels": part.train.labels.numpy()}
    np.savez(tmp_path / "cells.npz", **arrays)
    assert load_dataset(tmp_path / "cells.npz").path == tmp_path / "cells.npz"
