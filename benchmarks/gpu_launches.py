"""What a GPU would be asked to do, found on a machine without one: every kernel of an evaluation, in its order.

The code runs on tensors without values that say they are on a GPU. Our operators say which kernels they would launch,
in which configuration; of PyTorch's, one kernel each is assumed, one more where a convolution has a bias.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from msf.config import RECIPES, UNetConfig
from msf.network.inference.form import build_form
from msf.network.inference.layers import FoldedTime
from msf.network.unet import UNet
from msf_kernels._triton.registration import LAUNCHERS
from msf_kernels.prepared import PreparedConvolution

CHANNELS, SIDE = 8, 32
_ALLOCATIONS = ("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "_unsafe_view", "detach")


@dataclass(frozen=True)
class Launch:
    """One operator of an evaluation.

    Args:
        operator: Such as `msf_triton::prepared_convolution_fwd` or `aten::convolution`.
        shapes: Sizes of its tensors, inputs first.
        n_kernels: Kernels that it launches.
        flops: Two per multiply-add.
        n_bytes: Every tensor read or written once.
        cases: What our kernels would be compiled for; empty for PyTorch's.
    """

    operator: str
    shapes: tuple[tuple[int, ...], ...]
    n_kernels: int
    flops: float
    n_bytes: int
    cases: tuple[Any, ...] = ()


class LaunchRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the kernels of everything that runs inside.

    Args:
        arch: Compute capability, such as 90.
    """

    def __init__(self, arch: int) -> None:
        """Start with none."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.arch = arch
        self.launches: list[Launch] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator on tensors without values, and note what it launches."""
        result = func(*args, **(kwargs or {}))
        space, _, name = func._schema.name.partition("::")
        cases: tuple[Any, ...] = ()
        n_kernels = 0 if func.is_view or name in _ALLOCATIONS or space == "prim" else 1
        if name == "convolution" and args[2] is not None:
            n_kernels += 1
        if space == "msf_triton":
            cases = self._cases(name, args)
            n_kernels = len(cases)
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        if n_kernels:
            formula = flop_registry.get(func._overloadpacket)
            flops = float(formula(*args, **(kwargs or {}), out_val=result)) if formula else 0.0
            shapes, n_bytes = tuple(tuple(x.shape) for x in tensors), sum(x.nbytes for x in tensors)
            self.launches.append(Launch(f"{space}::{name}", shapes, n_kernels, flops, n_bytes, cases))
        return result

    def _cases(self, name: str, args: Any) -> tuple[Any, ...]:
        from msf_kernels._triton.recording import record_launches

        def without_values(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")

        with unset_fake_temporarily(), record_launches(name, self.arch, first_only=True) as cases:
            LAUNCHERS[name](*tree_map(without_values, args))
        return tuple(cases)


class _WithoutDevice(TorchFunctionMode):
    """Takes the methods past the step in which they would ask for the device that is not there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.contiguous:
            x, memory_format = args[0], kwargs.get("memory_format", torch.contiguous_format)
            if x.is_contiguous(memory_format=memory_format):
                return x
            return torch.ops.aten.clone.default(x, memory_format=memory_format)
        if func is functional.scaled_dot_product_attention:  # what PyTorch's choice comes to on a GPU in half precision
            return torch.ops.aten._scaled_dot_product_flash_attention.default(*args[:3])[0]
        if func is torch.Tensor.to:
            x, dtype = args[0], next((each for each in args[1:] if isinstance(each, torch.dtype)), args[0].dtype)
            options = {name: value for name, value in kwargs.items() if name in ("dtype", "memory_format", "copy")}
            is_copied = options.pop("copy", False)
            is_same = options.get("dtype", dtype) == x.dtype and not is_copied
            wanted = options.get("memory_format", torch.preserve_format)
            if is_same and (wanted == torch.preserve_format or x.is_contiguous(memory_format=wanted)):
                return x
            return torch.ops.aten._to_copy.default(x, **{"dtype": dtype, **options})
        return func(*args, **kwargs)


@contextmanager
def imagined_gpu(name: str = "an imagined GPU", capability: tuple[int, int] = (9, 0)) -> Iterator[None]:
    """Let tensors without values be on a GPU, and everything that asks believe in one."""
    believed = {
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.get_device_name": lambda device=None: name,
        "torch.cuda.get_device_capability": lambda device=None: capability,
        "msf_kernels._triton.machine.is_interpreting": lambda: False,
    }
    with ExitStack() as stack:
        for target, answer in believed.items():
            stack.enter_context(mock.patch(target, answer))
        stack.enter_context(mock.patch("msf_kernels._triton.machine._IS_BUILT_FOR_GPU", True))
        stack.enter_context(FakeTensorMode())
        stack.enter_context(_WithoutDevice())
        yield


def evaluation_launches(
    config: UNetConfig | None = None, *, n: int = 64, dtype: torch.dtype = torch.bfloat16, arch: int = 90
) -> list[Launch]:
    """Return the launches of one evaluation of a network's inference form, as `auto` runs it on a GPU.

    Args:
        config: The network; default: that of `published-224`.
        n: Micro-batch.
        dtype: Dtype of the maps.
        arch: Compute capability of the GPU.
    """
    capability = divmod(arch, 10)
    with warnings.catch_warnings(), imagined_gpu(capability=capability), torch.no_grad():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor", UserWarning)
        with torch.device("meta"):
            network = UNet(config or RECIPES["published-224"].network, CHANNELS, CHANNELS).eval()
        for layer in network.modules():
            for name, parameter in layer.named_parameters(recurse=False):
                there = torch.empty(parameter.shape, device="cuda:0")
                layer._parameters[name] = nn.Parameter(there, requires_grad=False)
        z = torch.empty(n, CHANNELS, SIDE, SIDE, device="cuda:0")
        field = build_form(network, dtype=dtype)
        # A time's number cannot be put on a GPU that is not there; what the blocks keep of it can.
        field._times[(1.0,)] = [
            FoldedTime(bias=torch.empty(block.conv_in.out_channels, dtype=dtype, device="cuda:0"))
            for block in field._residual_blocks
            if isinstance(block.conv_in, PreparedConvolution)
        ]
        field(z, 1.0)  # lays weights out
        return recorded(lambda: field(z, 1.0), arch)


def recorded(call: Callable[[], Any], arch: int = 90) -> list[Launch]:
    """Return the launches of a call, made inside `imagined_gpu`."""
    recorder = LaunchRecorder(arch)
    with recorder:
        call()
    return recorder.launches
