"""The tuner without a GPU: rows measured on the CPU at small sizes, tables written and merged, refusals."""

import json

import pytest
import torch

from msf_kernels import tune

CPU = torch.device("cpu")
SMALL = {
    "attention_block": {"dtype": "float32", "channels": 8, "num_heads": 2, "n_tokens": 4},
    "conv3x3": {
        "dtype": "float32", "in_channels": 4, "out_channels": 8, "stride": 1, "upsample": True, "n_pixels": 4,
    },
    "spatial_attention": {"dtype": "float32", "head_dim": 4, "n_tokens": 4, "has_gradient": True},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(tune.TUNABLES))
def test_a_row_is_measured_and_is_one_that_the_table_takes(name):
    tunable = tune.TUNABLES[name]
    row = tune.measure(tunable, SMALL[name], 2, CPU, 2)
    (call,) = tunable.table.parse({"format": 1, "gpus": {"CPU": [row]}}, "x.json")["CPU"]
    assert dict(call.key) == SMALL[name]
    assert "reference" in call.fastest_first
    assert len(call.fastest_first) >= 2


def test_a_backend_that_refuses_is_missing_from_its_row():
    row = tune.measure(tune.TUNABLES["spatial_attention"], SMALL["spatial_attention"], 2, CPU, 1)
    assert "flash_attn" not in row["microseconds"]


@pytest.mark.parametrize("name", sorted(tune.TUNABLES))
def test_every_key_is_one_of_its_table_and_occurs_once(name):
    tunable = tune.TUNABLES[name]
    keys = [tuple(key.items()) for key in tunable.list_keys()]
    assert len(set(keys)) == len(keys)
    rows = [{**dict(key), "microseconds": {"triton": 1.0}} for key in keys]
    assert len(tunable.table.parse({"format": 1, "gpus": {"Test GPU": rows}}, "x.json")["Test GPU"]) == len(keys)


def test_written_rows_are_read_again_and_rows_of_other_gpus_stay(tmp_path):
    table, path = tune.TUNABLES["conv3x3"].table, tmp_path / "measured.json"
    row = SMALL["conv3x3"] | {"microseconds": {"triton": 1.5, "aten": 1.0}}
    tune.write_rows(table, path, "Old GPU", [row, row])
    tune.write_rows(table, path, "New GPU", [row])
    found = table.parse(json.loads(path.read_text()), path.name)
    assert {gpu: len(calls) for gpu, calls in found.items()} == {"Old GPU": 2, "New GPU": 1}
    assert found["New GPU"][0].fastest_first == ("aten", "triton")
    tune.write_rows(table, path, "Old GPU", [])
    assert json.loads(path.read_text())["gpus"]["Old GPU"] == []
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"measured.json must be \{\"format\": 1"):
        tune.write_rows(table, path, "New GPU", [row])


def test_without_a_gpu_the_tuner_says_so_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "measured.json"
    assert tune.main(["--op", "conv3x3", "--out", str(path)]) == 2
    assert "there is no CUDA device on this machine, so nothing can be measured" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.json"], "--out takes the table of one operator: give one --op"),
        (["--rounds", "0"], "--rounds must be >= 1; got 0"),
        (["--op", "magic"], "invalid choice: 'magic'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        tune.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
