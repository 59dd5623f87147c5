"""The convolution's table of measurements.

A row: `{"dtype": "bfloat16", "in_channels": 256, "out_channels": 256, "stride": 1, "upsample": false, "n_pixels":
1024, "microseconds": {"triton": 41.0, "aten": 55.5}}`; `n_pixels` are those of the input.
"""

from __future__ import annotations

from pathlib import Path

from msf_kernels._measured import MeasuredTable

TABLE = MeasuredTable(
    Path(__file__).with_name("measured.json"),
    {
        "dtype": str,
        "in_channels": int,
        "out_channels": int,
        "stride": int,
        "upsample": bool,
        "n_pixels": int,
    },
    "n_pixels",
    ("triton", "aten", "reference"),
)
