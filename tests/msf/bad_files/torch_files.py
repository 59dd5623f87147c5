"""Files of `torch.save` that no reader must take: checkpoints of the authors' code, and training states."""

import io
import zipfile

import torch

from tests.msf.bad_files.case import add
from tests.msf.bad_files.checkpoints import FINITE, FIRST
from tests.msf.bad_files.sound import network_tensors, training_state


class Payload:
    """An object whose unpickling would run code."""

    def __reduce__(self):
        return (print, ("code of a file has run",))


def torch_file(kind, content):
    """Make a file of `torch.save`; `content` is a function, so that nothing is made before a test needs it."""

    def make(folder):
        path = folder / ("official.pt" if kind == "official" else "training_state.pt")
        value = content()
        if isinstance(value, bytes):
            path.write_bytes(value)
        else:
            torch.save(value, path)
        return path

    return make


def with_tensor(name, value):
    return lambda: network_tensors() | {name: value()}


def torch_bytes(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def compressed(data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return buffer.getvalue()


def flipped_in_record(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
    position = largest.header_offset + 200
    return data[:position] + bytes([data[position] ^ 8]) + data[position + 1 :]


def nested_dictionaries():
    content = {}
    for _ in range(100):
        content = {"a": content}
    return content


def circular():
    content = {}
    content["a"] = content
    return content


TORCH = "must be a file of torch.save"
DENSE = f"must hold dense tensors of real numbers; got {FIRST}"
CODE = "must hold tensors, dictionaries and plain values only"
STRETCHED = f"must hold every value of its tensors; got {FIRST}"
SHAPE = (32, 6, 3, 3)
for title, wanted, content in [
    ("nothing", TORCH, lambda: b""),
    ("text", TORCH, lambda: b"hello"),
    ("a pickle", TORCH, lambda: b"\x80\x02]q\x00."),
    ("half a file", TORCH, lambda: torch_bytes(network_tensors())[:20000]),
    ("a flipped bit", f"{TORCH}; got: a damaged record", lambda: flipped_in_record(torch_bytes(network_tensors()))),
    ("compressed records", f"{TORCH}; got: compressed", lambda: compressed(torch_bytes(network_tensors()))),
    ("the format before 1.6", TORCH, lambda: torch_bytes(network_tensors(), _use_new_zipfile_serialization=False)),
    ("code", CODE, lambda: {"state_dict": network_tensors(), "args": Payload()}),
    ("a module", CODE, lambda: torch.nn.Linear(2, 2)),
    ("a number", "it has no tensor input_blocks", lambda: 3),
    ("a list", "it has no tensor input_blocks", lambda: [torch.zeros(3)]),
    ("dictionaries of 100 levels", "nested deeper than", nested_dictionaries),
    ("a dictionary that holds itself", "nested deeper than", circular),
    ("a sparse tensor of a long name", "got 'xxx", lambda: {"x" * 10**5: torch.zeros(3).to_sparse()}),
    ("a key of 71 digits", "plain keys; got int", lambda: {10**70: torch.zeros(3)}),
    ("keys that are tuples", "plain keys", lambda: {(1, 2): torch.zeros(3)}),
    ("a sparse tensor", DENSE, with_tensor(FIRST, lambda: torch.zeros(SHAPE).to_sparse())),
    ("a tensor on meta", DENSE, with_tensor(FIRST, lambda: torch.zeros(SHAPE, device="meta"))),
    ("a complex tensor", DENSE, with_tensor(FIRST, lambda: torch.zeros(SHAPE, dtype=torch.complex64))),
    ("a stretched view", STRETCHED, with_tensor(FIRST, lambda: torch.zeros(1).expand(SHAPE))),
    ("a view of terabytes", STRETCHED, with_tensor(FIRST, lambda: torch.zeros(1).expand(2**20, 2**20, 3, 3))),
    ("whole numbers", f"floating-point weights; got {FIRST}", with_tensor(FIRST, lambda: torch.zeros(SHAPE).long())),
    ("a weight that is NaN", FINITE, with_tensor(FIRST, lambda: torch.full(SHAPE, torch.nan))),
    ("a weight of 1e30", FINITE, with_tensor(FIRST, lambda: torch.full(SHAPE, 1e30))),
    (
        "a half-precision weight that is infinite",
        FINITE,
        with_tensor(FIRST, lambda: torch.full(SHAPE, torch.inf).half()),
    ),
    ("a tensor without axes", "missing or has no axis", with_tensor("time_embed.0.weight", lambda: torch.zeros(()))),
]:
    add("official", title, wanted, torch_file("official", content))
add("official", "a file that is missing", "must be an existing checkpoint file", lambda folder: folder / "none.pt")


def state_with(path, value):
    """Make a training state with one value replaced by its path, or left out where the value is `...`."""

    def content():
        *parents, last = path
        state = dict(training_state())
        inner = state
        for parent in parents:
            inner[parent] = list(inner[parent]) if isinstance(inner[parent], list) else dict(inner[parent])
            inner = inner[parent]
        if value is ...:
            del inner[last]
        else:
            inner[last] = value() if callable(value) else value
        return state

    return torch_file("training_state", content)


for title, wanted, content in [
    ("nothing", "must be an intact training state; got: File is not a zip", lambda: b""),
    ("a list", "must be an intact training state; got list", lambda: [1, 2]),
    ("no fields", "must be an intact training state; missing: experiment", dict),
    ("weights alone", "must be an intact training state; missing: experiment", network_tensors),
    ("code", CODE, lambda: {**training_state(), "args": Payload()}),
    ("a flipped bit", "a damaged record", lambda: flipped_in_record(torch_bytes(training_state()))),
]:
    add("training_state", title, wanted, torch_file("training_state", content))
PARAMETER = ("optimizer", "state", 0)
for path, value, wanted in [
    (("position",), ..., "missing: position"),
    (("experiment",), "x", "must have experiment of type dict; got 'x'"),
    (("experiment", "data"), lambda: torch.zeros(2), "experiment of plain values; got tensors"),
    (("data_fingerprint",), 3, "must have data_fingerprint of type str"),
    (("network", FIRST), ..., f"1 missing: {FIRST}"),
    (("network", FIRST), 3, f"network of .* must hold tensors; got '{FIRST}' of int"),
    (("network", FIRST), lambda: torch.zeros(3), "1 of another shape"),
    (("network", FIRST), lambda: torch.full(SHAPE, torch.nan), f"finite weights .*got {FIRST}"),
    (("network", FIRST), lambda: torch.zeros(SHAPE).to_sparse(), "dense tensors of real numbers"),
    (("network", FIRST), lambda: torch.zeros(1).expand(SHAPE), "every value of its tensors"),
    (("average", f"module.{FIRST}"), lambda: torch.zeros(SHAPE).long(), "average of .* floating-point weights"),
    (("average", "n_averaged"), ..., "1 missing: n_averaged"),
    (("optimizer", "state"), ..., "optimizer of .* must have state and param_groups"),
    (("optimizer", "param_groups"), {}, "optimizer of .* must have state and param_groups"),
    (("optimizer", "param_groups"), [], "must have 1 param_groups; got 0"),
    (("optimizer", "param_groups", 0), 3, "must have the param_groups of this run"),
    (("optimizer", "param_groups", 0, "params"), [0, 0], "must have the param_groups of this run"),
    (("optimizer", "param_groups", 0, "betas"), "x", "must have the settings of this run; another betas"),
    (("optimizer", "param_groups", 0, "lr"), "x", "lr of .* must be a number"),
    (PARAMETER, ..., "must have a state for each of"),
    (PARAMETER, 5, "must have step, exp_avg and exp_avg_sq; got 5"),
    ((*PARAMETER, "exp_avg"), lambda: torch.zeros(2), "1 of another shape: exp_avg"),
    ((*PARAMETER, "step"), "x", "must hold tensors; got 'step' of str"),
    ((*PARAMETER, "step"), lambda: torch.tensor(-1.0), "step of .* must be finite and >= 0"),
    ((*PARAMETER, "exp_avg_sq"), lambda: torch.full((128, 32), -1.0), "exp_avg_sq of .* must be finite and >= 0"),
    ((*PARAMETER, "exp_avg"), lambda: torch.full((128, 32), torch.inf), "exp_avg of .* must be finite"),
    (("position", "step"), 10**9, "position of .* must lie in a run of 40 steps"),
    (("position", "step"), -1, "must lie in a run of"),
    (("position", "step"), "7", "step in the position of .* must be a number"),
    (("position", "step"), ..., "position of .* must have step, epoch_loss"),
    (("position", "epoch_loss"), float("nan"), "epoch_loss in the position of .* must be finite"),
    (("position", "best_epoch"), 99, "must lie in a run of"),
    (("position", "best_value"), None, "best_value in the position of .* must be a number"),
    (("position", "seconds"), float("inf"), "seconds in the position of .* must be finite"),
    (("position", "history"), "none", "history in the position of .* must be a list"),
    (("position", "history"), [3], "history in the position of .* must be rows of figures"),
    (("position", "more"), 3, "position of .* must have step"),
]:
    name = ".".join(map(str, path)) + (" left out" if value is ... else f" = {wanted[:40]}")
    add("training_state", name, wanted, state_with(path, value))
