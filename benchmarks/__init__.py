"""Benchmarks: one registry of jobs, peers in the same run, the machine's own limits beside every figure."""
