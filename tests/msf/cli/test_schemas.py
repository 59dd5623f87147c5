"""What the commands write as JSON is what the documented schemas say, whatever the classes are called."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

jsonschema = pytest.importorskip("jsonschema")

SCHEMAS = Path(__file__).parents[3] / "docs" / "schemas"


def validate(name, path):
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    content = json.loads(path.read_text())
    jsonschema.validate(content, schema, jsonschema.Draft202012Validator)
    return content


def keys_of(value):
    if isinstance(value, dict):
        return set(value) | {key for part in value.values() for key in keys_of(part)}
    return {key for part in value for key in keys_of(part)} if isinstance(value, list) else set()


def save(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(level).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


def test_rows_of_classify(msf, tiny_run, tmp_path):
    for number in range(3):
        save(tmp_path / "d" / f"{number}.png", number)
    (tmp_path / "d" / "broken.png").write_bytes(b"x")
    out = tmp_path / "rows.json"
    code, _, _ = msf(
        "classify", tmp_path / "d", "--checkpoint", tiny_run, "--device", "cpu", "--refer", 0.5, "--json", out
    )
    assert code == 1
    content = validate("classify", out)
    assert [row["error"] is None for row in content["rows"]] == [True, True, True, False]
    stored = json.loads((tiny_run / "config.json").read_text())["tensors_sha256"]
    assert content["provenance"]["checkpoint_sha256"] == stored
    assert content["provenance"]["micro_batch"] == content["rows"][0]["micro_batch"]
    assert sum(content["rows"][0]["probability"].values()) == pytest.approx(1)


def test_figures_of_evaluate_have_no_class_in_a_key(msf, tiny_run, tiny_npz, tmp_path):
    out = tmp_path / "m.json"
    names = "red,green,blue,black,white"
    common = ("evaluate", "--checkpoint", tiny_run, "--dataset", tiny_npz, "--device", "cpu")
    code, shown, _ = msf(*common, "--class-names", names, "--json", out)
    assert code == 0
    content = validate("evaluate", out)
    assert not keys_of(content) & set(names.split(","))
    assert [entry["class"] for entry in content["per_class"]] == names.split(",")
    assert content["confusion_matrix"]["classes"] == names.split(",")
    assert np.sum(content["confusion_matrix"]["counts"]) == content["n_images"] == 20
    assert "black" in shown


def test_report_of_pack(msf, tmp_path):
    for number in range(24):
        save(tmp_path / "d" / "ab"[number % 2] / f"{number}.png", number)
    save(tmp_path / "d" / "b" / "twin.png", 0)
    save(tmp_path / "d" / "loose.png", 99)
    (tmp_path / "d" / "a" / "broken.png").write_bytes(b"x")
    code, _, _ = msf("pack", tmp_path / "d", "--out", tmp_path / "d.npz", "--json", tmp_path / "copy.json")
    assert code == 0
    content = validate("pack", tmp_path / "d.json")
    assert content == validate("pack", tmp_path / "copy.json")
    assert content["n_skipped"] == 2
    assert content["label_conflicts"]["n_sets"] == 1
