"""What a compiler made of one kernel, and what of that is not acceptable."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024


@dataclass(frozen=True)
class Architecture:
    """What a kernel may use, and what a kernel that multiplies matrices must use.

    Args:
        shared_bytes: Most shared memory of a block.
        matmul_family: Family of tensor-core instructions of its own.
    """

    shared_bytes: int
    matmul_family: str


# Shared memory per block: CUDA C++ programming guide, table of technical specifications per compute capability.
ARCHITECTURES = {
    "sm_80": Architecture(163 * KIB, "mma.sync"),
    "sm_86": Architecture(99 * KIB, "mma.sync"),
    "sm_89": Architecture(99 * KIB, "mma.sync"),
    "sm_90": Architecture(227 * KIB, "wgmma"),
    "sm_100": Architecture(227 * KIB, "tcgen05"),
    "sm_103": Architecture(227 * KIB, "tcgen05"),
    "sm_120": Architecture(99 * KIB, "mma.sync"),
}

# Instructions as PTX spells them.
FAMILIES = {"mma.sync": "mma.sync", "wgmma": "wgmma.mma_async", "tcgen05": "tcgen05.mma"}


@dataclass(frozen=True)
class Compilation:
    """One kernel in one configuration for one architecture.

    Args:
        compiler: `triton` or `nvcc`.
        source: Operator, or file name.
        kernel: Kernel's name.
        arch: Such as `sm_90`.
        label: Inputs and configuration, or template arguments.
        registers: Per thread; None where it did not compile.
        spill_bytes: What did not fit into registers, per thread.
        local_bytes: Local memory per thread: what was spilled, and arrays that are not in registers.
        shared_bytes: Shared memory per block.
        families: Tensor-core instructions found.
        is_matmul: Whether it must have the architecture's own.
        error: Why it did not compile; empty if it did.
    """

    compiler: str
    source: str
    kernel: str
    arch: str
    label: str
    registers: int | None = None
    spill_bytes: int | None = None
    local_bytes: int | None = None
    shared_bytes: int | None = None
    families: tuple[str, ...] = ()
    is_matmul: bool = False
    error: str = ""

    @property
    def problems(self) -> list[str]:
        """What is not acceptable; empty when all is well."""
        if self.error:
            return [f"does not compile: {self.error}"]
        found = []
        architecture = ARCHITECTURES[self.arch]
        if self.spill_bytes:
            found.append(f"spills {self.spill_bytes} bytes per thread")
        if (self.shared_bytes or 0) > architecture.shared_bytes:
            found.append(f"needs {self.shared_bytes} bytes of shared memory; {architecture.shared_bytes} are there")
        if self.is_matmul and architecture.matmul_family not in self.families:
            got = ", ".join(self.families) or "no tensor-core instruction"
            found.append(f"multiplies matrices without {architecture.matmul_family}: {got}")
        return found


def families_in(ptx: str) -> tuple[str, ...]:
    """Return the families of tensor-core instructions that occur in a PTX text."""
    return tuple(family for family, spelling in FAMILIES.items() if spelling in ptx)
