"""Whether a network is what its configuration builds, with other numbers: only then has it an inference form.

The inference form reads tensors and sizes out of the layers and computes the rest itself. Whatever else takes part in
the network's function, a hook, a patched or overridden `forward`, a parametrisation, a mask in a buffer, another layer
or another setting of a layer, would be left out without a word; here it becomes a reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules import module as nn_module
from torch.utils.module_tracker import ModuleTracker

from msf.config import UNetConfig
from msf.network import layers, unet
from msf.network.layers import AttentionBlock, Conv3x3, Downsample, NormConv, ResBlock, Stage, Upsample
from msf.network.unet import UNet

# What the inference form knows of our layers. A layer that gets one more attribute has no inference form until this
# table and `msf.network.inference.layers` know it.
_OWN_LAYERS: dict[type[nn.Module], frozenset[str]] = {
    UNet: frozenset(
        ("config", "in_channels", "out_channels", "n_times", "time_embed", "time_embed_semantic", "input_blocks")
        + ("middle_block", "output_blocks", "out")
    ),
    ResBlock: frozenset(
        ("use_scale_shift_norm", "resample", "in_layers", "emb_layers", "out_layers", "skip_connection")
    ),
    AttentionBlock: frozenset(("n_heads", "order", "norm", "qkv", "proj_out")),
    Downsample: frozenset(("op",)),
    Upsample: frozenset(("conv",)),
    NormConv: frozenset(),
    Stage: frozenset(),
}
_PLAIN_LAYERS = (
    Conv3x3, nn.Conv1d, nn.Conv2d, nn.Dropout, nn.GroupNorm, nn.Identity, nn.Linear, nn.ModuleList, nn.Sequential,
    nn.SiLU,
)  # fmt: skip
_CONTAINERS = (NormConv, Stage, nn.ModuleList, nn.Sequential)

_INERT = frozenset(("_is_torch_compile",))  # a mark that `torch.compile(network)` leaves

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in _HOOKS)
# Compared as such, or of no effect on what a layer returns.
_NOT_SETTINGS = frozenset(vars(nn.Module()))


# What PyTorch runs when one of its layers is called. Packages add methods and functions of their own to its classes and
# to modules, as `torch.compile` does to ours; those change nothing.
_CALLED = frozenset(
    ("forward", "__call__", "_call_impl", "_wrapped_call_impl", "_slow_forward", "_conv_forward", "__getattr__")
    + ("__getattribute__", "__getitem__", "__iter__", "_get_abs_string_index")
)
# What layers hold, which an attribute of their class would hide.
_HELD = frozenset(
    ("weight", "bias", "eps", "num_groups", "stride", "padding", "dilation", "groups", "padding_mode", "transposed")
    + ("output_padding", "inplace", "p", "training", "_parameters", "_modules", "_buffers")
    + ("_reversed_padding_repeated_twice", "_compiled_call_impl")
).union(*_OWN_LAYERS.values())


def _code(owner: type | ModuleType) -> dict[str, object]:
    """Return the code that takes part in a call of a layer; all functions of ours."""
    is_ours = (owner.__name__ if isinstance(owner, ModuleType) else owner.__module__).startswith("msf.")
    kinds = (FunctionType, property, classmethod, staticmethod)
    own = {name: value for name, value in vars(owner).items() if is_ours and isinstance(value, kinds)}
    return own | {name: vars(owner).get(name) for name in _CALLED | _HELD}


def _is_patched(owner: type | ModuleType, code: dict[str, object]) -> bool:
    now = vars(owner)
    return any(now.get(name) is not value for name, value in code.items())


_CLASSES = dict.fromkeys(base for cls in (*_OWN_LAYERS, *_PLAIN_LAYERS) for base in cls.__mro__ if base is not object)
_OWNERS: tuple[type | ModuleType, ...] = (*_CLASSES, layers, unet)
# As it was when this module was imported; of PyTorch's functions those that a layer calls.
_CODE = {owner: _code(owner) for owner in _OWNERS} | {
    F: {
        name: vars(F)[name]
        for name in ("avg_pool2d", "conv2d", "dropout", "group_norm", "interpolate", "linear", "silu")
    }
}


@dataclass(frozen=True)
class _Expected:
    """What a layer is where the configuration has built the network.

    Args:
        where: Its name in the network.
        layer: The layer itself, on the meta device.
        keys: Names of all its instance attributes.
        settings: Names of those that decide what it computes.
        values: Their values.
        parameters: Name and shape of each parameter.
        children: The layers inside, in their order.
        unknown: What the inference form does not know of it; empty: nothing.
    """

    where: str
    layer: nn.Module
    keys: frozenset[str]
    settings: tuple[str, ...]
    values: list[object]
    parameters: dict[str, tuple[int, ...] | None]
    children: dict[str, _Expected]
    unknown: str


def reason_against(network: nn.Module) -> str | None:
    """Return why a network has no inference form, or None.

    Args:
        network: Any module. Dropout counts as off, whatever mode the network is in.
    """
    found = examine(network)
    return found if isinstance(found, str) else None


def examine(network: nn.Module) -> str | list[Tensor]:
    """Return why a network has no inference form; or its parameters, always in one order.

    Args:
        network: Any module.
    """
    if type(network) is not UNet:
        return f"it is a {_name(type(network))}, not a msf.network.unet.UNet"
    for owner, code in _CODE.items():
        if _is_patched(owner, code):
            return f"{owner.__name__} was patched after it was imported"
    for name in _GLOBAL_HOOKS:
        if any(not _only_watches(hook) for hook in getattr(nn_module, name).values()):
            return f"a hook on all modules is registered ({name})"
    if type(network.config) is not UNetConfig:
        return f"its config is a {_name(type(network.config))}, not a msf.config.UNetConfig"
    try:
        expected = _expected(network.config, network.in_channels, network.out_channels, network.n_times)
    except (TypeError, ValueError, AttributeError) as error:
        return f"its configuration builds no network ({error})"
    tensors: list[Tensor] = []
    different = _first_different(network, expected, tensors)
    if different is not None:
        layer, wanted = different
        return f"{wanted.where or 'the network itself'} {next(_differences(layer, wanted), 'is another layer')}"
    return next(_tensor_reasons(tensors), None) or tensors


def _first_different(
    layer: nn.Module, expected: _Expected, tensors: list[Tensor]
) -> tuple[nn.Module, _Expected] | None:
    """Return the first layer that is not as expected, with what was; collect parameters on the way."""
    found = vars(layer)
    if type(layer) is not type(expected.layer) or not _is_as(found, expected):
        return layer, expected
    for name, shape in expected.parameters.items():
        tensor = found["_parameters"][name]
        if (None if tensor is None else tensor.shape) != shape:
            return layer, expected
        if tensor is not None:
            tensors.append(tensor)
    for child, wanted in zip(found["_modules"].values(), expected.children.values(), strict=True):
        if child is None:
            return layer, expected
        different = _first_different(child, wanted, tensors)
        if different is not None:
            return different
    return None


def _is_as(found: dict[str, Any], expected: _Expected) -> bool:
    try:
        return (
            (found.keys() == expected.keys or found.keys() - _INERT == expected.keys)
            and not any(found[name] for name in _HOOKS)
            and not found["_buffers"]
            and [found[name] for name in expected.settings] == expected.values
            and found["_parameters"].keys() == expected.parameters.keys()
            and list(found["_modules"]) == list(expected.children)
            and not expected.unknown
        )
    except (KeyError, RuntimeError, ValueError):  # comparing an array or a tensor with a number
        return False


def _differences(layer: nn.Module, expected: _Expected) -> Iterator[str]:
    """Yield what sets a layer apart from the one that its configuration builds, to be read after its name."""
    found, kind, wanted = vars(layer), type(layer), type(expected.layer)
    if kind is not wanted:
        yield f"is a {_name(kind)}, where the configuration has a {wanted.__name__}"
    if expected.unknown:
        yield f"has what the inference form does not know: {expected.unknown}"
    for name in _HOOKS:
        if found.get(name):
            yield f"has hooks ({name})"
    if found.get("_buffers"):
        yield f"has the buffer {next(iter(found['_buffers']))}"
    for name in sorted((found.keys() ^ expected.keys) - _INERT):
        yield f"has the attribute {name} of its own" if name in found else f"has lost the attribute {name}"
    for name, value in zip(expected.settings, expected.values, strict=True):
        if found[name] is not value and repr(found[name]) != repr(value):
            yield f"has {name} = {found[name]!r} where the configuration has {value!r}"
    children = list(found["_modules"])
    if children != list(expected.children):
        yield f"has the layers {children} where the configuration has {list(expected.children)}"
    shapes = _shapes(layer)
    yield f"has the parameters {shapes} where the configuration has {expected.parameters}"


def _tensor_reasons(tensors: list[Tensor]) -> Iterator[str]:
    first = tensors[0]
    for tensor in tensors:
        is_plain = type(tensor) in (nn.Parameter, Tensor) and tensor.layout == torch.strided
        if not is_plain or tensor.is_meta or tensor.is_neg():
            yield f"it has a parameter that is no ordinary tensor ({type(tensor).__name__} on {tensor.device})"
        elif tensor.dtype != first.dtype or tensor.device != first.device:
            yield f"its parameters are of {first.dtype} on {first.device} and of {tensor.dtype} on {tensor.device}"


@lru_cache(maxsize=8)
def _expected(config: UNetConfig, in_channels: int, out_channels: int, n_times: int) -> _Expected:
    with torch.device("meta"):
        return _describe(UNet(config, in_channels, out_channels, n_times=n_times), "")


def _describe(layer: nn.Module, where: str) -> _Expected:
    found = vars(layer)
    settings = tuple(name for name in found if name not in _NOT_SETTINGS)
    values = [found[name] for name in settings]
    shapes = _shapes(layer)
    inside = {name: _describe(child, f"{where}.{name}".lstrip(".")) for name, child in layer.named_children()}
    unknown = _unknown(layer, {*settings, *shapes, *inside})
    return _Expected(where, layer, frozenset(found), settings, values, shapes, inside, unknown)


def _unknown(layer: nn.Module, names: set[str]) -> str:
    kind = type(layer)
    if kind in _PLAIN_LAYERS or kind in _CONTAINERS:
        return ""
    if kind not in _OWN_LAYERS:
        return f"a {_name(kind)}"
    return ", ".join(sorted(names - _OWN_LAYERS[kind]))


def _only_watches(hook: Any) -> bool:
    """Return whether a hook is PyTorch's own note of which module runs, as its FLOP counter takes it."""
    return isinstance(getattr(hook, "__self__", None), ModuleTracker)


def _shapes(layer: nn.Module) -> dict[str, tuple[int, ...] | None]:
    parameters = vars(layer)["_parameters"].items()
    return {name: None if tensor is None else tuple(tensor.shape) for name, tensor in parameters}


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
