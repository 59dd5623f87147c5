"""The extension's normals against the definition where it is hardest to agree: at the ends of the uniforms."""

import math

import pytest
import torch

from msf_kernels import philox_normal, philox_words

pytestmark = pytest.mark.usefixtures("native")


def test_normals_agree_with_the_definition_on_a_million_draws():
    index = torch.arange(8) * (2**37 + 1)
    got = philox_normal(index, (131072,), 2**63 - 1, stream=2**32 - 1, backend="native")
    expected = philox_normal(index, (131072,), 2**63 - 1, stream=2**32 - 1, backend="reference")
    assert float((got - expected).abs().max()) < 2e-6


def test_normals_of_rare_large_magnitude_agree_with_the_definition():
    # Words whose uniform is nearly 0 make the largest radius; seeds were found by looking at many blocks.
    block = torch.arange(2**20)
    counter = torch.stack([block, torch.zeros_like(block), torch.zeros_like(block), torch.zeros_like(block)], dim=1)
    words = philox_words(counter, torch.tensor([9, 0]), backend="native")
    blocks = words[:, 0].topk(16, largest=False).indices.tolist() + words[:, 0].topk(16).indices.tolist()
    positions = [4 * block + i for block in blocks for i in (0, 1)]
    size = 4 * (max(blocks) + 1)
    got = philox_normal(torch.tensor([0]), (size,), 9, backend="native")[0, positions]
    expected = philox_normal(torch.tensor([0]), (size,), 9, backend="reference")[0, positions]
    assert float(expected.abs().max()) > math.sqrt(-2 * math.log(2**-19)) / 2
    assert float((got - expected).abs().max()) < 2e-6


def test_a_longer_sample_begins_with_the_shorter_one():
    index = torch.tensor([3, 2**33])
    long = philox_normal(index, (5000,), 1, backend="native")
    for size in (1, 2, 3, 5, 63, 64, 65, 1023, 1024, 1025, 4097):
        assert torch.equal(philox_normal(index, (size,), 1, backend="native"), long[:, :size])
