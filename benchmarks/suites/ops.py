"""Operators against what one would write in PyTorch or take from a library, and what a call costs before it computes.

`ours` is the backend that `auto` takes for these tensors on this device. The boundary of a call is the time of a public
call on a few numbers less that of the raw PyTorch operation on the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

import msf_kernels
from benchmarks.agreement import no_agreement, same_numbers
from benchmarks.context import Context
from benchmarks.peers import attention, metrics, norms
from benchmarks.peers.distances import distances_class_by_class
from benchmarks.registry import Build, Comparison, Work
from benchmarks.rows import OURS
from benchmarks.timing import Plan
from msf.judge.selective import aurc

SUITE = "ops"
FLOAT_BYTES = 4
COLD = Plan(n_rounds=31, warm_up_seconds=0.1, cache="cold")


def jobs() -> Iterator[Comparison]:
    yield _group_norm(torch.float32)
    yield _group_norm(torch.bfloat16)
    yield _group_norm(torch.bfloat16, cold=True)
    yield _attention(torch.float32)
    yield _attention(torch.bfloat16)
    yield _class_distance()
    yield _rk_combine(cold=False)
    yield _rk_combine(cold=True)
    yield _philox_normal()
    yield _area_under_risk_coverage()
    yield from _boundaries()


def normal(context: Context, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the same numbers on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(context.device, dtype)


def simple(make: Callable[[Context], Callable[[], Tensor]]) -> Build:
    """Name the type of a variant that is one call."""
    return make


def _tests(operator: str) -> tuple[str, ...]:
    return (f"tests/msf_kernels/{operator}/test_{operator}.py",)


def _group_norm(dtype: torch.dtype, *, cold: bool = False) -> Comparison:
    name = str(dtype).removeprefix("torch.")
    shape = (8, 128, 32, 32)
    numel = 8 * 128 * 32 * 32

    def inputs(context: Context) -> tuple[Tensor, Tensor, Tensor]:
        x = normal(context, *shape, dtype=dtype).to(memory_format=torch.channels_last)
        return x, normal(context, 128, dtype=dtype), normal(context, 128, dtype=dtype)

    def ours(context: Context) -> Callable[[], Tensor]:
        x, weight, bias = inputs(context)
        return lambda: msf_kernels.group_norm_silu(x, 32, weight, bias)

    def eager(context: Context) -> Callable[[], Tensor]:
        x, weight, bias = inputs(context)
        return lambda: functional.silu(functional.group_norm(x, 32, weight, bias))

    return Comparison(
        suite=SUITE,
        name=f"group-norm-silu-{name}" + ("-cold" if cold else ""),
        note=f"8x128x32x32 channels-last {name}, 32 groups; {'cold' if cold else 'warm'} cache",
        tests=_tests("group_norm_silu"),
        variants={OURS: simple(ours), "eager": simple(eager)}
        | ({} if cold else {"liger": lambda context: norms.liger_group_norm_silu(*inputs(context), 32)}),
        plan=COLD if cold else Plan(),
        agree=same_numbers(3e-2 if dtype == torch.bfloat16 else 1e-4),
        work=Work(0.0, 2 * numel * dtype.itemsize, dtype),
        goals={} if cold else {"eager": 1.5},
    )


def _attention(dtype: torch.dtype) -> Comparison:
    name = str(dtype).removeprefix("torch.")
    n, tokens, heads, width = 16, 256, 4, 64

    def inputs(context: Context) -> Tensor:
        return normal(context, n, tokens, 3 * heads * width, dtype=dtype)

    def ours(context: Context) -> Callable[[], Tensor]:
        qkv = inputs(context)
        return lambda: msf_kernels.spatial_attention(qkv, heads)

    def peer(name: str) -> Build:
        return lambda context: attention.PEERS[name](inputs(context), heads)

    elements = n * tokens * heads * width
    return Comparison(
        suite=SUITE,
        name=f"spatial-attention-{name}",
        note=f"{n} maps of {tokens} tokens, {heads} heads of {width}, packed per head, {name}; copies count",
        tests=(*_tests("spatial_attention"), "tests/msf_kernels/native/test_attention.py"),
        variants={OURS: simple(ours)} | {name: peer(name) for name in attention.PEERS},
        agree=same_numbers(3e-2 if dtype == torch.bfloat16 else 1e-4),
        work=Work(4.0 * elements * tokens, 4 * elements * dtype.itemsize, dtype),
    )


def _class_distance() -> Comparison:
    def inputs(context: Context) -> tuple[Tensor, Tensor]:
        return normal(context, 64, 3, 32, 32), normal(context, 8, 3)

    def ours(context: Context) -> Callable[[], Tensor]:
        semantic, codes = inputs(context)
        return lambda: msf_kernels.class_distance(semantic, codes)[0]

    def authors(context: Context) -> Callable[[], Tensor]:
        semantic, codes = inputs(context)
        palette = [code.tolist() for code in codes]
        return lambda: distances_class_by_class(semantic, palette)

    pixels = 64 * 32 * 32
    return Comparison(
        suite=SUITE,
        name="class-distance",
        note="64 maps of 3x32x32, 8 classes, float32; ours also counts votes",
        tests=_tests("class_distance"),
        variants={OURS: simple(ours), "authors": simple(authors)},
        agree=same_numbers(1e-4),
        work=Work(9.0 * 8 * pixels, 3 * FLOAT_BYTES * pixels),
        goals={"authors": 10.0},
    )


def _rk_combine(*, cold: bool) -> Comparison:
    shape = (64, 8, 32, 32)

    def inputs(context: Context) -> tuple[Tensor, list[Tensor]]:
        return normal(context, *shape), [normal(context, *shape), normal(context, *shape).flip(0)]

    def ours(context: Context) -> Callable[[], Tensor]:
        state, slopes = inputs(context)
        return lambda: msf_kernels.rk_combine(state, slopes, (0.5, 0.5), 0.04)

    def eager(context: Context) -> Callable[[], Tensor]:
        state, slopes = inputs(context)
        return lambda: state + 0.04 * (0.5 * slopes[0] + 0.5 * slopes[1])

    numel = 64 * 8 * 32 * 32
    return Comparison(
        suite=SUITE,
        name="rk-combine-heun" + ("-cold" if cold else ""),
        note=f"64x8x32x32 float32, two slopes; {'cold' if cold else 'warm'} cache",
        tests=_tests("rk_combine"),
        variants={OURS: simple(ours), "eager": simple(eager)},
        plan=COLD if cold else Plan(),
        agree=same_numbers(1e-4),
        work=Work(4.0 * numel, 4.0 * FLOAT_BYTES * numel),
        goals={} if cold else {"eager": 1.5},
    )


def _philox_normal() -> Comparison:
    def ours(context: Context) -> Callable[[], Tensor]:
        index = torch.arange(64, device=context.device)
        return lambda: msf_kernels.philox_normal(index, (3, 32, 32), 0)

    def torch_randn(context: Context) -> Callable[[], Tensor]:
        return lambda: torch.randn(64, 3, 32, 32, device=context.device)

    return Comparison(
        suite=SUITE,
        name="philox-normal",
        note="64 samples of 3x32x32 float32",
        tests=_tests("philox_normal"),
        variants={OURS: simple(ours), "torch.randn": simple(torch_randn)},
    )


def _probabilities(context: Context) -> tuple[Tensor, Tensor]:
    probability = torch.softmax(3 * normal(context, 10_000, 8), dim=1)
    chosen = torch.multinomial(probability.cpu(), 1, generator=torch.Generator().manual_seed(1))
    return probability, chosen[:, 0].to(context.device)


def _area_under_risk_coverage() -> Comparison:
    def ours(context: Context) -> Callable[[], Tensor]:
        probability, labels = _probabilities(context)

        def run() -> Tensor:
            confidence, predicted = probability.max(dim=1)
            return torch.tensor(aurc(-confidence, predicted != labels))

        return run

    return Comparison(
        suite=SUITE,
        name="metrics-aurc",
        note="area under the risk-coverage curve of 10,000 predictions of 8 classes",
        tests=("tests/msf/judge/test_selective.py",),
        variants={
            OURS: simple(ours),
            "torch-uncertainty": lambda context: metrics.torch_uncertainty_aurc(*_probabilities(context)),
            "torchmetrics": lambda context: metrics.torchmetrics_aurc(),
        },
        plan=Plan(n_rounds=21),
        # The peer integrates by trapezoids from the first prediction, ours is the mean over all coverages.
        agree=same_numbers(2e-3),
    )


def _boundaries() -> Iterator[Comparison]:
    def ours_combine(context: Context) -> Callable[[], Tensor]:
        state, slope = normal(context, 4), normal(context, 4)
        return lambda: msf_kernels.rk_combine(state, (slope,), (1.0,), 0.5)

    def torch_add(context: Context) -> Callable[[], Tensor]:
        state, slope = normal(context, 4), normal(context, 4)
        return lambda: torch.add(state, slope, alpha=0.5)

    yield Comparison(
        suite=SUITE,
        name="boundary-rk-combine",
        note="4 numbers, one slope",
        tests=_tests("rk_combine"),
        variants={OURS: simple(ours_combine), "torch.add": simple(torch_add)},
        agree=same_numbers(1e-4),
        is_boundary=True,
    )

    def ours_norm(context: Context) -> Callable[[], Tensor]:
        x, weight, bias = normal(context, 1, 4, 2, 2), normal(context, 4), normal(context, 4)
        return lambda: msf_kernels.group_norm_silu(x, 2, weight, bias, silu=False)

    def torch_norm(context: Context) -> Callable[[], Tensor]:
        x, weight, bias = normal(context, 1, 4, 2, 2), normal(context, 4), normal(context, 4)
        return lambda: torch.group_norm(x, 2, weight, bias)

    yield Comparison(
        suite=SUITE,
        name="boundary-group-norm",
        note="1x4x2x2, without SiLU",
        tests=_tests("group_norm_silu"),
        variants={OURS: simple(ours_norm), "torch.group_norm": simple(torch_norm)},
        agree=same_numbers(1e-4),
        is_boundary=True,
    )

    def ours_philox(context: Context) -> Callable[[], Tensor]:
        index = torch.arange(1, device=context.device)
        return lambda: msf_kernels.philox_normal(index, (4,), 0)

    yield Comparison(
        suite=SUITE,
        name="boundary-philox-normal",
        note="4 numbers",
        tests=_tests("philox_normal"),
        variants={OURS: simple(ours_philox), "torch.randn": lambda c: lambda: torch.randn(1, 4, device=c.device)},
        agree=no_agreement,
        is_boundary=True,
    )
