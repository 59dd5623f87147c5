"""`msf calibrate`, and what `classify` and `evaluate` make of it."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from msf.calibrate import load_calibration
from msf.data import hold_out_calibration, load_dataset
from msf.judge.decisions import Wishes
from msf.judge.referral import ReferralRule
from tests.msf.cli.conftest import trained


@pytest.fixture(scope="module")
def kept_run(tmp_path_factory, tiny_npz):
    """A run that kept a third part."""
    return trained(tmp_path_factory.mktemp("kept"), tiny_npz, **{"calibration-share": 0.3})


@pytest.fixture
def run(kept_run, tmp_path):
    return shutil.copytree(kept_run, tmp_path / "run")


@pytest.fixture
def pictures(tmp_path):
    for number in range(6):
        noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        (tmp_path / "d").mkdir(exist_ok=True)
        Image.fromarray(noise).save(tmp_path / "d" / f"{number}.png")
    return tmp_path / "d"


def rewritten(run, **changes):
    """Put a threshold, or wider sets, into the calibration of a tiny run, whose few pictures give none."""
    found = load_calibration(run)
    values = found.to_dict()
    values |= changes
    del values["digest"]
    made = type(found).from_dict({**values, "digest": _digest(found, values)})
    (run / "calibration.json").write_text(json.dumps({"format": "msf-calibration/1", **made.to_dict()}))
    return made


def _digest(found, values):
    import hashlib

    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def test_calibration_lies_beside_the_checkpoint_and_says_what_was_too_little(msf, run, tmp_path, tiny_npz):
    code, out, err = msf("calibrate", run, "--device", "cpu", "--json", tmp_path / "c.json")
    assert code == 0
    content = json.loads((run / "calibration.json").read_text())
    assert content == json.loads((tmp_path / "c.json").read_text())
    jsonschema = pytest.importorskip("jsonschema")
    from tests.msf.cli.test_schemas import SCHEMAS

    jsonschema.validate(content, json.loads((SCHEMAS / "calibration.schema.json").read_text()))
    kept = hold_out_calibration(load_dataset(tiny_npz), 0.3)
    assert content["computed_on"] == {
        "dataset": "tiny", "dataset_sha256": kept.fingerprint, "split": "calibration", "n_images": 10,
        "n_groups": None, "seed": 0,
    }  # fmt: skip
    assert content["notes"] == []
    assert [rule["risk"] for rule in content["referral"]] == list(Wishes().risks)
    assert all(rule["threshold"] is None for rule in content["referral"])
    assert "114 without an error are the least" in err
    assert "99 are the least" in err
    assert "Referral" in out


def test_val_is_told_to_have_chosen_the_epoch(msf, tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    code, _, err = msf("calibrate", run, "--device", "cpu", "--risk", "0.5", "--level", "0.5")
    assert code == 0
    assert "the val split chose the kept epoch" in err
    assert load_calibration(run).computed_on["split"] == "val"
    _, _, err = msf("evaluate", "--checkpoint", run, "--device", "cpu", "--split", "val")
    assert "these pictures were calibrated on" in err
    _, _, err = msf("evaluate", "--checkpoint", run, "--device", "cpu")
    assert "these pictures were calibrated on" not in err


def test_decisions_reach_rows_files_and_evaluation(msf, run, pictures, tmp_path):
    msf("calibrate", run, "--device", "cpu", "--level", "0.5,0.8", "--risk", "0.3")
    common = ("classify", pictures, "--checkpoint", run, "--device", "cpu")
    code, _, _ = msf(*common, "--json", tmp_path / "all.json")
    rows = json.loads((tmp_path / "all.json").read_text())["rows"]
    threshold = sorted(row["scores"]["least_confidence"] for row in rows)[2]
    rule = ReferralRule(
        score="least_confidence", risk=0.3, delta=0.1, threshold=threshold, n_tested=9, n_kept=9, n_errors=0, n_needed=9
    )
    made = rewritten(run, referral=[rule.to_dict()])

    given = ("--refer-at", "risk=0.3", "--sets", 0.8, "--scaled")
    code, shown, _ = msf(*common, *given, "--json", tmp_path / "rows.json", "--csv", tmp_path / "rows.csv")
    assert code == 0
    assert "3 of 6 pictures to refer to a person" in shown
    content = json.loads((tmp_path / "rows.json").read_text())
    from tests.msf.cli.test_schemas import validate

    validate("classify", tmp_path / "rows.json")
    assert content["provenance"]["decisions"]["calibration_sha256"] == made.digest
    (sets,) = (entry for entry in made.sets if entry.level == 0.8)
    for row in content["rows"]:
        assert row["is_referred"] == (row["scores"]["least_confidence"] > threshold)
        wanted = {name for name, p in row["probability"].items() if 1 - p <= sets.quantile[0]}
        best = max(row["probability"].values())
        assert set(row["prediction_set"]) == wanted | {name for name, p in row["probability"].items() if p == best}
        assert sum(row["scaled_probability"].values()) == pytest.approx(1)
    with (tmp_path / "rows.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["is_referred"] for row in table] == [str(row["is_referred"]) for row in content["rows"]]
    assert [row["prediction_set"].split("; ") for row in table] == [row["prediction_set"] for row in content["rows"]]
    assert {row["calibration_sha256"] for row in table} == {made.digest}
    assert {"score_least_confidence", "score_disagreement", "score_margin"} <= set(table[0])

    # A picture's decision does not depend on its company.
    msf("classify", pictures / "4.png", "--checkpoint", run, "--device", "cpu", *given, "--json", tmp_path / "one.json")
    alone = json.loads((tmp_path / "one.json").read_text())["rows"][0]
    for name in ("is_referred", "prediction_set", "scaled_probability"):
        assert alone[name] == content["rows"][4][name]

    code, shown, _ = msf("evaluate", "--checkpoint", run, "--device", "cpu", "--json", tmp_path / "m.json")
    assert code == 0
    metrics = validate("evaluate", tmp_path / "m.json")
    assert metrics["decisions"]["digest"] == made.digest
    assert metrics["decisions"]["referral"][0]["risk"] == 0.3
    assert [entry["level"] for entry in metrics["decisions"]["sets"]] == [0.5, 0.8]
    assert "Decisions" in shown


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--n-samples", 4), "n_samples 2 then, 4 now"),
        (("--n-steps", 2), "n_steps 1 then, 2 now"),
        (("--method", "midpoint"), "method"),
        (("--precision", "bf16"), "precision"),
        (("--decision", "probability"), "decision"),
    ],
)
def test_other_settings_are_refused_before_any_work(msf, run, pictures, flags, words):
    msf("calibrate", run, "--device", "cpu", "--level", "0.5", "--precision", "fp32")
    common = ("classify", pictures, "--checkpoint", run, "--device", "cpu", "--precision", "fp32", "--sets", 0.5)
    assert msf(*common)[0] == 0
    code, out, err = msf(*common, *flags)
    assert code == 2
    assert words in err
    assert not out
    # `evaluate` says so and goes on.
    code, _, err = msf("evaluate", "--checkpoint", run, "--device", "cpu", "--precision", "fp32", *flags)
    assert code == 0
    assert "decisions are not judged" in err


def test_another_network_and_a_changed_file_are_refused(msf, run, tiny_run, pictures, tmp_path):
    msf("calibrate", run, "--device", "cpu", "--level", "0.5")
    other = shutil.copytree(tiny_run, tmp_path / "other")
    shutil.copy(run / "calibration.json", other / "calibration.json")
    code, _, err = msf("classify", pictures, "--checkpoint", other, "--device", "cpu", "--sets", 0.5)
    assert code == 2
    assert "checkpoint_sha256" in err
    content = json.loads((run / "calibration.json").read_text())
    for changed, words in (
        ({**content, "notes": ["fine"]}, "it was changed"),
        ({**content, "format": "msf-calibration/0"}, "must be of the format msf-calibration/1"),
        ({"format": content["format"]}, "is not what 'msf calibrate' writes"),
        ([], "must be of the format"),
    ):
        (run / "calibration.json").write_text(json.dumps(changed))
        code, _, err = msf("classify", pictures, "--checkpoint", run, "--device", "cpu", "--sets", 0.5)
        assert code == 2
        assert words in err
        assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--refer-at", "risk=0.02"), "run 'msf calibrate"),
        (("--refer-at", "0.02"), "refer-at must be risk=X"),
        (("--refer-at", "risk=0.02,0.05"), "refer-at must be risk=X"),
        (("--refer-at", "risk=2"), r"refer-at must be numbers in (0, 1)"),
        (("--refer-at", "risk=0.1", "--refer", 0.2), "give one of them"),
        (("--sets", 0.95), "run 'msf calibrate"),
    ],
)
def test_what_cannot_be_applied_is_refused(msf, kept_run, pictures, flags, words):
    code, _, err = msf("classify", pictures, "--checkpoint", kept_run, "--device", "cpu", *flags)
    assert code == 2
    assert words in err


def test_wishes_that_were_not_calibrated_or_not_met_are_refused(msf, run, pictures):
    msf("calibrate", run, "--device", "cpu", "--level", "0.5,0.99", "--risk", "0.02,0.1")
    common = ("classify", pictures, "--checkpoint", run, "--device", "cpu")
    for flags, words in (
        (("--sets", 0.7), "sets must be a level that was calibrated for (0.5, 0.99); got 0.7"),
        (("--sets", 0.99), "99 are the least"),
        (("--refer-at", "risk=0.05"), "refer-at must be a risk that was calibrated for (0.02, 0.1); got 0.05"),
        (("--refer-at", "risk=0.02"), "114 without an error are the least"),
    ):
        code, _, err = msf(*common, *flags)
        assert code == 2
        assert words in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--risk", "0"), r"risk must be numbers in (0, 1)"),
        (("--level", "a"), r"level must be numbers in (0, 1)"),
        (("--delta", "1"), r"delta must be in (0, 1)"),
        (("--score", "luck"), "score must be one of nearest_distance"),
        (("--split", "holdout"), "split must be one of"),
        (("--sets-method", "magic"), "magic"),
    ],
)
def test_bad_wishes_are_refused(msf, kept_run, flags, words):
    code, _, err = msf("calibrate", kept_run, "--device", "cpu", *flags)
    assert code == 2
    assert words in err


def test_foreign_pictures_are_told_apart_in_evaluation(msf, tiny_run, tiny_npz, tmp_path):
    code, shown, _ = msf(
        "evaluate", "--checkpoint", tiny_run, "--device", "cpu", "--ood", tiny_npz, "--json", tmp_path / "m.json"
    )
    assert code == 0
    from tests.msf.cli.test_schemas import validate

    content = validate("evaluate", tmp_path / "m.json")
    assert content["ood"]["n_images"] == 20
    assert {entry["auroc"]["value"] for entry in content["ood"]["scores"].values()} == {0.5}  # the same pictures
    assert "told from others" in shown
