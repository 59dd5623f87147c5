"""Tests of the compiled extension skip, with its reason, where it is not built."""

import pytest


@pytest.fixture
def native():
    """Skip where the extension cannot be loaded."""
    from msf_kernels import _ext

    reasons = _ext.machine_reasons()
    if reasons:
        pytest.skip(f"native: {'; '.join(reasons)}")
