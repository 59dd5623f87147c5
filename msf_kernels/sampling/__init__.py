import warnings
from typing import Any

from msf_kernels.sampling.capture import CapturedTrajectory, GraphCache
from msf_kernels.sampling.engine import draw
from msf_kernels.sampling.flow import FlowTrajectory, sample_flow
from msf_kernels.sampling.memory import default_micro_batch
from msf_kernels.sampling.result import InvalidSamplesError, SamplingResult
from msf_kernels.sampling.statistics import Accumulator, Mean, MeanEntropy, MeanVariance, Statistic, Votes
from msf_kernels.sampling.stopping import SettledVote, StopDecision, StopRule

__all__ = [
    "Accumulator",
    "CapturedTrajectory",
    "FlowTrajectory",
    "GraphCache",
    "InvalidSamplesError",
    "Mean",
    "MeanEntropy",
    "MeanVariance",
    "SamplingResult",
    "SettledVote",
    "Statistic",
    "StopDecision",
    "StopRule",
    "Votes",
    "default_micro_batch",
    "draw",
    "sample_flow",
]


def __getattr__(name: str) -> Any:
    """Return a name that changed, for one more release."""
    if name == "Moments":
        warnings.warn("Moments is now MeanVariance; the old name goes with the next release", DeprecationWarning, 2)
        return MeanVariance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
