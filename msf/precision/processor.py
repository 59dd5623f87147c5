"""What kind of processor this machine has, as its operating system tells."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_AMD, _ZEN_3_AND_4 = "AuthenticAMD", 25


@dataclass(frozen=True)
class Processor:
    """A kind of processor.

    Args:
        vendor: Such as `GenuineIntel`; `unknown` where the system does not tell.
        family: Number of the family, 0 where unknown.
        model: Number within the family, 0 where unknown.
        name: For people.
        flags: Names of the instruction sets that the system offers.
    """

    vendor: str
    family: int
    model: int
    name: str
    flags: frozenset[str]

    @property
    def key(self) -> str:
        """How tables name it: `vendor family/model`."""
        return f"{self.vendor} {self.family}/{self.model}"

    @property
    def multiplies_bf16(self) -> bool:
        """Whether it has products of bfloat16, at any rate."""
        return not self.flags.isdisjoint(("avx512_bf16", "amx_bf16"))

    @property
    def has_fast_bf16(self) -> bool:
        """Whether they run faster than those of float32: by AMX, or by AVX-512 BF16 at full rate (AMD, Zen 4 on).

        Intel's AVX-512 BF16 runs at half the rate of float32.
        """
        is_zen_4_or_later = self.vendor == _AMD and self.family >= _ZEN_3_AND_4 and "avx512_bf16" in self.flags
        return "amx_bf16" in self.flags or is_zen_4_or_later


@cache
def this_processor() -> Processor:
    """Return the processor of this machine."""
    try:
        return parse_cpuinfo(_CPUINFO.read_text())
    except OSError:
        return parse_cpuinfo("")


def parse_cpuinfo(text: str) -> Processor:
    """Return the first processor that a `/proc/cpuinfo` describes; what is missing there is unknown."""
    facts: dict[str, str] = {}
    for line in text.splitlines():
        name, separator, value = line.partition(":")
        if separator:
            facts.setdefault(name.strip(), value.strip())
    return Processor(
        vendor=facts.get("vendor_id") or "unknown",
        family=_number(facts.get("cpu family")),
        model=_number(facts.get("model")),
        name=facts.get("model name") or platform.processor() or "unknown",
        flags=frozenset(facts.get("flags", "").split()),
    )


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0
