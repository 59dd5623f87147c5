"""`docs/extending.md` lists exactly the files that an extension touches: toys are added to a copy and tested there.

A toy is an entry of `TOYS`, which says what changes in files that are there already, and where it needs new files a
folder below `tests/extending` with them. What is asked of it beyond the tests of its kind is below
`tests/extending/checks`.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "extending.md"
LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "results", "__pycache__", "demo-out", "*.egg-info", "*.so")


@dataclass(frozen=True)
class Toy:
    """One extension.

    Args:
        section: Heading of the page that lists its files.
        most_files: How many files it may touch at the most.
        names: Stand-ins of the page, and what they are for the toy.
        changes: `{file: [(text that is there, text in its place), ...]}`.
        commands: Run in the copy before the tests, as the page says.
        tests: Arguments of pytest.
        fault: A change as in `changes` that the tests must notice.
    """

    section: str
    most_files: int
    names: dict[str, str]
    changes: dict[str, list[tuple[str, str]]]
    commands: tuple[tuple[str, ...], ...]
    tests: tuple[tuple[str, ...], ...]
    fault: tuple[str, str, str] = field(default=("", "", ""))


SURFACE = ("tests/public_surface.py",)
TOYS = {
    "kernel": Toy(
        section="A kernel",
        most_files=6,
        names={"NAME": "clipped_product"},
        changes={
            "msf_kernels/__init__.py": [
                (
                    "from msf_kernels.conv3x3 import",
                    "from msf_kernels.clipped_product import clipped_product\nfrom msf_kernels.conv3x3 import",
                ),
                ('    "class_distance",\n', '    "class_distance",\n    "clipped_product",\n'),
            ]
        },
        commands=(SURFACE,),
        tests=(
            ("tests/msf_kernels/testing/test_conformance.py", "-k", "clipped_product"),
            ("tests/msf_kernels/test_selftest.py", "-k", "clipped_product"),
            ("tests/test_public_api.py", "tests/test_structure.py"),
            ("tests/test_import_rules.py", "-k", "clipped_product or native or importing"),
        ),
        fault=("msf_kernels/clipped_product/_triton.py", "tl.minimum(tl.maximum(x * y, -limit), limit)", "x * y"),
    ),
    "solver": Toy(
        section="A solver",
        most_files=3,
        names={"NAME": "kutta3"},
        changes={
            "msf_kernels/solvers/tableau.py": [
                (
                    "RK4 = Tableau(",
                    'KUTTA3 = Tableau(\n    "kutta3", nodes=(0.0, 0.5, 1.0), matrix=((), (0.5,), (-1.0, 2.0)),\n'
                    "    weights=(1 / 6, 2 / 3, 1 / 6), order=3,\n)\n\nRK4 = Tableau(",
                ),
                ("(EULER, MIDPOINT, HEUN, HEUN3, RK4,", "(EULER, MIDPOINT, HEUN, HEUN3, KUTTA3, RK4,"),
            ],
            "msf_kernels/solvers/__init__.py": [
                ("    HEUN_EULER,\n    MIDPOINT,\n", "    HEUN_EULER,\n    KUTTA3,\n    MIDPOINT,\n"),
                ('    "MIDPOINT",\n', '    "KUTTA3",\n    "MIDPOINT",\n'),
            ],
        },
        commands=(SURFACE,),
        tests=(
            ("tests/msf_kernels/solvers/test_tableau.py", "-k", "kutta3"),
            ("tests/msf_kernels/solvers/test_integrate.py", "-k", "kutta3"),
            ("tests/test_public_api.py", "tests/test_structure.py"),
        ),
        fault=("msf_kernels/solvers/tableau.py", "weights=(1 / 6, 2 / 3, 1 / 6)", "weights=(1 / 6, 1 / 3, 1 / 2)"),
    ),
    "label code": Toy(
        section="A label code",
        most_files=2,
        names={},
        changes={
            "msf/config/experiment.py": [('"simplex", "thermometer"]', '"simplex", "thermometer", "circle"]')],
            "msf/codes/label_codes.py": [
                (
                    "_MAKERS: dict",
                    "def _make_circle(_config: CodeConfig, n_classes: int) -> LabelCode:\n"
                    "    angle = torch.arange(n_classes) * (2 * torch.pi / n_classes)\n"
                    '    return LabelCode("circle", torch.stack([angle.cos(), angle.sin()], dim=1))\n\n\n'
                    "_MAKERS: dict",
                ),
                (
                    '    "thermometer": _make_thermometer,\n',
                    '    "thermometer": _make_thermometer,\n    "circle": _make_circle,\n',
                ),
            ],
        },
        commands=(),
        tests=(("tests/extending/checks/label_code.py", "tests/test_structure.py"), ("tests/msf/test_config.py",)),
        fault=("msf/codes/label_codes.py", "angle.sin()]", "angle.cos()]"),
    ),
    "score": Toy(
        section="An uncertainty score",
        most_files=1,
        names={},
        changes={
            "msf/judge/uncertainty.py": [
                (
                    '    "disagreement": lambda',
                    '    "gini": lambda prediction: 1 - prediction.probability.square().sum(1),\n'
                    '    "disagreement": lambda',
                )
            ]
        },
        commands=(),
        tests=(("tests/extending/checks/score.py", "tests/msf/judge/test_uncertainty.py", "tests/test_structure.py"),),
        fault=("msf/judge/uncertainty.py", "1 - prediction.probability.square()", "prediction.probability.square()"),
    ),
    "layer": Toy(
        section="A layer of the network",
        most_files=3,
        names={},
        changes={
            "msf/config/experiment.py": [
                (
                    "    dropout: float = described(0.0,",
                    '    use_gain: bool = described(False, "a learned gain per channel in the middle")\n'
                    "    dropout: float = described(0.0,",
                )
            ],
            "msf/network/layers.py": [
                ("from torch import Tensor, nn\n", "import torch\nfrom torch import Tensor, nn\n"),
                (
                    "class Stage(",
                    "class ChannelGain(nn.Module):\n"
                    '    """Multiply every channel by a number of its own, which starts at one."""\n\n'
                    "    def __init__(self, channels: int) -> None:\n"
                    '        """Start as the identity."""\n'
                    "        super().__init__()\n"
                    "        self.gain = nn.Parameter(torch.ones(channels))\n\n"
                    "    def forward(self, h: FeatureMap) -> FeatureMap:\n"
                    '        """Return the scaled map."""\n'
                    "        return h * self.gain[:, None, None]\n\n\n"
                    "class Stage(",
                ),
            ],
            "msf/network/unet.py": [
                (
                    "import AttentionBlock, Conv3x3, Downsample,",
                    "import AttentionBlock, ChannelGain, Conv3x3, Downsample,",
                ),
                (
                    "        self.output_blocks = nn.ModuleList()\n",
                    "        if config.use_gain:\n"
                    "            self.middle_block.append(ChannelGain(channels))\n"
                    "        self.output_blocks = nn.ModuleList()\n",
                ),
            ],
        },
        commands=(),
        tests=(("tests/extending/checks/layer.py", "tests/test_structure.py"), ("tests/msf/network/test_unet.py",)),
        fault=(
            "msf/network/layers.py",
            "return h * self.gain[:, None, None]",
            "return h * self.gain[:, None, None].detach()",
        ),
    ),
}


@pytest.fixture
def copy_with(tmp_path):
    """Return a function that adds a toy to a copy of the sources and returns the copy."""

    def add(kind):
        toy, copy, before = TOYS[kind], tmp_path / "copy", tmp_path / "before"
        shutil.copytree(ROOT, before, ignore=LEFT_OUT)
        shutil.copytree(before, copy)
        new = Path(__file__).with_name("extending") / kind
        if new.exists():
            shutil.copytree(new, copy, dirs_exist_ok=True, ignore=LEFT_OUT)
        for file, pairs in toy.changes.items():
            for old, text in pairs:
                replace(copy / file, old, text)
        for command in toy.commands:
            run(copy, *command)
        return copy

    return add


def replace(path, old, text):
    before = path.read_text()
    assert before.count(old) == 1, f"{path}: {old!r} is there {before.count(old)} times"
    path.write_text(before.replace(old, text))


def run(copy, *arguments, check=True):
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert not check or done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout[-4000:]}{done.stderr[-2000:]}"
    return done


def run_tests(copy, toy, check=True):
    fast = ("-q", "-p", "no:cacheprovider", "-m", "not slow")
    return [run(copy, "-m", "pytest", *fast, *arguments, check=check) for arguments in toy.tests]


def listed_on_the_page(toy):
    """Return the files of the numbered list in the toy's section, with the page's stand-ins replaced."""
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    (section,) = (text for text in sections if text.startswith(f"{toy.section}\n"))
    files = re.findall(r"^\d+\. `([^`]+)`", section, flags=re.MULTILINE)
    for stand_in, name in toy.names.items():
        files = [file.replace(stand_in, name) for file in files]
    return files


def digests(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOYS)
def test_an_extension_touches_the_files_that_the_page_lists_and_passes_its_tests(copy_with, tmp_path, kind):
    toy, copy = TOYS[kind], copy_with(kind)
    before, after = digests(tmp_path / "before"), digests(copy)
    touched = {file for file in before | after if before.get(file) != after.get(file)}
    assert touched == set(listed_on_the_page(toy))
    assert len(touched) <= toy.most_files
    for done in run_tests(copy, toy):
        assert " passed" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind, toy in TOYS.items() if toy.fault[0]])
def test_a_faulty_extension_is_noticed(copy_with, kind):
    copy = copy_with(kind)
    replace(copy / TOYS[kind].fault[0], *TOYS[kind].fault[1:])
    assert any(done.returncode for done in run_tests(copy, TOYS[kind], check=False))


def test_every_toy_has_a_section_and_every_section_a_toy():
    headings = re.findall(r"^## (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    assert sorted(headings) == sorted(toy.section for toy in TOYS.values())
