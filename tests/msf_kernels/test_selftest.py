import json
import re
import subprocess
import sys
from contextlib import nullcontext
from unittest.mock import MagicMock

import pytest
import torch

from msf_kernels import backends, rk_combine
from msf_kernels._derivatives import Derivatives
from msf_kernels.backend import Backend, _registry
from msf_kernels.selftest import main
from msf_kernels.testing import conformance
from msf_kernels.testing.case import InputDraw
from msf_kernels.testing.cases import fixed_cases, random_case
from msf_kernels.testing.conformance import check, expectations
from msf_kernels.testing.execution import require_same_bits, run_captured, run_compiled

CPU = torch.device("cpu")
OPERATORS = sorted(backends())


def case_named(operator, label):
    (case,) = (case for case in fixed_cases(operator) if case.label == label)
    return case


def judge(operator, label, backend, dtype=torch.float32):
    case = case_named(operator, label)
    return check(case, backend, dtype, CPU, expectations(case, dtype, CPU))


@pytest.fixture
def install(monkeypatch):
    """Give an operator one more backend of our own for a test."""
    monkeypatch.setattr(conformance, "OWN_BACKENDS", (*conformance.OWN_BACKENDS, "faulty"))

    def add(operator, run, **options):
        faulty = Backend("faulty", run, derivatives=Derivatives.ALL, **options)
        monkeypatch.setitem(_registry[operator].backends, "faulty", faulty)

    return add


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_has_the_shapes_on_which_kernels_break(operator):
    labels = [case.label for case in fixed_cases(operator)]
    assert {"tiny", "prime", "empty batch"} <= set(labels)
    assert len(labels) == len(set(labels))


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_random_case_follows_from_its_seed(operator):
    def shapes(seed):
        draw = random_case(operator, seed).draw
        return [[tuple(x.shape) for x in draw(InputDraw(torch.float32, CPU, 0))] for _ in range(2)]

    assert shapes(1)[0] == shapes(1)[1]
    assert len({str(shapes(seed)[0]) for seed in range(8)}) > 1


def test_inputs_are_the_same_on_every_draw_and_rounded_to_the_dtype():
    draws = [InputDraw(torch.float16, CPU, 3).normal(50) for _ in range(2)]
    assert draws[0].dtype == torch.float16
    assert torch.equal(*draws)


def test_an_operator_without_cases_is_an_error():
    with pytest.raises(ValueError, match="must have cases in the module"):
        fixed_cases("no_such_operator")


def test_pixels_that_rounding_could_move_to_another_class_are_taken_out():
    semantic, codes = case_named("class_distance", "many pixels").draw(InputDraw(torch.float32, CPU, 0))
    distance = torch.cdist(semantic.double().flatten(2).transpose(1, 2), codes.double()[None])
    nearest = distance.topk(2, largest=False).values
    assert (nearest[..., 1] - nearest[..., 0]).min() > 1e-4


def combine(state, slopes, weights, dt, **_options):
    return rk_combine(state, slopes, weights, dt, backend="reference")


def forgets_the_last_element(*args, **options):
    right = combine(*args)
    out = torch.empty_like(right)
    out.view(-1)[:-1] = right.view(-1)[:-1]
    return out


FAULTS = {
    "nan": (forgets_the_last_element, "max error inf"),
    "inaccurate": (lambda *a, **o: combine(*a) * (1 + 2**-21), "ratio"),
    "shape": (lambda *a, **o: combine(*a)[:-1], "shape .* expected"),
    "dtype": (lambda *a, **o: combine(*a).double(), "torch.float32 expected; got torch.float64"),
    "layout": (lambda *a, **o: combine(*a).to(memory_format=torch.channels_last), "contiguous output expected"),
    "gradient": (lambda *a, **o: combine(*a) + 0 * a[0] * 1.5 + 1e-3 * (a[0] - a[0].detach()), "ratio"),
    "exception": (lambda *a, **o: 1 / 0, "ZeroDivisionError"),
    "tuple": (lambda *a, **o: (combine(*a), a[0]), "results expected"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_backend_with_a_fault_fails(fault, install):
    run, note = FAULTS[fault]
    install("rk_combine", run)
    verdicts = judge("rk_combine", "square", "faulty")
    failed = [verdict for verdict in verdicts if verdict.verdict == "fail"]
    assert any(re.search(note, verdict.note) for verdict in failed), [verdict.note for verdict in failed]


def test_a_librarys_kernel_is_held_to_twice_the_bounds(install, monkeypatch):
    install("rk_combine", combine)
    own = judge("rk_combine", "square", "faulty")
    monkeypatch.setattr(conformance, "OWN_BACKENDS", ("reference",))
    assert [verdict.max_bound for verdict in judge("rk_combine", "square", "faulty")] == [
        2 * verdict.max_bound for verdict in own
    ]


def test_wrong_integers_are_counted(install):
    install("philox_words", lambda counter, key: torch.zeros_like(counter))
    (verdict,) = judge("philox_words", "prime", "faulty")
    assert verdict.verdict == "fail"
    assert verdict.note == f"{4 * 1009} integers differ"


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_reference_passes_in_half_precision(operator):
    verdicts = judge(operator, "prime", "reference", torch.bfloat16)
    assert {verdict.verdict for verdict in verdicts} == {"pass"}


def test_the_budget_of_one_value_does_not_hang_on_one_lucky_draw():
    case = case_named("rk_combine", "tiny")
    bound = expectations(case, torch.float32, CPU)[0].max_bound
    draws = [case.draw(InputDraw(torch.float32, CPU, seed)) for seed in range(64)]
    combine = case.function("reference")
    wanted = [case.call(combine, torch.float64, *(x.double() for x in draw)) for draw in draws]
    errors = [
        abs(float(case.call(combine, torch.float32, *draw) - end)) for draw, end in zip(draws, wanted, strict=True)
    ]
    assert errors[0] < max(errors)
    assert bound >= 2 * max(errors) / max(float(end.abs()) for end in wanted)


def test_the_command_reports_success(tmp_path, capsys):
    path = tmp_path / "report.json"
    arguments = ["--op", "class_distance", "--backend", "reference", "--seeds", "1", "--json", str(path)]
    assert main([*arguments, "--device", "cpu", "--dtype", "float32"]) == 0
    printed = capsys.readouterr().out
    assert "class_distance reference float32 ragged" in " ".join(printed.split())
    assert "0 failed" in printed
    report = json.loads(path.read_text())
    assert report["passed"]
    assert {"max_error", "rms_error", "max_bound", "rms_bound", "verdict"} <= set(report["rows"][0])
    assert {row["case"] for row in report["rows"]} >= {"tiny", "ties", "random 0"}
    assert report["versions"]["torch"] == torch.__version__


def test_the_command_fails_with_a_faulty_backend(tmp_path, capsys, install):
    install("rk_combine", forgets_the_last_element)
    path = tmp_path / "report.json"
    flags = ["--op", "rk_combine", "--case", "square", "--seeds", "0", "--dtype", "float32", "--device", "cpu"]
    assert main([*flags, "--json", str(path)]) == 1
    assert "FAIL: output 0" in capsys.readouterr().out
    report = json.loads(path.read_text())
    assert not report["passed"]
    assert {row["backend"] for row in report["rows"] if row["verdict"] == "fail"} == {"faulty"}


def test_a_backend_that_refuses_everything_fails(capsys, install):
    install("rk_combine", combine, input_reasons=lambda *a, **o: ["not today"])
    flags = ["--op", "rk_combine", "--case", "square", "--seeds", "0", "--dtype", "float32", "--device", "cpu"]
    assert main(flags) == 1
    printed = capsys.readouterr().out
    assert "refused: not today" in printed
    assert "can serve on this machine, but refused every case" in printed


def test_a_backend_that_is_missing_is_listed_and_fails_only_if_it_was_named(capsys, install):
    install("rk_combine", combine, machine_reasons=lambda: ["needs a moon"])
    flags = ["--op", "rk_combine", "--case", "square", "--seeds", "0", "--dtype", "float32", "--device", "cpu"]
    assert main([*flags]) == 0
    assert "not available: rk_combine faulty: needs a moon" in capsys.readouterr().out
    assert main([*flags, "--backend", "faulty"]) == 1


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--op", "nothing"], "--op must be one of attention_block, .*; got nothing"),
        (["--backend", "nothing"], "--backend must be one of .*; got nothing"),
        (["--case", "nothing"], "--case must be one of .*; got nothing"),
        (["--seeds", "-1"], "--seeds must be >= 0; got -1"),
        (["--json", "no/such/folder/x.json"], "--json must be in an existing folder"),
        (["--device", "cpu", "--run", "captured"], "--run captured needs --device cuda"),
    ],
)
def test_bad_arguments_exit_with_two_and_say_what_is_wrong(flags, text, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(flags)
    assert stopped.value.code == 2
    assert re.search(text, capsys.readouterr().err)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_exits_with_two(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--device", "cuda"])
    assert stopped.value.code == 2
    assert "there is no CUDA device" in capsys.readouterr().err


def test_the_module_runs_as_a_program():
    command = [sys.executable, "-m", "msf_kernels.selftest", "--op", "philox_words", "--seeds", "0", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "0 failed" in done.stdout


@pytest.mark.interpreter
@pytest.mark.parametrize("operator", [name for name, table in backends().items() if "triton" in table])
def test_triton_kernels_pass_in_the_interpreter(operator, capsys):
    flags = ["--op", operator, "--backend", "triton", "--dtype", "float32", "float16", "--seeds", "2"]
    assert main([*flags, "--case", "prime", "empty batch"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("operator", [name for name, table in backends().items() if "native" in table])
def test_native_kernels_pass(operator, need_backend, capsys):
    need_backend(operator, "native")
    flags = ["--op", operator, "--backend", "native", "--seeds", "2", "--device", "cpu"]
    assert main([*flags, "--case", "prime", "empty batch"]) == 0, capsys.readouterr().out


def test_a_compiled_call_is_judged_like_a_plain_one():
    case = case_named("rk_combine", "prime")
    expected = expectations(case, torch.float32, CPU)

    def run(*args):
        return run_compiled(*args, compiler="aot_eager")

    verdicts = check(case, "reference", torch.float32, CPU, expected, run)
    assert {verdict.verdict for verdict in verdicts} == {"pass"}
    assert len(verdicts) == 5  # the output, and the gradients of the state, the steps and the two slopes that are read


def test_a_graph_break_fails(install):
    def breaks(*args, **options):
        torch._dynamo.graph_break()
        return combine(*args)

    install("rk_combine", breaks)
    case = case_named("rk_combine", "square")
    expected = expectations(case, torch.float32, CPU)
    (verdict,) = check(
        case, "faulty", torch.float32, CPU, expected, lambda *args: run_compiled(*args, compiler="eager")
    )
    assert verdict.verdict == "fail"
    assert "Unsupported" in verdict.note


def test_one_different_bit_is_found():
    zeros = [("output 0", torch.zeros(3)), ("output 1", torch.zeros(()))]
    require_same_bits(zeros, [(name, x.clone()) for name, x in zeros], "a copy")
    negative = [("output 0", torch.tensor([0.0, -0.0, 0.0])), zeros[1]]
    with pytest.raises(ArithmeticError, match="output 0 of the replayed graph differs from the first run in 1 bytes"):
        require_same_bits(zeros, negative, "the replayed graph")


def test_a_graph_that_does_not_compute_again_is_found(monkeypatch):
    for name in ("Stream", "current_stream", "CUDAGraph", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())
    case = case_named("rk_combine", "prime")
    expected = expectations(case, torch.float32, CPU)
    (verdict,) = check(case, "reference", torch.float32, CPU, expected, run_captured)
    assert verdict.verdict == "fail"
    assert "output 0 of the replayed graph differs from the first run" in verdict.note


@pytest.mark.gpu
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_captured_call_repeats_a_plain_one_bit_for_bit(operator):
    device = torch.device("cuda")
    case = case_named(operator, "prime")
    expected = expectations(case, torch.float32, device)
    verdicts = check(case, "reference", torch.float32, device, expected, run_captured)
    assert {verdict.verdict for verdict in verdicts} == {"pass"}, verdicts
