"""What `training_state.pt` holds: every part of it is checked against the run that goes on with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from msf.files.tensors import require_matching_tensors, require_sound_weights
from msf.plain_values import checked_value, shown

_FIELDS = {
    "experiment": dict,
    "data_fingerprint": str,
    "network": dict,
    "average": dict,
    "optimizer": dict,
    "position": dict,
}
_MOMENTS = ("exp_avg", "exp_avg_sq")
_FIGURES = (int, float, str, type(None))


def require_state_fields(state: Mapping[str, Any], path: Path) -> None:
    """Check that the parts of a state are there and of their types; `require_state_of_run` looks into them.

    Args:
        state: What `training_state.pt` holds.
        path: Its file, for the message.

    Raises:
        ValueError: A part is missing.
        TypeError: A part of another type, or an experiment with tensors in it.
    """
    missing = [name for name in _FIELDS if name not in state]
    if missing:
        raise ValueError(f"{str(path)!r} must be an intact training state; missing: {', '.join(missing)}")
    for name, wanted in {**_FIELDS, "autoencoder_fingerprint": str}.items():
        if not isinstance(state.get(name, wanted()), wanted):
            raise TypeError(f"{str(path)!r} must have {name} of type {wanted.__name__}; got {shown(state[name])}")
    if _holds_tensors(state["experiment"]):
        raise TypeError(f"{str(path)!r} must have an experiment of plain values; got tensors in it")


def require_state_of_run(
    state: Mapping[str, Any],
    path: Path,
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    n_steps: int,
) -> None:
    """Check that what a state holds can be the state of a run.

    Args:
        state: What the file holds, its parts checked.
        path: Its file, for the message.
        network: The network that is trained.
        average: Its weight average.
        optimizer: Of the network's parameters, AdamW.
        n_steps: Steps of the whole run.

    Raises:
        TypeError: A tensor or a number of another type.
        ValueError: Tensors of other names or shapes, values that are not finite, or a position outside the run.
    """
    for name, module in (("network", network), ("average", average)):
        where = f"{name} of {str(path)!r}"
        expected = module.state_dict()
        _require_tensors(state[name], where)
        require_matching_tensors(expected, state[name], where)
        is_weight = {key: tensor.is_floating_point() for key, tensor in expected.items()}
        require_sound_weights({key: value for key, value in state[name].items() if is_weight[key]}, where)
    _require_optimizer(state["optimizer"], optimizer, f"optimizer of {str(path)!r}")
    _require_position(state["position"], n_steps, f"position of {str(path)!r}")


def _require_optimizer(state: Mapping[str, Any], optimizer: torch.optim.Optimizer, where: str) -> None:
    wanted = optimizer.state_dict()
    groups = state.get("param_groups")
    if not isinstance(groups, list) or not isinstance(state.get("state"), dict) or state.keys() != wanted.keys():
        raise ValueError(f"{where} must have state and param_groups; got {shown(sorted(map(str, state)))}")
    if len(groups) != len(wanted["param_groups"]):
        raise ValueError(f"{where} must have {len(wanted['param_groups'])} param_groups; got {len(groups)}")
    for group, expected in zip(groups, wanted["param_groups"], strict=True):
        if not isinstance(group, dict) or _holds_tensors(group) or group.get("params") != expected["params"]:
            raise ValueError(f"{where} must have the param_groups of this run; got {shown(group)}")
        # Settings are this run's, which `experiment` was compared with; the learning rate is set at every step.
        different = [name for name in group.keys() & expected.keys() if name != "lr" and group[name] != expected[name]]
        if different:
            raise ValueError(f"{where} must have the settings of this run; another {', '.join(sorted(different))}")
        checked_value(f"lr of {where}", group.get("lr"), float)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if state["state"] and state["state"].keys() != set(range(len(parameters))):
        raise ValueError(f"{where} must have a state for each of {len(parameters)} parameters")
    for number, moments in state["state"].items():
        here = f"parameter {number} in the {where}"
        if not isinstance(moments, dict) or moments.keys() != {"step", *_MOMENTS}:
            raise ValueError(f"{here} must have step, {' and '.join(_MOMENTS)}; got {shown(moments)}")
        _require_tensors(moments, here)
        shape = parameters[number].shape
        expected_shapes = {name: torch.empty(shape, device="meta") for name in _MOMENTS}
        require_matching_tensors({"step": torch.empty((), device="meta"), **expected_shapes}, moments, here)
        for name, tensor in moments.items():
            if not tensor.is_floating_point():
                raise TypeError(f"{name} of {here} must be floating point; got {tensor.dtype}")
            low = -torch.inf if name == "exp_avg" else 0.0
            if not (tensor.isfinite() & (tensor >= low)).all():
                raise ValueError(f"{name} of {here} must be finite{' and >= 0' if low == 0 else ''}")


def _require_position(position: Mapping[str, Any], n_steps: int, where: str) -> None:
    wanted = {
        "step": int,
        "epoch_loss": float,
        "epoch_image_loss": float,
        "epoch_semantic_loss": float,
        "best_epoch": int,
        "best_value": float,
        "seconds": float,
        "history": list,
    }
    if position.keys() != wanted.keys():
        raise ValueError(f"{where} must have {', '.join(wanted)}; got {shown(sorted(map(str, position)))}")
    for name, kind in wanted.items():
        # Before the first validation the best value is -inf.
        if not (name == "best_value" and position[name] == -float("inf")):
            checked_value(f"{name} in the {where}", position[name], kind)
    history = position["history"]
    for row in history:
        if not isinstance(row, dict) or not all(isinstance(value, _FIGURES) for value in row.values()):
            raise ValueError(f"history in the {where} must be rows of figures; got {shown(row)}")
    is_inside = 0 <= position["step"] <= n_steps and -1 <= position["best_epoch"] < max(1, len(history))
    if not is_inside or position["seconds"] < 0:
        raise ValueError(f"{where} must lie in a run of {n_steps} steps; got {shown(dict(position))}")


def _require_tensors(values: Mapping[Any, Any], where: str) -> None:
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{where} must hold tensors; got {shown(name)} of {type(value).__name__}")


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_tensors, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_holds_tensors, value))
    return isinstance(value, Tensor)
