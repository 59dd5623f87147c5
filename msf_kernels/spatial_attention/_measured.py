"""The attention's table of measurements.

A row: `{"dtype": "bfloat16", "head_dim": 64, "n_tokens": 256, "has_gradient": false, "microseconds": {"triton": 41.0,
"sdpa": 55.5}}`; rows with `has_gradient` time forward and backward together.
"""

from __future__ import annotations

from pathlib import Path

from msf_kernels._measured import MeasuredTable

TABLE = MeasuredTable(
    Path(__file__).with_name("measured.json"),
    {"dtype": str, "head_dim": int, "n_tokens": int, "has_gradient": bool},
    "n_tokens",
    ("triton", "sdpa", "flash_attn", "xformers", "reference"),
)
