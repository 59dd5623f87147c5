import base64
import re

import pytest
import torch

from benchmarks import readme
from benchmarks.__main__ import main
from benchmarks.rows import RowWriter

CPU = torch.device("cpu")
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def results(tmp_path):
    writer = RowWriter("ops", CPU)
    writer.add("machine-limits-2-threads", "machine", "copy_bandwidth", "GB/s", [20.0])
    writer.add("machine-limits-2-threads", "machine", "matmul_bfloat16", "GFLOP/s", [400.0])
    writer.add("class-distance", "ours", "time", "us", [60.0, 70.0, 80.0], "64 maps <b>")
    writer.add("class-distance", "ours", "arithmetic", "FLOP", [4.7e6])
    writer.add("class-distance", "ours", "traffic", "bytes", [7.8e5])
    writer.add("class-distance", "ours", "speedup_vs:authors", "ratio", [400.0, 450.0, 500.0])
    writer.add("class-distance", "ours", "speedup_vs:faster", "ratio", [0.5, 0.6, 0.7])
    writer.add("class-distance", "xformers", "time", "us", [], "needs a GPU")
    for n, cost in ((16, 13.0), (64, 13.2), (256, 12.9)):
        writer.add(f"pixel-cost-vs-samples-s{n}", "ours", "cost_per_sample", "ms", [cost])
    path = tmp_path / "ops.jsonl"
    writer.write(path)
    return path


def test_a_report_is_one_page_with_its_figures_inside(results, tmp_path):
    out = tmp_path / "report"
    assert main(["report", str(results), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "roofline.png", "scaling.png", "speedup.png"]
    page = (out / "report.html").read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert [base64.b64decode(picture)[:8] for picture in pictures] == [PNG] * 3
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "@media print" in page
    assert "64 maps &lt;b&gt;" in page
    assert "needs a GPU" in page


def test_losses_are_shown_as_such(results, tmp_path):
    main(["report", str(results), "--out", str(tmp_path)])
    page = (tmp_path / "report.html").read_text()
    section = page[page.index("Where a peer is faster") : page.index("<h2>ops")]
    assert "0.6x" in section
    assert "faster" in section
    assert "authors" not in section


def test_rows_in_one_json_object_are_read_too(results, tmp_path):
    lines = results.read_text().strip().splitlines()
    whole = tmp_path / "gpu.json"
    whole.write_text('{"format": 1, "rows": [' + ",".join(lines) + "]}")
    assert main(["report", str(whole), "--out", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("text", ["", '{"format": 1}', "no json"])
def test_a_file_without_rows_exits_with_two(text, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text(text)
    assert main(["report", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("benchmarks: ")


def test_the_table_of_the_readme_is_current():
    assert main(["readme", "--check"]) == 0


def test_the_table_follows_the_results_and_names_losses(results, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "results" / "machine"
    folder.mkdir(parents=True)
    results.rename(folder / "ops.jsonl")
    assert main(["report", str(folder / "ops.jsonl"), "--out", str(folder / "report")]) == 0
    page = tmp_path / "README.md"
    page.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    monkeypatch.setattr(readme, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(readme, "README", page)
    scaling = tmp_path / "scaling.md"
    scaling.write_text(f"{readme.BEGIN}{readme.END}")
    monkeypatch.setattr(readme, "SCALING", scaling)
    assert main(["readme", "--check"]) == 1
    assert "not current" in capsys.readouterr().err
    assert main(["readme"]) == 0
    assert "| distances to 8 classes | 70 us | authors 450x, faster 0.6x (slower) |" in page.read_text()
    assert "](benchmarks/results/machine/report/speedup.png)" in page.read_text()
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("\nafter\n")
    assert main(["readme", "--check"]) == 0
    assert "No results are committed yet." in scaling.read_text()
    page.write_text("no place")
    assert main(["readme"]) == 2


def test_a_million_decisions_cost_their_encoding_and_their_samples():
    writer = RowWriter("scaling", CPU)
    writer.add("latent-cost-vs-samples", "ours", "fixed_cost", "ms", [1000.0])
    writer.add("latent-cost-vs-samples-s64", "ours", "cost_per_sample", "ms", [40.0])
    writer.add("latent-cost-vs-samples", "ours", "largest_over_smallest", "ratio", [1.04])
    table = readme.scaling_table(writer.rows)
    assert "| latent | 1000 | 40 | 1.04 | 289 hours | 633 hours |" in table
    assert "pixel" not in table
    assert readme.scaling_table([]) == ""
