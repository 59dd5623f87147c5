"""What `precision="auto"` means: by environment, tables and rule; and what is refused."""

import json

import pytest
import torch

from msf import precision
from msf.config import ClassifySettings
from msf.network.inference import InferenceForm
from msf.precision import (
    Measured,
    auto_precision,
    micro_batch_of_bf16,
    rule,
    table,
    training_precision,
    user_table_path,
    write_user_rows,
)
from msf.precision.processor import parse_cpuinfo

CPU = torch.device("cpu")
ZEN_3 = ("AuthenticAMD", 25, 1, "avx2")
ZEN_4 = ("AuthenticAMD", 25, 97, "avx2 avx512f avx512_bf16")
ZEN_5 = ("AuthenticAMD", 26, 2, "avx2 avx512f avx512_bf16")
COOPER_LAKE = ("GenuineIntel", 6, 85, "avx2 avx512f avx512_bf16")
SAPPHIRE_RAPIDS = ("GenuineIntel", 6, 143, "avx2 avx512f avx512_bf16 amx_tile amx_bf16")
NOBODY = ("", 0, 0, "")


def processor_of(kind):
    vendor, family, model, flags = kind
    text = f"vendor_id : {vendor}\ncpu family : {family}\nmodel : {model}\nmodel name : a chip\nflags : {flags}\n"
    return parse_cpuinfo(text + text.replace("a chip", "another"))


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """Nothing measured, no environment; return a function that sets the processor."""
    monkeypatch.delenv("MSF_PRECISION", raising=False)
    monkeypatch.setenv("MSF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(rule, "shipped_table", dict)
    monkeypatch.setattr(rule, "is_native_convolution_fast", lambda device, dtype: False)
    monkeypatch.setattr(rule, "library_multiplies_bf16", lambda: True)

    def be(kind):
        monkeypatch.setattr(rule, "this_processor", lambda: processor_of(kind))

    be(ZEN_4)
    return be


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (ZEN_3, "fp32"),
        (ZEN_4, "bf16"),
        (ZEN_5, "bf16"),
        (COOPER_LAKE, "fp32"),
        (SAPPHIRE_RAPIDS, "bf16"),
        (NOBODY, "fp32"),
    ],
)
def test_without_a_measurement_the_processors_products_decide(machine, kind, expected):
    machine(kind)
    assert auto_precision(CPU, 64).precision == expected


@pytest.mark.parametrize(("kind", "expected"), [(ZEN_3, "fp32"), (ZEN_4, "bf16"), (COOPER_LAKE, "fp32")])
def test_training_follows_the_processors_products(machine, kind, expected):
    machine(kind)
    assert training_precision("auto", CPU) == expected
    assert [training_precision(name, CPU) for name in ("fp32", "bf16")] == ["fp32", "bf16"]
    assert training_precision("auto", torch.device("meta")) == "fp32"


def test_a_library_that_is_held_back_makes_it_float32(monkeypatch):
    monkeypatch.setattr(rule, "library_multiplies_bf16", lambda: False)
    assert auto_precision(CPU, 64).precision == "fp32"


def test_few_draws_are_made_in_float32_where_bfloat16_would_be_filled_up(machine):
    machine(ZEN_4)
    assert micro_batch_of_bf16(64) == 4
    assert [auto_precision(CPU, 64, n_draws).precision for n_draws in (1, 3, 4, 64)] == ["fp32", "fp32", "bf16", "bf16"]
    machine(COOPER_LAKE)
    assert auto_precision(CPU, 64, 64).precision == "fp32"


def test_few_draws_are_made_in_bfloat16_where_nothing_is_filled_up(monkeypatch):
    monkeypatch.setattr(rule, "is_native_convolution_fast", lambda device, dtype: dtype == torch.bfloat16)
    assert auto_precision(CPU, 64, 1).precision == "bf16"


def test_the_shipped_table_is_one_of_ours(monkeypatch):
    assert all(len(rows) >= 2 for rows in table.shipped_table().values())
    assert all(key == key.strip() and "/" in key for key in table.shipped_table())


def test_what_the_system_tells_is_read():
    processor = processor_of(ZEN_4)
    assert (processor.key, processor.name) == ("AuthenticAMD 25/97", "a chip")
    assert parse_cpuinfo("").key == "unknown 0/0"


def rows(width, fp32, bf16):
    """Rows with times of a sample at micro-batches 1, 4 and 16."""
    return [Measured(width, n, f * n, b * n) for n, f, b in zip((1, 4, 16), fp32, bf16, strict=True)]


def test_a_measurement_decides_and_the_users_comes_first(machine, monkeypatch):
    slow, fast = rows(64, (3, 2, 2), (3, 2, 2)), rows(64, (3, 2, 2), (2, 1, 1))
    shipped = {"AuthenticAMD 25/97": tuple(slow)}
    monkeypatch.setattr(rule, "shipped_table", lambda: shipped)
    monkeypatch.setattr(rule, "native_convolution_reasons", lambda device, dtype: [])
    assert auto_precision(CPU, 64).precision == "fp32"
    # Without the native form the shipped figures say nothing.
    monkeypatch.setattr(rule, "native_convolution_reasons", lambda device, dtype: ["not built"])
    assert auto_precision(CPU, 64).precision == "bf16"
    monkeypatch.setattr(rule, "native_convolution_reasons", lambda device, dtype: [])
    write_user_rows("AuthenticAMD 25/97", fast)
    assert auto_precision(CPU, 64) == precision.AutoPrecision(
        "bf16", f"measured here ({user_table_path()}): bf16 2.00 times as fast"
    )
    machine(COOPER_LAKE)  # of which nothing was measured
    assert auto_precision(CPU, 64).precision == "fp32"


def test_bf16_must_be_worth_its_rounding_and_its_padding():
    # A sample of many: float32 2 ms, bfloat16 filled up to 4 (1.9 ms, where 16 would take 1.8): 1.05 times as fast.
    measured = rows(64, (3, 2, 2), (2.6, 1.9, 1.8))
    assert table.filled_micro_batch(measured, 64) == 4
    assert table.speed_of_bf16(measured, 64) == pytest.approx(2 / 1.9)
    write_user_rows("AuthenticAMD 25/97", measured)
    assert auto_precision(CPU, 64).precision == "fp32"
    assert micro_batch_of_bf16(64) == 4
    write_user_rows("AuthenticAMD 25/97", rows(64, (3, 2, 2), (1.7, 1.6, 1.6)))
    assert (auto_precision(CPU, 64).precision, micro_batch_of_bf16(64)) == ("bf16", 1)


def test_the_nearest_width_counts():
    write_user_rows("AuthenticAMD 25/97", [*rows(64, (1, 1, 1), (1, 1, 1)), *rows(128, (1, 1, 1), (0.5, 0.5, 0.5))])
    assert [auto_precision(CPU, width).precision for width in (8, 64, 90, 91, 128, 999)] == [
        "fp32", "fp32", "fp32", "bf16", "bf16", "bf16",
    ]  # fmt: skip


def test_the_shipped_table_is_sound():
    assert all(
        {row.base_channels for row in its} == {64, 128} and {row.micro_batch for row in its} >= {1, 4, 16}
        for its in table.parse_table(table.SHIPPED.read_text(), "measured.json").values()
    )


def test_rows_of_other_processors_stay():
    write_user_rows("one", rows(64, (1, 1, 1), (1, 1, 1)))
    write_user_rows("two", rows(64, (2, 2, 2), (1, 1, 1)))
    assert set(table.user_table()) == {"one", "two"}


ROW = {"base_channels": 64, "micro_batch": 4, "fp32": 1.5, "bf16": 1.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no JSON", "must be JSON"),
        ("[]", "must be {"),
        ('{"format": 2, "processors": {}}', "must be {"),
        ('{"format": 1, "processors": []}', "must be {"),
        (json.dumps({"format": 1, "processors": {"a": []}}), "must be a list of rows"),
        (json.dumps({"format": 1, "processors": {"a": [1]}}), "must have the fields base_channels"),
        (json.dumps({"format": 1, "processors": {"a": [{**ROW, "fp32": 0}]}}), "fp32 must be a finite number > 0"),
        (json.dumps({"format": 1, "processors": {"a": [{**ROW, "bf16": float("inf")}]}}), "bf16 must be a finite"),
        (json.dumps({"format": 1, "processors": {"a": [{**ROW, "micro_batch": 1.5}]}}), "must be a whole number"),
        (json.dumps({"format": 1, "processors": {"a": [{**ROW, "micro_batch": True}]}}), "must be a whole number"),
    ],
)
def test_a_broken_table_is_refused_in_one_line_that_says_how_to_be_rid_of_it(content, message):
    user_table_path().parent.mkdir()
    user_table_path().write_text(content)
    for call in (lambda: auto_precision(CPU, 64), lambda: write_user_rows("a", rows(64, (1, 1, 1), (1, 1, 1)))):
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert str(user_table_path()) in str(caught.value)
        assert "msf tune --replace" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert user_table_path().read_text() == content
    write_user_rows("a", rows(64, (1, 1, 1), (1, 1, 1)), replace=True)
    assert set(table.user_table()) == {"a"}


def test_the_environment_comes_first(monkeypatch):
    monkeypatch.setenv("MSF_PRECISION", "fp32")
    assert auto_precision(CPU, 64) == precision.AutoPrecision("fp32", "MSF_PRECISION")
    monkeypatch.setenv("MSF_PRECISION", "half")
    with pytest.raises(ValueError, match="MSF_PRECISION must be fp32 or bf16; got 'half'"):
        auto_precision(CPU, 64)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_on_cuda_the_compute_capability_decides(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert auto_precision(torch.device("cuda"), 64).precision == expected
    assert auto_precision(torch.device("mps"), 64).precision == "fp32"


def test_a_prediction_says_what_it_was_made_with(make_flow, monkeypatch):
    monkeypatch.setattr("msf.network.inference.form.is_native_convolution_fast", lambda device, dtype: False)
    flow = make_flow()
    images = torch.rand(2, 1, 8, 8) * 2 - 1
    for asked, n_samples, made in (("auto", 4, "bf16"), ("auto", 2, "fp32"), ("fp32", 2, "fp32"), ("bf16", 2, "bf16")):
        prediction = flow.classify(images, n_samples=n_samples, precision=asked)
        assert prediction.precision == made
        assert prediction.convolution
        (row, _) = prediction.to_rows()
        assert (row["precision"], row["convolution"]) == (made, prediction.convolution)
    assert flow.classify(images, n_samples=2, precision="bf16").micro_batch == table.UNMEASURED_MICRO_BATCH
    # Weights that were moved stay what they are.
    assert flow.to(dtype=torch.float64).classify(images, n_samples=2).precision == "fp64"
    assert flow.classify(images, n_samples=2, precision="fp32").precision == "fp32"


def test_both_precisions_answer_alike(make_flow):
    flow = make_flow(code="simplex")
    images = torch.rand(8, 1, 8, 8) * 2 - 1
    noise = torch.randn(8, 4, *flow.semantic_shape)
    fp32, bf16 = (flow.classify(images, n_samples=4, noise=noise, precision=name) for name in ("fp32", "bf16"))
    assert not torch.equal(fp32.class_distance, bf16.class_distance)
    torch.testing.assert_close(fp32.class_distance, bf16.class_distance, rtol=0.03, atol=0.03)


def test_a_network_without_an_inference_form_has_its_own_precision_only(make_flow):
    flow = make_flow()
    flow.network.register_forward_hook(lambda module, inputs, output: output)
    images = torch.rand(2, 1, 8, 8) * 2 - 1
    assert flow.classify(images, n_samples=2).precision == "fp32"
    assert not isinstance(flow.velocity(), InferenceForm)
    with pytest.raises(ValueError, match="precision must be auto or fp32 for a network without an inference form"):
        flow.classify(images, n_samples=2, precision="bf16")
    with pytest.raises(ValueError, match="precision must be one of"):
        ClassifySettings(precision="fp16")
