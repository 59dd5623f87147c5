"""Which backend serves a call of attention: measurements, order, libraries; private names are used on purpose."""

import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace

import pytest
import torch

from msf_kernels import backends, explain, spatial_attention
from msf_kernels.spatial_attention._choice import UNMEASURED_ORDER, auto_order
from msf_kernels.spatial_attention._libraries import (
    flash_attn_input_reasons,
    flash_attn_machine_reasons,
    spatial_attention_flash_attn,
    spatial_attention_xformers,
    xformers_input_reasons,
    xformers_machine_reasons,
)
from msf_kernels.spatial_attention._measured import TABLE
from msf_kernels.spatial_attention._reference import spatial_attention_reference

ROW = {
    "dtype": "bfloat16",
    "head_dim": 64,
    "n_tokens": 256,
    "has_gradient": False,
    "microseconds": {"triton": 41.0, "sdpa": 55.5, "flash_attn": 30},
}


def table(*rows):
    return {"format": 1, "gpus": {"Test GPU": list(rows)}}


def test_backends_of_a_row_are_sorted_by_time():
    (call,) = TABLE.parse(table(ROW), "x.json")["Test GPU"]
    assert call.fastest_first == ("flash_attn", "triton", "sdpa")


def test_the_nearest_call_has_the_same_dtype_head_dimension_and_direction():
    rows = [ROW | {"n_tokens": n} for n in (64, 256, 1024)]
    rows += [ROW | {"n_tokens": 500, "head_dim": 32}, ROW | {"n_tokens": 500, "dtype": "float16"}]
    rows += [ROW | {"n_tokens": 500, "has_gradient": True}]
    calls = TABLE.parse(table(*rows), "x.json")["Test GPU"]
    assert TABLE.nearest(calls, dtype="bfloat16", head_dim=64, n_tokens=500, has_gradient=False).key["n_tokens"] == 256
    assert TABLE.nearest(calls, dtype="bfloat16", head_dim=64, n_tokens=520, has_gradient=False).key["n_tokens"] == 1024
    assert TABLE.nearest(calls, dtype="bfloat16", head_dim=64, n_tokens=0, has_gradient=False).key["n_tokens"] == 64
    assert TABLE.nearest(calls, dtype="bfloat16", head_dim=64, n_tokens=64, has_gradient=True).key["n_tokens"] == 500
    assert TABLE.nearest(calls, dtype="bfloat16", head_dim=128, n_tokens=500, has_gradient=False) is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], r'x.json must be {"format": 1, "gpus": {...}}; got \[\]'),
        ({"format": 2, "gpus": {}}, r"x.json must be .*; got {'format': 2, 'gpus': {}}"),
        ({"format": 1}, "x.json must be"),
        ({"format": 1, "gpus": []}, "gpus must map names of GPUs to lists of rows"),
        ({"format": 1, "gpus": {"Test GPU": "fast"}}, r"gpus\['Test GPU'\] must be a list of rows; got 'fast'"),
        (table({"dtype": "bfloat16"}), r"gpus\['Test GPU'\]\[0\] must have the fields dtype, has_gradient, head_dim"),
        (table(ROW, ROW | {"dtype": "int8"}), r"\[1\].dtype must be one of float16, bfloat16, float32; got 'int8'"),
        (table(ROW | {"head_dim": 0}), "head_dim must be an integer >= 1; got 0"),
        (table(ROW | {"n_tokens": 2.5}), "n_tokens must be an integer >= 1; got 2.5"),
        (table(ROW | {"has_gradient": 1}), "has_gradient must be true or false; got 1"),
        (table(ROW | {"microseconds": {}}), "microseconds must map some of triton, sdpa"),
        (table(ROW | {"microseconds": {"magic": 1.0}}), "microseconds must map some of triton, sdpa"),
        (table(ROW | {"microseconds": {"sdpa": -1.0}}), "microseconds.sdpa must be a finite number > 0; got -1.0"),
        (table(ROW | {"microseconds": {"sdpa": float("nan")}}), "microseconds.sdpa must be a finite number > 0"),
    ],
)
def test_a_table_of_another_form_is_refused_with_the_place(wrong, message):
    with pytest.raises(ValueError, match=message):
        TABLE.parse(wrong, "x.json")


def on_gpu(n_tokens=256, dtype=torch.bfloat16, head_dim=64, requires_grad=False):
    """What the choice reads of a packed tensor on a GPU."""
    return SimpleNamespace(
        is_cuda=True,
        device=torch.device("cuda", 0),
        dtype=dtype,
        shape=(8, n_tokens, 3 * 4 * head_dim),
        requires_grad=requires_grad,
    )


@pytest.fixture
def gpu_with(monkeypatch):
    def install(*rows):
        calls = TABLE.parse(table(*rows), "x.json")
        monkeypatch.setitem(vars(TABLE), "calls", calls)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _index: "Test GPU")

    return install


def test_without_measurements_a_gpu_is_served_by_pytorchs_dispatcher_first(gpu_with):
    gpu_with()
    assert auto_order(on_gpu(), 4) == UNMEASURED_ORDER == ("sdpa", "triton", "reference")


def test_measurements_decide_and_what_was_not_measured_follows(gpu_with):
    gpu_with(ROW, ROW | {"has_gradient": True, "microseconds": {"sdpa": 1.0, "triton": 2.0}})
    assert auto_order(on_gpu(), 4) == ("flash_attn", "triton", "sdpa", "reference")
    assert auto_order(on_gpu(requires_grad=True), 4) == ("sdpa", "triton", "reference")
    assert auto_order(on_gpu(head_dim=32), 4) == UNMEASURED_ORDER
    assert auto_order(on_gpu(dtype=torch.float16), 4) == UNMEASURED_ORDER
    with torch.no_grad():
        assert auto_order(on_gpu(requires_grad=True), 4)[0] == "flash_attn"


def test_the_batch_has_no_say(gpu_with):
    gpu_with(ROW)
    one, many = on_gpu(), on_gpu()
    one.shape, many.shape = (1, *one.shape[1:]), (4096, *many.shape[1:])
    assert auto_order(one, 4) == auto_order(many, 4)


@pytest.mark.parametrize(
    ("dtype", "n_tokens", "has_gradient", "has_pair_dots", "first"),
    [
        (torch.float32, 64, True, False, "sdpa"),
        (torch.float64, 64, False, False, "sdpa"),
        (torch.bfloat16, 64, False, True, "native"),
        (torch.bfloat16, 64, False, False, "sdpa"),
        (torch.bfloat16, 64, True, True, "reference"),
        (torch.bfloat16, 256, True, True, "sdpa"),
        (torch.float16, 256, False, False, "reference"),
    ],
)
def test_on_a_cpu_the_order_is_what_was_measured(monkeypatch, dtype, n_tokens, has_gradient, has_pair_dots, first):
    choice = sys.modules[auto_order.__module__]  # the package's name is also that of its function
    monkeypatch.setattr(choice, "has_fast_path", lambda qkv, num_heads: has_pair_dots)
    qkv = torch.zeros(1, n_tokens, 48, dtype=dtype, requires_grad=has_gradient)
    assert auto_order(qkv, 1)[0] == first


@pytest.mark.parametrize(
    ("n_tokens", "level", "has_gradient", "first"),
    [(16, 2, False, "native"), (17, 2, False, "sdpa"), (16, 1, False, "sdpa"), (16, 2, True, "sdpa")],
)
def test_short_rows_in_float32_go_to_the_native_loops_with_avx512(monkeypatch, n_tokens, level, has_gradient, first):
    choice = sys.modules[auto_order.__module__]
    monkeypatch.setattr(choice._ext, "machine_reasons", list)
    monkeypatch.setattr(choice._ext, "cpu_level", lambda: level)
    assert auto_order(torch.zeros(1, n_tokens, 48, requires_grad=has_gradient), 1)[0] == first


def test_auto_follows_the_order(monkeypatch):
    qkv = torch.randn(1, 4, 48)
    for name in ("sdpa", "reference"):
        monkeypatch.setattr(
            import_module("msf_kernels.spatial_attention.api")._operator, "_auto_order", lambda *_a, n=name, **_k: (n,)
        )
        assert torch.equal(spatial_attention(qkv, 1), spatial_attention(qkv, 1, backend=name))


def test_a_library_that_is_not_there_says_so():
    reasons = backends()["spatial_attention"]
    for name, machine_reasons in (("flash_attn", flash_attn_machine_reasons), ("xformers", xformers_machine_reasons)):
        if reasons[name]:
            assert machine_reasons() == reasons[name]
            with pytest.raises(
                RuntimeError, match=f"(?s)spatial_attention: backend '{name}' cannot serve.*{reasons[name][0]}"
            ):
                spatial_attention(torch.zeros(1, 2, 48), 1, backend=name)


def test_a_library_without_a_device_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for installed, reason in ((True, "needs a CUDA device"), (False, "{} is not installed")):
        for name, machine_reasons in (
            ("flash_attn", flash_attn_machine_reasons),
            ("xformers", xformers_machine_reasons),
        ):
            monkeypatch.setitem(sys.modules["msf_kernels.spatial_attention._libraries"]._INSTALLED, name, installed)
            assert machine_reasons() == [reason.format(name)]


def test_libraries_list_every_reason_against_the_inputs():
    qkv = torch.zeros(2, 4, 3 * 300)
    assert flash_attn_input_reasons(qkv, 1) == [
        "takes tensors on cuda; got cpu",
        "takes float16, bfloat16; got torch.float32",
        "takes head dimensions that are multiples of 8 up to 256; got 300",
    ]
    assert xformers_input_reasons(qkv, 1) == ["takes tensors on cuda; got cpu"]
    assert xformers_input_reasons(qkv.bfloat16(), 1)[1:] == [
        "takes head dimensions that are multiples of 8 in torch.bfloat16; got 300"
    ]
    assert "takes float16, bfloat16, float32; got torch.float64" in xformers_input_reasons(qkv.double(), 1)
    assert "takes no empty tensors" in flash_attn_input_reasons(qkv[:0], 1)
    assert set(explain("spatial_attention", qkv, 1)) == {
        "triton", "native", "sdpa", "flash_attn", "xformers", "reference",
    }  # fmt: skip


@pytest.mark.parametrize("order", ["legacy", "new"])
def test_libraries_are_called_on_views_of_the_packed_tensor(monkeypatch, order):
    qkv = torch.randn(2, 5, 96)
    seen = []

    def attend(q, k, v):
        seen.extend((q, k, v))
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    flash_attn, xformers, ops = ModuleType("flash_attn"), ModuleType("xformers"), ModuleType("xformers.ops")
    flash_attn.flash_attn_func = ops.memory_efficient_attention = attend
    for name, module in (("flash_attn", flash_attn), ("xformers", xformers), ("xformers.ops", ops)):
        monkeypatch.setitem(sys.modules, name, module)
    expected = spatial_attention_reference(qkv, 2, order=order)
    for function in (spatial_attention_flash_attn, spatial_attention_xformers):
        out = function(qkv, 2, order=order)
        torch.testing.assert_close(out, expected)
        assert out.is_contiguous()
    assert all(part.shape == (2, 5, 2, 16) and part.untyped_storage().data_ptr() == qkv.data_ptr() for part in seen)
