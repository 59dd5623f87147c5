from msf_kernels.sampling.capture import CapturedTrajectory
from msf_kernels.sampling.engine import draw
from msf_kernels.sampling.flow import FlowTrajectory, sample_flow
from msf_kernels.sampling.memory import default_micro_batch
from msf_kernels.sampling.result import InvalidSamplesError, SamplingResult
from msf_kernels.sampling.statistics import Accumulator, Mean, MeanEntropy, Moments, Statistic, Votes
from msf_kernels.sampling.stopping import SettledVote, StopDecision, StopRule

__all__ = [
    "Accumulator",
    "CapturedTrajectory",
    "FlowTrajectory",
    "InvalidSamplesError",
    "Mean",
    "MeanEntropy",
    "Moments",
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
