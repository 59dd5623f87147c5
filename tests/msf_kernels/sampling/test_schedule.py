import random

import pytest
import torch

from msf_kernels.sampling.blocks import BlockBuffer, expand_ranges
from msf_kernels.sampling.schedule import Chunk, Schedule, block_bounds


def items(chunks):
    return [(c.row, s) for c in chunks for s in range(c.first, c.first + c.count)]


@pytest.mark.parametrize(
    ("n_samples", "checkpoints", "bounds"),
    [
        (1, (), (0, 1)),
        (64, (), (0, 64)),
        (150, (), (0, 64, 128, 150)),
        (100, (8, 12, 90), (0, 8, 12, 76, 90, 100)),
        (10, (8, 10, 16), (0, 8, 10)),
    ],
)
def test_blocks_end_at_checkpoints_and_have_at_most_64_samples(n_samples, checkpoints, bounds):
    assert block_bounds(n_samples, checkpoints) == bounds


@pytest.mark.parametrize("n_slots", [1, 7, 64, 1000])
def test_every_work_item_comes_once_and_in_order(n_slots):
    schedule = Schedule(3, block_bounds(130))
    batches = []
    while batch := schedule.take(n_slots):
        batches.append(items(batch))
    assert [len(batch) for batch in batches[:-1]] == [n_slots] * (len(batches) - 1)
    assert sum(batches, []) == [(row, s) for row in range(3) for s in range(130)]


def test_work_that_was_put_back_comes_first_again():
    schedule = Schedule(2, block_bounds(10))
    batch = schedule.take(7)
    schedule.put_back(batch)
    assert items(schedule.take(3)) == [(0, 0), (0, 1), (0, 2)]
    assert items(schedule.take(17)) == [(0, s) for s in range(3, 10)] + [(1, s) for s in range(10)]


def test_gated_blocks_wait_until_their_input_has_passed_while_there_is_other_work():
    schedule = Schedule(3, (0, 4, 8), is_gated=True)
    assert items(schedule.take(8)) == [(row, s) for row in (0, 1) for s in range(4)]
    schedule.passed(0, 0)
    schedule.settled(1)
    assert items(schedule.take(8)) == [(0, s) for s in range(4, 8)] + [(2, s) for s in range(4)]
    schedule.settled(2)
    assert schedule.take(8) == []


def test_idle_slots_evaluate_undecided_inputs_ahead_and_forget_it_when_they_settle():
    schedule = Schedule(1, (0, 4, 8, 12), is_gated=True)
    assert items(schedule.take(6)) == [(0, s) for s in range(6)]
    schedule.passed(0, 0)  # its next block is on the way already: not issued twice
    assert items(schedule.take(2)) == [(0, 6), (0, 7)]
    schedule.settled(0)
    assert schedule.take(6) == []


def test_an_order_that_is_not_a_permutation_is_refused():
    with pytest.raises(ValueError, match="permutation of the 3 micro-batch numbers"):
        Schedule(1, block_bounds(10)).reorder([0, 1, 1], 4)


def test_the_buffer_gives_out_whole_blocks_in_order_whatever_the_order_of_arrival():
    bounds = block_bounds(150, (10, 20))
    schedule = Schedule(4, bounds)
    batches = []
    while batch := schedule.take(13):
        batches.append(batch)
    random.Random(0).shuffle(batches)
    buffer = BlockBuffer(bounds, ["x"])
    seen = {row: [] for row in range(4)}
    for batch in batches:
        values = [1000.0 * row + s for row, s in items(batch)]
        padding = [-1.0] * (13 - len(values))
        buffer.store(batch, {"x": torch.tensor(values + padding), "unread": torch.zeros(13)})
        for blocks in buffer.complete():
            assert list(blocks.values) == ["x"]
            assert blocks.rows.tolist() == list(blocks.row)
            for i, (row, block, first) in enumerate(zip(blocks.row, blocks.block, blocks.first, strict=True)):
                assert first == bounds[block] == len(seen[row])
                assert blocks.values["x"].shape[1] == bounds[block + 1] - first
                seen[row] += blocks.values["x"][i].tolist()
    for row, values in seen.items():
        assert values == [1000.0 * row + s for s in range(150)]


def test_the_buffer_holds_only_what_is_in_flight():
    bounds = block_bounds(100 * 64)
    schedule, buffer = Schedule(3, bounds), BlockBuffer(bounds, ["x"])
    while batch := schedule.take(50):
        buffer.store(batch, {"x": torch.zeros(50, 2)})
        for _ in buffer.complete():
            pass
    assert buffer._pool["x"].shape[0] <= 3 * 64


def test_dropped_inputs_give_their_slots_back():
    buffer = BlockBuffer((0, 4, 8), ["x"])
    for row in range(50):
        buffer.store([Chunk(row, 1, 4, 4)], {"x": torch.zeros(4)})
        assert list(buffer.complete()) == []
        buffer.drop(row)
    assert buffer._pool["x"].shape[0] == 4


def test_ranges_are_expanded_one_after_the_other():
    assert expand_ranges(torch.tensor([5, 0, 9]), torch.tensor([2, 3, 1])).tolist() == [5, 6, 0, 1, 2, 9]
