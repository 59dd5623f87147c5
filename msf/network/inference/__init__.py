"""The velocity network as fast as the machine allows: an inference form derived from the trained network."""

from msf.network.inference.latest import LatestVelocity
from msf.network.inference.rewrites import ALL_REWRITES, Rewrite
from msf.network.inference.velocity import CompiledVelocity, compile_velocity

__all__ = ["ALL_REWRITES", "CompiledVelocity", "LatestVelocity", "Rewrite", "compile_velocity"]
