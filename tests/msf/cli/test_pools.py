"""`msf pool-report`, `msf filter` and `msf augment-study`, with the smallest networks."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from msf.data import load_dataset, make_phantoms
from msf.files.npy import read_npy_header
from msf.pools.pool import read_pool

from .conftest import TINY


@pytest.fixture(scope="session")
def made(tmp_path_factory, tiny_run, tiny_npz):
    """Return a folder with a pool as archive, the same as class folders, and a report on either."""
    folder = tmp_path_factory.mktemp("pools")
    with pytest.MonkeyPatch.context() as patch:
        import sys

        from msf.cli import main

        def run(*arguments):
            patch.setattr(sys, "argv", ["msf", *map(str, arguments)])
            with pytest.raises(SystemExit) as ended:
                main()
            assert not ended.value.code

        for place in ("pool.npz", "pool"):
            fixed = ("--checkpoint", tiny_run, "--device", "cpu")
            run("generate", *fixed, "--n-steps", 1, "--per-class", 10, "--out", folder / place, "--size", 28)
            report = (
                "--real",
                tiny_npz,
                "--classifier-steps",
                3,
                "--n-samples",
                2,
                "--out",
                folder / f"{place}-report",
            )
            run("pool-report", folder / place, *fixed, *report)
    return folder


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_pool_is_read_alike_from_folders_and_an_archive(made):
    archive, folder = read_pool(made / "pool.npz"), read_pool(made / "pool")
    assert len(archive) == len(folder) == 50
    place = {(row["label"], row["index"]): n for n, row in enumerate(archive.rows)}
    order = [place[row["label"], row["index"]] for row in folder.rows]
    assert torch.equal(archive.images[order], folder.images)
    assert torch.equal(archive.labels[order], folder.labels)


def test_a_report_has_figures_a_row_per_picture_and_a_page(made):
    report = made / "pool.npz-report"
    figures = json.loads((report / "report.json").read_text())
    assert figures["n"] == 50
    assert figures["features"] == "reference classifier trained on tiny, train"
    assert set(figures["fidelity"]) == set(figures["fidelity_of_test"])
    assert [row["label"] for row in figures["per_class"]] == [0, 1, 2, 3, 4]
    rows = table(report / "pictures.csv")
    assert len(rows) == 50
    assert figures["agreement"]["flow"] == pytest.approx(np.mean([row["flow_agrees"] == "True" for row in rows]))
    assert figures["memorisation"]["smallest_p"] == pytest.approx(1 / 33)
    assert "only copies are called memorised" in figures["warnings"][0]
    with Image.open(report / "nearest.png") as page:
        assert page.width > 500
        assert np.asarray(page.convert("L")).std() > 10


def test_a_planted_training_picture_is_found_and_filtered_out(msf, made, tiny_npz, tiny_run, tmp_path):
    pool, train = read_pool(made / "pool.npz"), load_dataset(tiny_npz).train
    with np.load(made / "pool.npz") as archive:
        arrays = dict(archive)
    arrays["train_images"][7] = train.images[11].numpy()
    np.savez(tmp_path / "planted.npz", **arrays)
    (tmp_path / "planted.metadata.csv").write_bytes((made / "pool.metadata.csv").read_bytes())
    fixed = ("--checkpoint", tiny_run, "--device", "cpu", "--real", tiny_npz, "--classifier-steps", 3, "--n-samples", 2)
    assert msf("pool-report", tmp_path / "planted.npz", *fixed)[0] == 0
    rows = table(tmp_path / "planted-report" / "pictures.csv")
    found = [n for n, row in enumerate(rows) if row["is_memorised"] == "True"]
    assert found == [7]
    assert rows[7]["is_copy"] == "True"
    assert rows[7]["pixel_nearest"] == rows[7]["feature_nearest"] == "11"
    code, out, _ = msf("filter", tmp_path / "planted.npz", "--agree", "none", "--json", tmp_path / "kept.json")
    assert (code, json.loads((tmp_path / "kept.json").read_text())["n_memorised"]) == (0, 1)
    kept, control = (read_pool(tmp_path / f"planted-{name}.npz") for name in ("kept", "control"))
    assert len(kept) == len(control) == 49
    assert torch.equal(kept.images, torch.cat([pool.images[:7], pool.images[8:]]))
    assert torch.equal(kept.labels.bincount(), control.labels.bincount())
    assert "n_kept" in out


@pytest.mark.parametrize("place", ["pool.npz", "pool"])
def test_what_is_kept_and_its_control_are_pools_of_the_same_kind(msf, made, tmp_path, place):
    places = [tmp_path / f"{name}{'.npz' if place.endswith('npz') else ''}" for name in ("kept", "control")]
    arguments = ("--report", made / f"{place}-report", "--out", places[0], "--control", places[1])
    code, _, err = msf("filter", made / place, *arguments, "--agree", "none", "--certain", 0.6, "--seed", 1)
    assert code == 0, err
    kept, control = map(read_pool, places)
    assert kept.labels.bincount().tolist() == control.labels.bincount().tolist() == [6] * 5
    scores = {
        row["file"]: float(row["score_predictive_entropy"]) for row in table(made / f"{place}-report" / "pictures.csv")
    }
    if place == "pool":
        taken = {row["file"] for row in kept.rows}
        for label in map(str, range(5)):
            own = {file: value for file, value in scores.items() if file.startswith(f"{label}/")}
            assert taken & own.keys() == set(sorted(own, key=own.get)[:6])
    assert msf("filter", made / place, *arguments)[0] == 2  # never replaced


@pytest.mark.parametrize("judge", ["flow", "classifier", "both"])
def test_agreement_keeps_exactly_those_that_are_given_their_label(msf, made, tmp_path, judge):
    rows = table(made / "pool-report" / "pictures.csv")
    judges = ("flow", "classifier") if judge == "both" else (judge,)
    wanted = [row["file"] for row in rows if all(row[f"{name}_agrees"] == "True" for name in judges)]
    places = ("--out", tmp_path / "kept", "--control", tmp_path / "control", "--keep-memorised")
    code, _, err = msf("filter", made / "pool", "--report", made / "pool-report", *places, "--agree", judge)
    if not wanted:
        assert (code, "nothing is kept" in err) == (2, True)
        return
    assert code == 0, err
    assert [row["file"] for row in read_pool(tmp_path / "kept").rows] == wanted


def test_pools_reports_and_places_that_are_none_are_one_line(msf, made, tiny_run, tiny_npz, tmp_path):
    fixed = ("--checkpoint", tiny_run, "--device", "cpu")
    judged = (*fixed, "--real", tiny_npz, "--out", tmp_path / "new")
    (tmp_path / "empty").mkdir()
    other = tmp_path / "other.npz"
    with np.load(made / "pool.npz") as archive:
        np.savez(other, **{name: np.roll(values, 1, 0) for name, values in archive.items()})
    for arguments, words in (
        (("pool-report", tmp_path / "nowhere", *fixed), "there is none at"),
        (("pool-report", tmp_path / "empty", *fixed), "has no metadata.csv"),
        (("pool-report", made / "pool", *judged, "--features", "x.pt"), "there is none at 'x.pt'"),
        (("pool-report", made / "pool", *judged, "--features", "encoder"), "flow on pixels has not"),
        (("pool-report", made / "pool.npz", *fixed, "--level", 1), "level must be in (0, 1)"),
        (("pool-report", made / "pool.npz", *fixed, "--out", made / "pool.npz-report"), "is there already"),
        (("filter", made / "pool.npz", "--report", tmp_path / "empty"), "holds no report"),
        (("filter", other, "--report", made / "pool.npz-report"), "is of another pool"),
        (("filter", made / "pool", "--report", made / "pool-report", "--certain", 0), "certain must be in (0, 1]"),
        (("filter", made / "pool", "--report", made / "pool-report", "--score", "age"), "score must be one of"),
        (("augment-study", "--budgets", "5,x"), "budgets must be whole numbers"),
        (("augment-study", "--budgets", "20,5", "--out", tmp_path / "s"), "ascending order"),
    ):  # fmt: skip
        code, out, err = msf(*arguments)
        assert (code, words in err.splitlines()[-1], out) == (2, True, ""), (arguments, err)


def test_damaged_pools_are_named(made, tmp_path):
    import shutil

    def broken(change):
        shutil.rmtree(tmp_path / "pool", ignore_errors=True)
        shutil.copytree(made / "pool", tmp_path / "pool")
        change(tmp_path / "pool")
        with pytest.raises(ValueError, match=r".+") as error:
            read_pool(tmp_path / "pool")
        return str(error.value)

    picture = "2/000003.png"
    assert "is missing" in broken(lambda pool: (pool / picture).unlink())
    assert "cannot be read" in broken(lambda pool: (pool / picture).write_bytes(b"no picture"))
    assert "of one size" in broken(lambda pool: Image.new("RGB", (9, 9)).save(pool / picture))
    text = (made / "pool" / "metadata.csv").read_text()
    assert "must lie in it" in broken(lambda p: (p / "metadata.csv").write_text(text.replace(picture, "../x.png")))
    assert "numbers of classes" in broken(
        lambda p: (p / "metadata.csv").write_text(text.replace(f"{picture},2", f"{picture},cat"))
    )  # noqa: E501
    assert "columns" in broken(lambda p: (p / "metadata.csv").write_text("a,b\n1,2\n"))


def test_features_may_come_from_a_torchscript_network(made, tmp_path):
    from msf.pools.features import feature_network

    class Means(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().mean((2, 3))

    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(Means()).save(tmp_path / "means.pt")
    network = feature_network(str(tmp_path / "means.pt"), None)
    images = torch.randint(0, 256, (5, 4, 4, 1), dtype=torch.uint8)
    torch.testing.assert_close(network.of(images), images.float().mean((1, 2)).expand(-1, 3))
    assert network.name == "TorchScript network means.pt"
    (tmp_path / "none.pt").write_bytes(b"no network")
    with pytest.raises(ValueError, match="neither a TorchScript network nor a state dict"):
        feature_network(str(tmp_path / "none.pt"), None)


def test_a_torchscript_network_that_returns_probabilities_is_asked_for_features(tmp_path):
    from msf.pools.features import feature_network

    class Classes(torch.nn.Module):
        def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
            features = images.float().mean((2, 3))
            return features if return_features else features.softmax(1)

    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(Classes()).save(tmp_path / "classes.pt")
    images = torch.randint(0, 256, (5, 4, 4, 3), dtype=torch.uint8)
    torch.testing.assert_close(
        feature_network(str(tmp_path / "classes.pt"), None).of(images), images.float().mean((1, 2))
    )


@pytest.mark.slow
@pytest.mark.parametrize("is_zip", [True, False])
def test_weights_of_inception_give_the_fid_of_torchmetrics(tmp_path, is_zip):
    pytest.importorskip("torch_fidelity", reason="needs torch-fidelity")
    from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3

    from msf.pools.features import feature_network
    from msf.pools.fidelity import frechet_and_kernel

    path = tmp_path / "weights.pth"
    torch.save({}, path)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(NoTrainInceptionV3, "load_state_dict", lambda *_: None)  # the weights that it is made with
        fresh = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path))
    torch.save(fresh.state_dict(), path, _use_new_zipfile_serialization=is_zip)
    network = feature_network(str(path), None)
    assert network.name == "Inception, 2048 features, weights of weights.pth"
    real, made = (make_phantoms(seed, {"train": 8})["train_images"] for seed in (0, 1))
    features = [network.of(images) for images in (real, made)]
    torch.testing.assert_close(features[0], fresh(real.permute(0, 3, 1, 2)))
    if not is_zip:
        return
    metric = FrechetInceptionDistance(2048, feature_extractor_weights_path=str(path)).set_dtype(torch.float64)
    for images, is_real in ((real, True), (made, False)):
        metric.update(images.permute(0, 3, 1, 2), real=is_real)
    assert frechet_and_kernel(*features, seed=0)["fid"] == pytest.approx(float(metric.compute()), rel=1e-4)


def test_weights_that_are_not_inceptions_and_a_missing_library_are_told(tmp_path, monkeypatch):
    from torchmetrics.image import fid

    from msf.pools.features import feature_network

    path = tmp_path / "weights.pth"
    names = ("Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch1x1.conv.weight", "fc.weight")
    for content, library, words in (
        ({"fc.weight": torch.zeros(1)}, None, "must hold a TorchScript network, or the weights of Inception"),
        ([1, 2], None, "must hold a TorchScript network, or the weights of Inception"),
        ({name: torch.zeros(1) for name in names}, False, "comes with torch-fidelity: pip install torch-fidelity"),
    ):
        torch.save(content, path)
        if library is not None:
            monkeypatch.setattr(fid, "_TORCH_FIDELITY_AVAILABLE", library)
        with pytest.raises(ValueError, match=words):
            feature_network(str(path), None)


def test_weights_that_could_run_code_are_refused_before_the_library_reads_them(tmp_path):
    from msf.pools.features import feature_network

    class Dangerous:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"fc.weight": Dangerous()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="neither a TorchScript network nor a state dict"):
        feature_network(str(tmp_path / "weights.pth"), None)


def test_a_network_trained_with_label_dropping_is_guided(msf, tiny_npz, tmp_path):
    flags = {"dataset": tiny_npz, "out": tmp_path / "run", **TINY, "label-drop": 0.5}
    assert msf("train", *(f"--{name}={value}" for name, value in flags.items()))[0] == 0
    fixed = ("--checkpoint", tmp_path / "run", "--device", "cpu", "--n-steps", 3, "--per-class", 2)
    for weight in (0, 3):
        assert msf("generate", *fixed, "--out", tmp_path / f"w{weight}", "--guidance", weight)[0] == 0
    pools = [read_pool(tmp_path / f"w{weight}") for weight in (0, 3)]
    assert [pool.rows[0]["guidance"] for pool in pools] == ["0.0", "3.0"]
    assert not torch.equal(pools[0].images, pools[1].images)


def test_a_study_writes_figures_a_table_and_a_plot(msf, tiny_npz, tmp_path):
    flags = {
        "dataset": tiny_npz,
        "out": tmp_path / "study",
        **TINY,
        "json": tmp_path / "study.json",
        "generate-steps": 1,
    }
    study = {"seeds": 1, "budgets": "1,2", "per-class": 3, "classifier-steps": 2}
    code, out, err = msf("augment-study", *(f"--{name}={value}" for name, value in {**flags, **study}.items()))
    assert code == 0, err
    figures = json.loads((tmp_path / "study.json").read_text())
    assert len(figures["arms"]) == 7
    assert figures["verdict"] in out
    assert figures["verdict"] in (tmp_path / "study" / "study.md").read_text()
    with Image.open(tmp_path / "study" / "study.png") as plot:
        assert np.asarray(plot.convert("L")).std() > 5


def test_arrays_of_a_pool_are_plain_numpy(made):
    import zipfile

    with zipfile.ZipFile(made / "pool.npz") as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        info = archive.getinfo("train_images.npy")
        with archive.open(info) as file:
            assert read_npy_header(file, info.file_size).shape == (40, 28, 28, 3)
