import pytest
import torch

from msf.data import epoch_batches, epoch_order, seeded_generator
from msf.data.batches import balanced_order


def test_an_order_is_a_permutation_that_seed_and_epoch_determine():
    orders = {(seed, epoch): epoch_order(200, seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
    for key, order in orders.items():
        assert torch.equal(order.sort().values, torch.arange(200))
        assert torch.equal(order, epoch_order(200, *key))
    assert len({tuple(order.tolist()) for order in orders.values()}) == 4


def test_the_order_does_not_touch_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    epoch_order(10, 0, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_batches_cover_an_epoch_and_go_on_where_a_run_stopped():
    whole = list(epoch_batches(23, 5, 3, 2))
    assert [len(batch) for batch in whole] == [5, 5, 5, 5, 3]
    assert torch.equal(torch.cat(whole), epoch_order(23, 3, 2))
    rest = list(epoch_batches(23, 5, 3, 2, first_batch=3))
    assert len(rest) == 2
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[3:], strict=True))
    assert list(epoch_batches(23, 5, 3, 2, first_batch=5)) == []


@pytest.mark.parametrize("counts", [(50, 3, 10), (1, 1, 1), (20, 1), (7,), (0, 5, 2)])
def test_a_balanced_order_shows_every_class_equally_often_and_every_picture_of_one_before_any_again(counts):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    n_classes, n = sum(count > 0 for count in counts), len(labels)
    for epoch in range(5):
        order = balanced_order(labels, 3, epoch)
        assert torch.equal(order, balanced_order(labels, 3, epoch))
        assert len(order) == n
        for label, count in enumerate(counts):
            own = order[labels[order] == label].bincount(minlength=n)[labels == label]
            assert int(own.sum()) in ((n // n_classes, -(-n // n_classes)) if count else (0,))
            assert count == 0 or int(own.max() - own.min()) <= 1


def test_balanced_orders_of_epochs_differ_and_mix_the_classes():
    labels = torch.arange(100) % 2
    first, second = (balanced_order(labels, 0, epoch) for epoch in range(2))
    assert not torch.equal(first, second)
    changes = (labels[first].diff() != 0).sum()
    assert 30 < changes < 70


def test_balanced_batches_go_on_where_a_run_stopped():
    labels = (torch.arange(23) > 4).long()
    whole = list(epoch_batches(23, 5, 3, 2, balanced_by=labels))
    assert torch.equal(torch.cat(whole), balanced_order(labels, 3, 2))
    rest = list(epoch_batches(23, 5, 3, 2, first_batch=3, balanced_by=labels))
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[3:], strict=True))


def test_neighbouring_seed_words_give_unrelated_streams():
    words = [(0, 0), (0, 1), (1, 0), (1, 1), (0,), (1,), (0, 0, 1)]
    draws = torch.stack([torch.rand(2000, generator=seeded_generator(*w)) for w in words])
    correlation = torch.corrcoef(draws) - torch.eye(len(words))
    assert correlation.abs().max() < 5 / 2000**0.5


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="whole numbers >= 0, at least one; got"):
        seeded_generator()
    with pytest.raises(ValueError, match=r"got \(-1, 0\)"):
        epoch_order(5, -1, 0)
    with pytest.raises(ValueError, match="batch_size must be >= 1 and first_batch >= 0; got 0 and 0"):
        list(epoch_batches(5, 0, 0, 0))
    with pytest.raises(ValueError, match="got 2 and -1"):
        list(epoch_batches(5, 2, 0, 0, first_batch=-1))
