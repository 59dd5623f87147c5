"""Which arithmetic a network's evaluations are faster in, on which processor: a rule, a table, and the user's own."""

from msf.precision.processor import Processor, this_processor
from msf.precision.rule import PRECISION_ENV, AutoPrecision, auto_precision
from msf.precision.table import Measured, user_table_path, write_user_rows

__all__ = [
    "PRECISION_ENV",
    "AutoPrecision",
    "Measured",
    "Processor",
    "auto_precision",
    "this_processor",
    "user_table_path",
    "write_user_rows",
]
