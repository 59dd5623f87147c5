"""What Triton kernels of several operators share; importing this package does not import Triton."""
