"""The velocity network as fast as the machine allows: an inference form derived from the trained network."""

from msf.compiled.latest import LatestVelocity
from msf.compiled.rewrites import ALL_REWRITES, Rewrite
from msf.compiled.velocity import CompiledVelocity, compile_velocity

__all__ = ["ALL_REWRITES", "CompiledVelocity", "LatestVelocity", "Rewrite", "compile_velocity"]
