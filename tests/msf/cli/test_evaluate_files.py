"""What `msf evaluate` warns of, and where it says how far it is."""

import json

import numpy as np
import pytest

from msf.cli import console
from msf.medsymmflow import MedSymmFlow

NAMES = ("basophil", "drusen", "erythroblast", "platelet", "monocyte")


@pytest.fixture
def run(msf, tiny_run, tiny_npz, tmp_path):
    """Evaluate a network whose classes have names on data whose classes have others."""

    def evaluate(names, data_names, *arguments):
        from dataclasses import replace

        from msf.data import table

        flow = MedSymmFlow.from_pretrained(tiny_run)
        flow.task = replace(flow.task, class_names=names)
        flow.save_pretrained(tmp_path / "named")
        path = tiny_npz
        with pytest.MonkeyPatch.context() as patch:
            if data_names is not None:
                patch.setitem(table.MEDMNIST, "tinymnist", table.DatasetInfo(data_names, channels=3))
                path = tmp_path / "tinymnist.npz"
                path.write_bytes(tiny_npz.read_bytes())
            file = tmp_path / "m.json"
            code, out, err = msf(
                "evaluate", "--checkpoint", tmp_path / "named", "--dataset", path, "--json", file, "--device", "cpu",
                *arguments,
            )  # fmt: skip
        assert code == 0, err
        return json.loads(file.read_text())["warnings"], out, err

    return evaluate


@pytest.mark.parametrize(
    ("data_names", "word"),
    [
        (NAMES, None),
        (tuple(name.upper() for name in NAMES), None),
        (NAMES[::-1], "the same names in another order"),
        (("a", "b", "c", "d", "e"), "other names"),
        (None, "only numbers"),
    ],
)
def test_other_class_names_are_warned_of(run, data_names, word):
    warnings, _, err = run(NAMES, data_names)
    about_names = [text for text in warnings if text.startswith("the classes of ")]
    assert [word in text for text in about_names] == ([True] if word else [])
    if word:
        assert "0: basophil / " in about_names[0]
        assert f"note: {about_names[0]}" in err


def test_a_network_without_names_is_not_warned_of(run):
    assert not any(text.startswith("the classes of ") for text in run((), NAMES)[0])


def test_figures_that_are_undefined_are_a_dash(msf, tiny_run, tiny_npz, tmp_path):
    with np.load(tiny_npz) as arrays:
        content = {name: arrays[name] for name in arrays.files}
    content["test_labels"] = np.zeros_like(content["test_labels"])
    np.savez(tmp_path / "one.npz", **content)
    code, out, _ = msf("evaluate", "--checkpoint", tiny_run, "--dataset", tmp_path / "one.npz", "--device", "cpu")
    assert code == 0
    values = dict(line.split()[:2] for line in out.partition("\n\n")[0].splitlines()[1:])
    assert values["auc_macro_ovr"] == values["auc_medmnist_of_probability"] == "-"


def test_progress_is_told_in_a_pipe(run, monkeypatch):
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    _, _, err = run(NAMES, NAMES)
    assert any(line.startswith("classifying tinymnist test: 40/40 (") for line in err.splitlines())
