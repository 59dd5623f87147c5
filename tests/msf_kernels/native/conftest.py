"""Tests of the compiled extension skip, with its reason, where it is not built."""

import pytest
import torch


@pytest.fixture
def native():
    """Skip where the extension cannot be loaded."""
    from msf_kernels import _ext

    reasons = _ext.machine_reasons()
    if reasons:
        pytest.skip(f"native: {'; '.join(reasons)}")


@pytest.fixture
def pair_dots(native):
    """Skip where the processor cannot run the fast form of the native attention."""
    if not torch.ops.msf_native.has_pair_dots():
        pytest.skip("this processor has no AVX-512 BF16")
