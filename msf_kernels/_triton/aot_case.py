"""One compilation of one kernel, so that every kernel can be checked without a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Said explicitly because Triton is about to change its default.
FLOAT_OPTIONS = {"enable_fp_fusion": True}


@dataclass(frozen=True)
class AotCase:
    """A kernel with the types, constants and launch options of a real call.

    Args:
        label: Operator, dtype and configuration, for a table.
        kernel: `triton.jit` function.
        signature: Triton type of every run-time argument by name, such as `"*fp32"`, `"i64"`; a tuple of types for a
            tuple argument.
        constexprs: Value of every compile-time argument by name.
        num_warps: Warps per program.
        num_stages: Depth of the load pipeline.
        unaligned: Names of run-time arguments that are *not* multiples of 16 (pointers and sizes usually are).
        is_matmul: Whether the kernel multiplies matrices and must show tensor-core instructions.
        n_programs: Programs of the recorded call; of no influence on what is compiled.
    """

    label: str
    kernel: Any
    signature: Mapping[str, str | tuple[str, ...]]
    constexprs: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 1
    unaligned: frozenset[str] = field(default_factory=frozenset)
    is_matmul: bool = False
    n_programs: int = 0

    def compile(self, compute_capability: int) -> Any:
        """Compile for a CUDA architecture without a device.

        Args:
            compute_capability: Such as 80, 90 or 100.

        Returns:
            Triton's compiled kernel; `asm` holds `ptx` and `cubin`, `metadata` the shared memory.
        """
        names = self.kernel.arg_names
        signature = {name: "constexpr" if name in self.constexprs else self.signature[name] for name in names}
        aligned: dict[tuple[int, ...], list[list[Any]]] = {}
        for position, (name, type_) in enumerate(signature.items()):
            paths = [(position,)] if isinstance(type_, str) else [(position, i) for i in range(len(type_))]
            types = [type_] if isinstance(type_, str) else type_
            for path, one in zip(paths, types, strict=True):
                if one[0] in "*i" and one != "i1" and name not in self.unaligned:
                    aligned[path] = [["tt.divisibility", 16]]
        source = ASTSource(self.kernel, signature, constexprs=dict(self.constexprs), attrs=aligned)
        target = GPUTarget("cuda", compute_capability, 32)
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages, **FLOAT_OPTIONS}
        return triton.compile(source, target=target, options=options)
