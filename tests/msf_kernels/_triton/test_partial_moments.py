"""Moments of a map in Triton's interpreter against those in plain PyTorch; the launcher is tested on its own."""

import importlib
import sys

import pytest
import torch

from msf_kernels.partial_moments import CHUNK_PIXELS, empty_moments, map_moments, n_chunks_of
from msf_kernels.testing import poison_empty


def seeded(*shape, seed=0, mean=0.0):
    return mean + torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.interpreter
@pytest.mark.parametrize(("channels", "bundle"), [(8, 4), (70, 2), (35, 1), (64, 32)])
@pytest.mark.parametrize("size", [(4, 4), (9, 13), (16, 8)])
def test_the_kernel_leaves_the_moments_of_every_chunk_and_bundle(channels, bundle, size):
    from msf_kernels._triton.partial_moments import launch_map_moments

    x = seeded(2, channels, *size, mean=3.0)
    for feature_map in (x, x.to(memory_format=torch.channels_last), x.transpose(2, 3)):
        with poison_empty():
            got = launch_map_moments(feature_map, bundle)
        torch.testing.assert_close(got, map_moments(feature_map, bundle), rtol=1e-5, atol=1e-4)


def test_moments_of_chunks_combine_to_those_of_the_map():
    x = seeded(2, 8, 9, 13, mean=5.0).double()
    count, mean, deviation = map_moments(x, 4).unbind(-1)
    assert count.sum(1).tolist() == [[4 * 117.0] * 2] * 2
    grouped = x.reshape(2, 2, -1)
    total = (count * mean).sum(1) / count.sum(1)
    torch.testing.assert_close(total, grouped.mean(2))
    squares = (deviation + count * (mean - total[:, None]) ** 2).sum(1)
    torch.testing.assert_close(squares / count.sum(1), grouped.var(2, correction=0))


def test_a_map_from_upsampling_is_cut_phase_by_phase():
    x = torch.zeros(1, 2, 8, 6)
    x[:, :, 1::2, 0::2] = 7.0  # odd rows, even columns: the third phase
    means = map_moments(x, 2, upsample=True)[0, :, 0, 1]
    assert means.tolist() == [0.0, 0.0, 7.0, 0.0]


@pytest.mark.parametrize("upsample", [False, True])
@pytest.mark.parametrize("size", [(4, 4), (16, 24), (0, 4)])
def test_room_for_moments_has_their_shape(upsample, size):
    x = torch.zeros(3, 8, *size)
    made = map_moments(x, 4, upsample=upsample)
    assert (
        empty_moments(x, 4, upsample=upsample).shape == made.shape == (3, n_chunks_of(*size, upsample=upsample), 2, 3)
    )
    assert made.shape[1] <= 4 * (size[0] * size[1] // CHUNK_PIXELS + 1)
    assert empty_moments(x, 0).numel() == 0


def test_the_old_name_of_the_module_warns(monkeypatch):
    monkeypatch.delitem(sys.modules, "msf_kernels.moments", raising=False)
    with pytest.warns(DeprecationWarning, match="msf_kernels.moments is now msf_kernels.partial_moments"):
        assert importlib.import_module("msf_kernels.moments").map_moments is map_moments
