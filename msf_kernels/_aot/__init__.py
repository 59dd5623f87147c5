"""Parts of `msf_kernels.aot`; importing them does not import Triton."""
