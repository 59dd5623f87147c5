"""Which arithmetic a network's evaluations are faster in, on which processor: a rule, a table, and the user's own."""

from msf.precision.processor import Processor, this_processor
from msf.precision.rule import PRECISION_ENV, AutoPrecision, auto_precision, micro_batch_of_bf16, training_precision
from msf.precision.table import Measured, user_table, user_table_path, write_user_rows

__all__ = [
    "PRECISION_ENV",
    "AutoPrecision",
    "Measured",
    "Processor",
    "auto_precision",
    "micro_batch_of_bf16",
    "this_processor",
    "training_precision",
    "user_table",
    "user_table_path",
    "write_user_rows",
]
