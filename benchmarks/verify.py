"""The tests that must pass before a time means anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.rows import ROOT


def failing_tests(tests: Sequence[str]) -> dict[str, str]:
    """Run test folders, files or node ids in one pytest process, and return those that did not pass, with the reason.

    A file of which every test was skipped passes. Slow tests and those that need a GPU that is not there are left out.
    """
    wanted = list(dict.fromkeys(tests))
    if not wanted:
        return {}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", "--tb=no", *wanted]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode == 0:
        return {}
    named = re.findall(r"^(?:FAILED|ERROR) (\S+?)(?: - (.*))?$", done.stdout, re.MULTILINE)
    failing: dict[str, str] = {}
    for test in wanted:
        reasons = [
            f"{node} {why}".strip() for node, why in named if node == test or node.startswith((f"{test}::", f"{test}/"))
        ]
        if reasons:
            failing[test] = reasons[0] + (f" and {len(reasons) - 1} more" if len(reasons) > 1 else "")
    if failing:
        return failing
    # Nothing was run: a file that does not exist, or pytest itself.
    last = (done.stdout + done.stderr).strip().splitlines()
    return dict.fromkeys(wanted, f"pytest ended with exit code {done.returncode}: {last[-1] if last else 'no output'}")
