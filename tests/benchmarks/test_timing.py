import pytest
import torch

from benchmarks.timing import Plan, interleaved

CPU = torch.device("cpu")


class Machine:
    """A clock that moves only while a call runs."""

    def __init__(self):
        self.now = 0.0
        self.order = []

    def call(self, name, seconds):
        def run():
            self.order.append(name)
            self.now += seconds

        return run


@pytest.fixture
def machine():
    return Machine()


def plan_for(machine, **options):
    return Plan(**{"n_rounds": 4, "warm_up_seconds": 1.0, "sample_seconds": 3.0, **options}, clock=lambda: machine.now)


def test_samples_are_seconds_per_call(machine):
    variants = {"a": machine.call("a", 1.0), "b": machine.call("b", 0.25)}
    samples = interleaved(variants, plan_for(machine), CPU)
    assert samples == {"a": [1.0] * 4, "b": [0.25] * 4}


def test_variants_take_turns_and_short_calls_are_repeated(machine):
    variants = {"a": machine.call("a", 1.0), "b": machine.call("b", 0.5)}
    interleaved(variants, plan_for(machine, n_rounds=2), CPU)
    one_round = ["a"] * 3 + ["b"] * 6
    assert machine.order[-18:] == one_round * 2
    assert machine.order[:-18] == ["a"] * 2 + ["b"] * 3  # one call to measure, then a second of warm-up
