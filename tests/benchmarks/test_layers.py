import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import layers
from benchmarks.context import Context, Limits
from benchmarks.rows import RowWriter
from benchmarks.suites import network
from msf.network.inference import inference_form
from msf_kernels.prepared import PreparedConvolution


@pytest.fixture
def context():
    device = torch.device("cpu")
    return Context(device, RowWriter("layers", device), quick=True)


def test_the_layers_account_for_the_arithmetic_that_the_flop_counter_sees(context):
    recorder, _ = layers.measure("pixel", context, 1)
    # Which attention and which norm run depends on the machine, and the counter does not know all of them.
    counted = sum(layer.flops * layer.n_calls for (kind, _), layer in recorder.layers.items() if "convolution" in kind)
    flow = network.workload("pixel", context).flow
    velocity = inference_form(flow.network, (1.0,), dtype=torch.bfloat16)
    z = torch.zeros(2, flow.image_shape[0] + flow.semantic_shape[0], *flow.image_shape[1:])
    with FlopCounterMode(display=False) as counter:
        velocity(z, 1.0)
    by_operator = counter.get_flop_counts()["Global"]
    assert sum(flops for operator, flops in by_operator.items() if "convolution" in str(operator)) == counted > 0


def test_the_layers_are_as_they_were_afterwards(context):
    before = PreparedConvolution.__call__
    layers.measure("pixel", context, 1)
    assert PreparedConvolution.__call__ is before


def test_the_table_adds_up(context):
    recorder, whole = layers.measure("pixel", context, 3)
    text = layers.table(recorder, whole, Limits(1e10, {torch.bfloat16: 1e12}), 2)
    rows = [line.split("|")[1:-1] for line in text.splitlines()[2:]]
    gflop = [float(row[3]) for row in rows if row[3].strip()]
    assert sum(gflop[:-1]) == pytest.approx(gflop[-1], abs=0.01)
