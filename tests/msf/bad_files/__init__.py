"""Bad files of every kind that is read, made at run time; tests of the readers and of the commands share them.

`BAD_FILES` is the list, `sound(kind, folder)` writes a good file of a kind, which a reader must take.
"""

from tests.msf.bad_files import archives, autoencoders, checkpoints, pictures, torch_files  # noqa: F401
from tests.msf.bad_files.case import BAD_FILES, BadFile
from tests.msf.bad_files.sound import EXPERIMENT, N_STEPS, TASK, network_tensors, run_parts, sound

__all__ = ["BAD_FILES", "EXPERIMENT", "N_STEPS", "TASK", "BadFile", "network_tensors", "run_parts", "sound"]
