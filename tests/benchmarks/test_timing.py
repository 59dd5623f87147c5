import pytest
import torch

from benchmarks.timing import Part, Plan, interleaved

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


def test_parts_of_a_variant_add_up_by_their_weight(machine):
    parts = [Part(machine.call("encode", 2.0)), Part(machine.call("sample", 0.5), weight=8)]
    plan = plan_for(machine, warm_up_seconds=0.0, sample_seconds=0.0, n_rounds=2)
    assert interleaved({"a": parts}, plan, CPU) == {"a": [6.0, 6.0]}
    assert machine.order == ["encode", "sample"] * 2


def test_with_a_cold_cache_every_call_comes_after_an_eviction(machine, monkeypatch):
    monkeypatch.setattr("benchmarks.timing.evict_caches", lambda device: machine.call("evict", 100.0)())
    samples = interleaved({"a": machine.call("a", 0.25)}, plan_for(machine, n_rounds=3, cache="cold"), CPU)
    assert samples == {"a": [0.25] * 3}
    assert machine.order[-6:] == ["evict", "a"] * 3
