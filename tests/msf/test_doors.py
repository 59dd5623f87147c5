"""Every way to classify and to generate uses the settings of the checkpoint, and only single fields replace them."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

import msf.medsymmflow as medsymmflow
from msf.cli import app
from msf.cli.demo import _write_report
from msf.cli.flags import Run
from msf.config import (
    ClassifySettings,
    CodeConfig,
    DataConfig,
    ExperimentConfig,
    GenerateSettings,
    InferenceConfig,
    PathConfig,
    TaskConfig,
    TrainConfig,
    UNetConfig,
    settings_for,
)
from msf.data import load_dataset
from msf.evaluate import evaluate
from msf.medsymmflow import MedSymmFlow
from msf_kernels.solvers import tableau
from tests.msf.tiny_unet import with_random_weights

CLASSIFY = ClassifySettings(
    n_samples=4,
    n_steps=2,
    method="midpoint",
    grid="uniform",
    flow="conditional",
    decision="pixel_votes",
    readout="decoded",
    antithetic=True,
    precision="bf16",
)
GENERATE = GenerateSettings(
    n_steps=3, method="heun", flow="conditional", dequantise=True, precision="bf16", guidance=0.5
)
EXPERIMENT = ExperimentConfig(
    data=DataConfig(image_size=8),
    code=CodeConfig(name="simplex"),
    path=PathConfig(time_coupling="independent"),
    train=TrainConfig(label_drop=0.1),
    network=UNetConfig(
        base_channels=8, n_groups=4, channel_multipliers=(1,), n_res_blocks=1, attention_down_rates=(), head_channels=8
    ),
    inference=InferenceConfig(classify=CLASSIFY, generate=GENERATE),
)
NAMES = ("disc", "ring", "cross")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    task = TaskConfig(n_classes=3, image_channels=1, class_names=NAMES, original_size=8)
    flow = MedSymmFlow(task, EXPERIMENT)
    with_random_weights(flow.network)
    where = tmp_path_factory.mktemp("network") / "network"
    flow.save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "toy.npz"
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
    labels = np.arange(6, dtype=np.uint8)[:, None] % 3
    parts = ("train", "val", "test")
    np.savez(path, **{f"{part}_images": images for part in parts}, **{f"{part}_labels": labels for part in parts})
    return path


@pytest.fixture(scope="module")
def dataset(file):
    return load_dataset(str(file))


@pytest.fixture
def seen(monkeypatch):
    """Record the settings that reach the engine: those that a checkpoint stores, and micro-batches."""
    settings = []
    for name in ("classify", "generate"):
        engine = getattr(medsymmflow, name)

        def recording(request, *others, engine=engine):
            settings.append(stored(request.settings))
            return engine(request, *others)

        monkeypatch.setattr(medsymmflow, name, recording)
    return settings


def stored(settings):
    return {**settings.to_dict(), "micro_batch": settings.micro_batch}


def run(*arguments):
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("L", (8, 8), 100).save(path)
    return path


def classify_in_python(folder, dataset, picture, tmp_path):
    MedSymmFlow.from_pretrained(folder).classify(dataset.test.images)


def evaluate_in_python(folder, dataset, picture, tmp_path):
    metrics = evaluate(MedSymmFlow.from_pretrained(folder), dataset)
    assert {name: metrics[name] for name in CLASSIFY.to_dict()} == CLASSIFY.to_dict()


def classify_command(folder, dataset, picture, tmp_path):
    run("classify", picture, "--checkpoint", folder)


def evaluate_command(folder, dataset, picture, tmp_path):
    run("evaluate", "--checkpoint", folder, "--dataset", dataset.path, "--json", tmp_path / "m.json")
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert {name: metrics[name] for name in CLASSIFY.to_dict()} == CLASSIFY.to_dict()


CLASSIFYING = (classify_in_python, evaluate_in_python, classify_command, evaluate_command)


@pytest.mark.parametrize("record", [CLASSIFY, GENERATE], ids=lambda record: type(record).__name__)
def test_every_stored_field_differs_from_its_default(record):
    defaults = type(record)()
    for name in record.to_dict():
        assert getattr(record, name) != getattr(defaults, name), name


@pytest.mark.parametrize("door", CLASSIFYING, ids=lambda door: door.__name__)
def test_every_door_classifies_with_the_settings_of_the_checkpoint(door, folder, dataset, picture, tmp_path, seen):
    door(folder, dataset, picture, tmp_path)
    assert seen == [stored(CLASSIFY)]


def test_every_door_generates_with_the_settings_of_the_checkpoint(folder, tmp_path, seen):
    MedSymmFlow.from_pretrained(folder).generate([0, 1])
    run("generate", "--checkpoint", folder, "--n", 1, "--out", tmp_path / "made")
    run("generate", "--checkpoint", folder, "--per-class", 1, "--out", tmp_path / "pool")
    assert seen == [stored(GENERATE), stored(GENERATE), {**stored(GENERATE), "micro_batch": 64}]


def test_the_demo_reports_with_the_settings_of_the_checkpoint(folder, dataset, seen):
    _write_report(folder.parent, dataset, Run(), 0.0)
    assert seen == [stored(CLASSIFY), stored(GENERATE)]


def test_single_flags_replace_single_fields(folder, picture, tmp_path, seen):
    run("classify", picture, "--checkpoint", folder, "--n-samples", 2, "--method", "euler", "--micro-batch", 2)
    run("generate", "--checkpoint", folder, "--n", 1, "--out", tmp_path / "made", "--n-steps", 1, "--no-dequantise")
    assert seen == [
        stored(dataclasses.replace(CLASSIFY, n_samples=2, method="euler", micro_batch=2)),
        stored(dataclasses.replace(GENERATE, n_steps=1, dequantise=False)),
    ]


def test_every_command_takes_a_precision(folder, dataset, picture, tmp_path, seen):
    run("classify", picture, "--checkpoint", folder, "--precision", "fp32")
    run("evaluate", "--checkpoint", folder, "--dataset", dataset.path, "--precision", "fp32")
    run("generate", "--checkpoint", folder, "--n", 1, "--out", tmp_path / "made", "--precision", "fp32")
    _write_report(folder.parent, dataset, Run(), 0.0, "fp32")
    classify, generate = (stored(dataclasses.replace(record, precision="fp32")) for record in (CLASSIFY, GENERATE))
    assert seen == [classify, classify, generate, classify, generate]


def test_results_say_what_auto_came_to(folder, dataset, picture, tmp_path, monkeypatch):
    monkeypatch.setenv("MSF_PRECISION", "fp32")
    auto = ("--checkpoint", folder, "--precision", "auto")
    run("classify", picture, *auto, "--json", tmp_path / "c.json")
    run("evaluate", *auto, "--dataset", dataset.path, "--json", tmp_path / "e.json")
    run("generate", *auto, "--n", 1, "--out", tmp_path / "made", "--json", tmp_path / "g.json")
    classified, evaluated, generated, note = (
        json.loads((tmp_path / name).read_text()) for name in ("c.json", "e.json", "g.json", "made/generated.json")
    )
    row, picture = classified["rows"][0], generated["pictures"][0]
    provenances = [result["provenance"] for result in (classified, evaluated, generated)]
    for result in (row, evaluated, picture, note, *provenances):
        assert result["precision"] == "fp32"
    for result in (row, evaluated, picture):
        assert result["convolution"]
    for result in (row, evaluated):
        assert result["micro_batch"] >= 1


def test_keywords_replace_fields_of_given_settings_too(folder, dataset, seen):
    flow = MedSymmFlow.from_pretrained(folder)
    given = ClassifySettings(n_samples=3)
    flow.classify(dataset.test.images, given, n_steps=2, keep_samples=True)
    assert seen == [stored(ClassifySettings(n_samples=3, n_steps=2))]


def test_every_door_gives_the_same_numbers(folder, dataset, tmp_path):
    flow = MedSymmFlow.from_pretrained(folder)
    expected = flow.classify(dataset.test.images[:1])
    Image.fromarray(dataset.test.images[0].numpy().reshape(8, 8)).save(tmp_path / "first.png")
    run("classify", tmp_path / "first.png", "--checkpoint", folder, "--json", tmp_path / "rows.json")
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert row["label"] == int(expected.label)
    assert row["nearest_distance"] == float(expected.nearest_distance)


@pytest.mark.parametrize(
    ("given", "fields", "error", "message"),
    [
        (64, {}, TypeError, "settings must be a ClassifySettings or None; got int: single fields are given by keyword"),
        (GenerateSettings(), {}, TypeError, "settings must be a ClassifySettings or None; got GenerateSettings"),
        (None, {"steps": 3}, TypeError, "classify has no setting steps; it has n_samples, n_steps"),
        (None, {"n_steps": 0}, ValueError, "n_steps must be >= 1; got 0"),
        (None, {"n_steps": 1.5}, TypeError, "n_steps must be a whole number; got 1.5"),
        (None, {"micro_batch": 0}, ValueError, "micro_batch must be >= 1; got 0"),
        (None, {"method": 5}, TypeError, "method must be a str; got 5"),
    ],
)
def test_what_is_no_setting_is_refused(given, fields, error, message):
    with pytest.raises(error, match=message):
        settings_for("classify", ClassifySettings(), given, fields)


def test_every_tableau_is_a_method_and_others_are_refused_before_any_work(folder, dataset, picture):
    flow = MedSymmFlow.from_pretrained(folder)
    for method in tableau._BUILT_IN:
        assert len(flow.classify(dataset.test.images[:1], method=method, n_samples=2, n_steps=1)) == 1
    with pytest.raises(ValueError, match="method must be one of .*euler.*; got 'rk5'"):
        flow.classify(dataset.test.images, method="rk5")
    unknown = dataclasses.replace(EXPERIMENT, inference=InferenceConfig(classify_method="rk5"))
    with pytest.raises(ValueError, match="method must be one of .*; got 'rk5'"):
        MedSymmFlow(flow.task, unknown)


def test_settings_are_stored_and_those_of_older_checkpoints_are_read():
    config = EXPERIMENT.inference
    assert InferenceConfig.from_dict(config.to_dict()) == config
    assert "micro_batch" not in config.to_dict()["classify"]
    old = {"flow": "conditional", "classify_method": "heun", "classify_steps": 4, "n_samples": 5, "generate_steps": 9}
    read = InferenceConfig.from_dict(old)
    assert read.classify == ClassifySettings(
        flow="conditional", method="heun", n_steps=4, n_samples=5, grid="uniform"
    ), "without a grid they are from before there was another"
    assert read.generate == GenerateSettings(flow="conditional", n_steps=9)
    assert (read.flow, read.classify_steps, read.readout) == ("conditional", 4, "latent")
    nested = {"classify": {"n_steps": 4}, "generate": {"n_steps": 9}}
    assert InferenceConfig.from_dict(nested).classify == ClassifySettings(n_steps=4, grid="uniform")
    assert InferenceConfig.from_dict({**nested, "classify": {"grid": "cubic"}}).classify == ClassifySettings()
    with pytest.raises(TypeError, match="InferenceConfig has no field steps"):
        InferenceConfig(steps=3)
