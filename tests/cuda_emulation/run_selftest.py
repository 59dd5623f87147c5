"""The self-test on an emulated library.

    python -m tests.cuda_emulation.run_selftest LIBRARY ORDERS [arguments of the self-test]

Every call is run once in each of the orders, such as `forward,reverse`, and must give the same bits in all of them.
"""

import ctypes
import os
import sys
from pathlib import Path

from msf_kernels import _ext, selftest
from msf_kernels.testing.execution import require_same_bits, run_poisoned

library = Path(sys.argv[1])
orders = sys.argv[2].split(",")


def run_in_orders(function, inputs, dtype, gradients_of):
    results = []
    for order in orders:
        os.environ["MSF_EMULATED_ORDER"] = order
        n_before = n_launches()
        results.append(run_poisoned(function, inputs, dtype, gradients_of))
        if n_launches() == n_before and all(tensor.numel() for tensor in (*inputs, results[-1][0][1])):
            raise RuntimeError("no kernel was launched")
    for order, others in zip(orders[1:], results[1:], strict=True):
        require_same_bits(results[0], others, f"the order {order}")
    return results[0]


def n_launches():
    return emulator.msf_emulated_launches()


_ext._find = lambda: library
assert _ext.machine_reasons() == []
emulator = ctypes.CDLL(str(library))
selftest.RUNS["plain"] = run_in_orders
sys.exit(selftest.main([*sys.argv[3:], "--backend", "native"]))
