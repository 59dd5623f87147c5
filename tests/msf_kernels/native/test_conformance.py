"""Inputs that only the native kernels find hard; all backends share the cases of `testing/test_conformance.py`."""

import pytest
import torch

from msf_kernels import class_distance, group_norm_silu
from msf_kernels.testing import assert_operator_within_budget

pytestmark = pytest.mark.usefixtures("native")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_norm_whose_first_pixels_are_far_from_all_others_keeps_the_error_budget(memory_format):
    x = torch.randn(2, 32, 20, 13, generator=torch.Generator().manual_seed(0))
    x[:, :, 0] += 3000.0
    x = x.contiguous(memory_format=memory_format)
    weight, bias = torch.ones(32), torch.zeros(32)

    def norm(backend):
        return lambda x, weight, bias: group_norm_silu(x, 8, weight, bias, backend=backend)

    assert_operator_within_budget(norm("native"), norm("reference"), [x, weight, bias], torch.float32)


@pytest.mark.parametrize("n_channels", [1, 2, 3, 4, 5, 100, 1024])
def test_class_distance_serves_any_number_of_channels(n_channels):
    generator = torch.Generator().manual_seed(n_channels)
    inputs = [torch.randn(2, n_channels, 9, 7, generator=generator), torch.randn(5, n_channels, generator=generator)]
    assert_operator_within_budget(
        lambda *tensors: class_distance(*tensors, backend="native")[0],
        lambda *tensors: class_distance(*tensors, backend="reference")[0],
        inputs,
        torch.float32,
        check_gradients=True,
    )


def test_a_map_of_more_than_2_to_the_31_pixels_is_counted_in_full():
    pixel = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)
    semantic = pixel.expand(1, 2, 46_341, 46_342)  # no memory: all pixels are one
    distance, votes = class_distance(semantic, torch.tensor([[9.0, 12.0], [0.0, 0.0]]), backend="native")
    torch.testing.assert_close(distance, torch.tensor([[10.0, 5.0]]))
    torch.testing.assert_close(votes, torch.tensor([[0.0, 1.0]]), rtol=0, atol=0)
