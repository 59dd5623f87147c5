"""Whether a network is what its configuration builds, with other numbers: only then has it an inference form.

The inference form reads tensors and sizes out of the layers and computes the rest itself. Whatever else takes part in
the network's function, a hook, a patched or overridden `forward`, a parametrisation, a mask in a buffer, another layer
or another setting of a layer, would be left out without a word; here it becomes a reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.utils.module_tracker import ModuleTracker

from msf.config import UNetConfig
from msf.network import layers, unet
from msf.network.layers import AttentionBlock, Downsample, NormConv, ResBlock, Stage, Upsample
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
_TORCH_LAYERS = (
    nn.Conv1d, nn.Conv2d, nn.Dropout, nn.GroupNorm, nn.Identity, nn.Linear, nn.ModuleList, nn.Sequential, nn.SiLU,
)  # fmt: skip
_CONTAINERS = (NormConv, Stage, nn.ModuleList, nn.Sequential)
_KNOWN_LAYERS = (*_OWN_LAYERS, *_TORCH_LAYERS)

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in _HOOKS)
# Compared as such, or of no effect on what a layer returns.
_NOT_SETTINGS = frozenset(vars(nn.Module()))


def _functions(owner: type | ModuleType) -> dict[str, object]:
    kinds = (FunctionType, property, classmethod, staticmethod)
    return {name: value for name, value in vars(owner).items() if isinstance(value, kinds)}


_CLASSES = dict.fromkeys(base for cls in _KNOWN_LAYERS for base in cls.__mro__ if base is not object)
_OWNERS: tuple[type | ModuleType, ...] = (*_CLASSES, layers, unet)
_CODE = {owner: _functions(owner) for owner in _OWNERS}  # as it was when this module was imported


def reason_against(network: nn.Module) -> str | None:
    """Return why a network has no inference form, or None.

    Args:
        network: Any module. Dropout counts as off, whatever mode the network is in.

    Returns:
        What was found, to be read after "the network has no inference form: ".
    """
    return next(_reasons(network), None)


def _reasons(network: nn.Module) -> Iterator[str]:
    """Yield reasons; a later check relies on the earlier ones."""
    if type(network) is not UNet:
        yield f"it is a {_name(type(network))}, not a msf.network.unet.UNet"
        return
    for owner, code in _CODE.items():
        if _functions(owner) != code:
            yield f"{owner.__name__} was patched after it was imported"
    for name in _GLOBAL_HOOKS:
        if any(not _only_watches(hook) for hook in getattr(nn_module, name).values()):
            yield f"a hook on all modules is registered ({name})"
    try:
        template = _template(network)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        yield f"its configuration builds no network ({error})"
        return
    tensors = []
    for where, layer in network.named_modules(remove_duplicate=False):
        expected = template.pop(where, None)
        found = next(_layer_reasons(layer, expected), None)
        if found:
            yield f"{where or 'the network itself'} {found}"
            return
        tensors += vars(layer)["_parameters"].values()
    yield from (f"it has no layer {where}" for where in template)
    yield from _tensor_reasons([tensor for tensor in tensors if tensor is not None])


def _layer_reasons(layer: nn.Module, expected: nn.Module | None) -> Iterator[str]:
    """Yield what sets a layer apart from the one that its configuration builds."""
    kind = type(layer)
    if kind not in _KNOWN_LAYERS:
        yield f"is a {_name(kind)}, which the inference form does not know"
    elif expected is None or kind is not type(expected):
        wanted = "nothing" if expected is None else f"a {type(expected).__name__}"
        yield f"is a {kind.__name__} where the configuration has {wanted}"
    if expected is None:
        return
    found, wanted_settings = vars(layer), vars(expected)
    for name in _HOOKS:
        if found.get(name):
            yield f"has hooks ({name})"
    for name in found.keys() - wanted_settings.keys():
        yield f"has the attribute {name} of its own"
    for name, value in wanted_settings.items():
        if name not in _NOT_SETTINGS and not _same(found.get(name), value):
            yield f"has {name} = {found.get(name)!r} where the configuration has {value!r}"
    if found["_buffers"]:
        yield f"has the buffer {next(iter(found['_buffers']))}"
    children = [list(vars(module)["_modules"]) for module in (layer, expected)]
    if children[0] != children[1]:
        yield f"has the layers {', '.join(children[0])} where the configuration has {', '.join(children[1])}"
    if _shapes(layer) != _shapes(expected):
        yield f"has the parameters {_shapes(layer)} where the configuration has {_shapes(expected)}"
    known = _OWN_LAYERS.get(kind)
    if known is not None and kind not in _CONTAINERS:
        for name in (found.keys() - _NOT_SETTINGS | found["_modules"].keys() | found["_parameters"].keys()) - known:
            yield f"has the attribute {name}, which the inference form does not know"


def _tensor_reasons(tensors: list[Tensor]) -> Iterator[str]:
    first = tensors[0]
    for tensor in tensors:
        if (
            type(tensor) not in (nn.Parameter, Tensor)
            or tensor.layout != torch.strided
            or tensor.is_meta
            or tensor.is_neg()
        ):
            yield f"it has a parameter that is no ordinary tensor ({type(tensor).__name__} on {tensor.device})"
        elif tensor.dtype != first.dtype or tensor.device != first.device:
            yield f"its parameters are of {first.dtype} on {first.device} and of {tensor.dtype} on {tensor.device}"


def _template(network: UNet) -> dict[str, nn.Module]:
    """Return the layers of a fresh network of the same configuration, without numbers."""
    if type(network.config) is not UNetConfig:
        raise TypeError(f"config must be a UNetConfig; got {_name(type(network.config))}")
    return dict(_built(network.config, network.in_channels, network.out_channels, network.n_times))


@lru_cache(maxsize=8)
def _built(config: UNetConfig, in_channels: int, out_channels: int, n_times: int) -> dict[str, nn.Module]:
    with torch.device("meta"):
        network = UNet(config, in_channels, out_channels, n_times=n_times)
    return dict(network.named_modules(remove_duplicate=False))


def _only_watches(hook: Any) -> bool:
    """Return whether a hook is PyTorch's own note of which module runs, as its FLOP counter takes it."""
    return isinstance(getattr(hook, "__self__", None), ModuleTracker)


def _same(found: object, wanted: object) -> bool:
    return type(found) is type(wanted) and bool(found == wanted)


def _shapes(layer: nn.Module) -> dict[str, tuple[int, ...] | None]:
    parameters = vars(layer)["_parameters"].items()
    return {name: None if tensor is None else tuple(tensor.shape) for name, tensor in parameters}


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
