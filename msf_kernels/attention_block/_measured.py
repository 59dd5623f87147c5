"""The attention block's table of measurements.

A row: `{"dtype": "bfloat16", "channels": 256, "num_heads": 4, "n_tokens": 256, "microseconds": {"triton": 41.0,
"composed": 55.5}}`.
"""

from __future__ import annotations

from pathlib import Path

from msf_kernels._measured import MeasuredTable

TABLE = MeasuredTable(
    Path(__file__).with_name("measured.json"),
    {"dtype": str, "channels": int, "num_heads": int, "n_tokens": int},
    "n_tokens",
    ("triton", "composed", "reference"),
)
