"""Dropout that follows the items: right on the average, and the same however a batch is cut."""

import pytest
import torch
from torch import nn

from msf.training.item_dropout import ItemDropout, drop_by_item, of_items


def layers(p=0.3):
    network = nn.Sequential(nn.Dropout(p), nn.Sequential(nn.Identity(), nn.Dropout(p)), nn.Dropout(0.0))
    return network, drop_by_item(network)


def test_elements_are_dropped_with_the_stated_probability_and_the_rest_is_scaled():
    network, replaced = layers()
    assert [type(layer) for layer in (network[0], network[1][1], network[2])] == [ItemDropout, ItemDropout, nn.Dropout]
    h = torch.ones(64, 4, 16, 16)
    with of_items(replaced[:1], torch.arange(64), seed=3):
        out = network[0](h)
    share = float((out == 0).double().mean())
    assert abs(share - 0.3) < 5 * (0.3 * 0.7 / h.numel()) ** 0.5
    torch.testing.assert_close(out[out != 0], torch.full_like(out[out != 0], 1 / 0.7))


def test_an_item_has_its_mask_in_any_batch_and_every_layer_and_seed_another_one():
    network, replaced = layers()
    h = torch.ones(6, 2, 4, 4)

    def masks(items, layer=0, seed=0):
        with of_items(replaced, items, seed):
            return replaced[layer](h[: len(items)]) == 0

    whole = masks(torch.arange(6))
    assert torch.equal(masks(torch.tensor([5, 1])), whole[[5, 1]])
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(masks(torch.arange(6), layer=1), whole)
    assert not torch.equal(masks(torch.arange(6), seed=1), whole)


def test_without_items_it_is_refused_in_training_and_off_in_evaluation():
    _, (layer, _) = layers()
    with pytest.raises(RuntimeError, match="of_items"):
        layer(torch.ones(1, 1, 2, 2))
    assert torch.equal(layer.eval()(torch.ones(1, 1, 2, 2)), torch.ones(1, 1, 2, 2))


def test_gradients_flow_where_elements_are_kept():
    _, replaced = layers()
    h = torch.ones(2, 3, 4, 4, requires_grad=True)
    with of_items(replaced, torch.arange(2), 0):
        out = replaced[0](h)
    out.sum().backward()
    assert torch.equal(h.grad, out.detach())
