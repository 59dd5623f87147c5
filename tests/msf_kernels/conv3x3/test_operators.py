"""The registered operator behind the convolution, its choice of backend; private names are used on purpose."""

import json
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from msf_kernels import conv3x3, pack_weight
from msf_kernels.conv3x3._call import ConvCall
from msf_kernels.conv3x3._choice import UNMEASURED_HALF_ORDER, auto_order
from msf_kernels.conv3x3._measured import TABLE

OPERATORS = torch.ops.msf_triton


def seeded(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def conv_arguments(kind, dtype):
    skip = seeded(2, 3, 6, 5, dtype=dtype) if kind == "plain" else None
    total = 5 if skip is None else 8
    phases, side = (4, 2) if kind == "upsample" else (1, 3)
    return (
        seeded(2, 5, 6, 5, dtype=dtype).to(memory_format=torch.channels_last),
        seeded(phases, 8, side, side, total, dtype=dtype),
        seeded(8),
        None,
        skip,
        2 if kind == "stride" else 1,
        kind == "upsample",
    )


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("plain", torch.float32), ("stride", torch.float16), ("upsample", torch.float32)],
    ids=str,
)
def test_the_operator_passes_opcheck(monkeypatch, kind, dtype):
    monkeypatch.setenv("TRITON_INTERPRET", "0")  # the formula is registered in the same way, and faster here
    torch.library.opcheck(OPERATORS.conv3x3_fwd, conv_arguments(kind, dtype))


@pytest.mark.parametrize("kind", ["plain", "stride", "upsample"])
def test_without_a_gpu_and_an_interpreter_the_operator_computes_the_definition(monkeypatch, kind):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    x, weight, bias, residual, skip, stride, upsample = conv_arguments(kind, torch.float64)
    got = OPERATORS.conv3x3_fwd(x, weight, bias, residual, skip, stride, upsample)
    by_phase = weight.permute(0, 1, 4, 2, 3)
    options = {"skip": skip, "stride": stride, "upsample": upsample}
    expected = conv3x3(x, by_phase if upsample else by_phase[0], bias, backend="reference", **options)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert got.stride() == expected.stride()


@pytest.mark.interpreter
@pytest.mark.parametrize(("kind", "share"), [("plain", 1.0), ("stride", 0.25), ("upsample", 4 * 4 / 9)])
def test_flops_are_the_true_arithmetic(kind, share):
    x, weight = seeded(2, 4, 6, 8), seeded(8, 4, 3, 3)
    options = {"stride": 2 if kind == "stride" else 1, "upsample": kind == "upsample"}
    weight = pack_weight(weight, upsample=options["upsample"])
    with FlopCounterMode(display=False) as counter:
        conv3x3(x, weight, None, backend="triton", **options)
    assert counter.get_total_flops() == round(share * 2 * 2 * 8 * 4 * 9 * 6 * 8)


def test_flops_of_the_library_with_summed_taps_are_four_ninths():
    x, weight = seeded(2, 4, 6, 8), seeded(8, 4, 3, 3)
    flops, summed = [], pack_weight(weight, upsample=True)
    for given in (weight, summed):
        with FlopCounterMode(display=False) as counter:
            conv3x3(x, given, None, upsample=True, backend="aten")
        flops.append(counter.get_total_flops())
    assert 9 * flops[1] == 4 * flops[0]


@pytest.mark.interpreter
def test_a_call_is_one_operator():
    with torch.profiler.profile() as profile:
        conv3x3(seeded(1, 4, 4, 4), seeded(4, 4, 3, 3), None, backend="triton")
    names = [event.name for event in profile.events() if event.name.startswith("msf_triton::")]
    assert names == ["msf_triton::conv3x3_fwd"]


@pytest.mark.parametrize("backend", ["aten", "reference", pytest.param("triton", marks=pytest.mark.interpreter)])
def test_calls_are_traced_into_one_graph(backend):
    def branch(x, weight, vector, upsample):
        h = conv3x3(x, weight, vector, residual=x, backend=backend)
        return conv3x3(h, weight, vector, upsample=upsample, backend=backend)

    compiled = torch.compile(branch, fullgraph=True, backend="aot_eager", dynamic=False)
    x, weight, vector = seeded(2, 8, 5, 4), seeded(8, 8, 3, 3, seed=1) / 8, seeded(8, seed=2)
    for upsample in (False, True):
        torch.testing.assert_close(compiled(x, weight, vector, upsample), branch(x, weight, vector, upsample))


def order_of(*arguments, **options):
    return auto_order(ConvCall(*arguments, **options))


ROW = {
    "dtype": "bfloat16",
    "in_channels": 256,
    "out_channels": 256,
    "stride": 1,
    "upsample": False,
    "n_pixels": 256,
    "microseconds": {"triton": 41.0, "aten": 55.5},
}


def on_gpu(n=8, channels=256, side=16):
    """What the choice reads of a map and a weight on a GPU."""
    device = torch.device("cuda", 0)
    x = SimpleNamespace(is_cuda=True, device=device, dtype=torch.bfloat16, shape=(n, channels, side, side))
    return x, SimpleNamespace(shape=(256, 256, 3, 3))


@pytest.fixture
def gpu_with(monkeypatch):
    def install(*rows):
        calls = TABLE.parse({"format": 1, "gpus": {"Test GPU": list(rows)}}, "x.json")
        monkeypatch.setitem(vars(TABLE), "calls", calls)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _index: "Test GPU")

    return install


def test_the_shipped_tables_are_valid():
    for operator in ("conv3x3", "spatial_attention", "attention_block"):
        table = import_module(f"msf_kernels.{operator}._measured").TABLE
        assert table.calls == table.parse(json.loads(table.path.read_text()), table.path.name)


def test_measurements_decide_and_the_batch_has_no_say(gpu_with):
    gpu_with()
    assert order_of(*on_gpu(), None) == UNMEASURED_HALF_ORDER
    gpu_with(ROW, ROW | {"n_pixels": 1024, "microseconds": {"aten": 3.0, "triton": 4.0}})
    assert order_of(*on_gpu(), None) == ("triton", "aten", "reference")
    assert order_of(*on_gpu(n=4096), None) == ("triton", "aten", "reference")
    assert order_of(*on_gpu(side=32), None) == ("aten", "triton", "reference")
    assert order_of(*on_gpu(side=4), None)[0] == "triton"
    assert order_of(*on_gpu(channels=128), None) == UNMEASURED_HALF_ORDER
    skip = SimpleNamespace(shape=(8, 128, 16, 16))
    assert order_of(*on_gpu(channels=128), None, skip=skip)[0] == "triton"


def test_rows_of_one_gpu_are_replaced_and_others_kept():
    table = {"format": 1, "gpus": {"Old GPU": [ROW], "Test GPU": [ROW, ROW]}}
    merged = TABLE.merged(table, "x.json", "Test GPU", [ROW])
    assert merged["gpus"] == {"Old GPU": [ROW], "Test GPU": [ROW]}
    with pytest.raises(ValueError, match=r"x.json: gpus\['Test GPU'\]\[0\] must have the fields"):
        TABLE.merged(table, "x.json", "Test GPU", [{"dtype": "bfloat16"}])
    with pytest.raises(ValueError, match="in_channels must be an integer >= 1; got 0"):
        TABLE.merged(table, "x.json", "Test GPU", [ROW | {"in_channels": 0}])


@pytest.mark.interpreter
def test_every_configuration_sums_a_value_in_one_order():
    from msf_kernels._triton.implicit_gemm import _configs

    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for n_out in (6, 64, 128, 256):
            for n_pixels in (16, 64, 1024):
                for capability in (80, 90, 100, None):
                    configs = _configs(dtype, n_out, 128, n_pixels, capability)
                    assert 1 <= len(configs) <= 6
                    assert len({config.blocks["BLOCK_K"] for config in configs}) == 1
