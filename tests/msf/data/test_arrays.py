"""What a caller gives becomes a tensor, or is refused with a word on what was wanted."""

import numpy as np
import pytest
import torch

from msf.data.arrays import as_labels, as_tensor


@pytest.mark.parametrize(
    "labels",
    [
        [0, 2, 1],
        (0, 2, 1),
        [np.int64(0), np.uint8(2), 1],
        [torch.tensor(0), torch.tensor(2), torch.tensor(1)],
        np.array([0, 2, 1]),
        torch.tensor([0, 2, 1]),
    ],
    ids=repr,
)
def test_labels_in_any_form_of_whole_numbers(labels):
    assert torch.equal(as_labels(labels), torch.tensor([0, 2, 1]))
    assert as_labels(labels).dtype == torch.int64


def test_no_label_at_all():
    assert as_labels([]).shape == (0,)
    assert torch.equal(as_labels(range(3)), torch.arange(3))


@pytest.mark.parametrize(
    "labels", [0, None, "012", b"01", [1.0], [0.5], ["0"], [None], [True], [[0]], {0}, {0: 1}], ids=repr
)
def test_other_labels_are_refused(labels):
    with pytest.raises(TypeError, match="labels must be a tensor, an array or a list of whole numbers; got "):
        as_labels(labels)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**400])
def test_labels_beyond_64_bits_are_refused(number):
    with pytest.raises(ValueError, match="labels must fit 64 bits"):
        as_labels([0, number])


def test_masked_arrays_are_refused_since_their_mask_would_be_lost():
    with pytest.raises(TypeError, match="images must be a plain array; got a masked one"):
        as_tensor("images", np.ma.masked_greater(np.zeros((2, 8, 8), np.uint8), 0))
