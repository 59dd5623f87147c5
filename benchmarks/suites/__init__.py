"""The jobs, one module per suite; every module has a function `jobs`."""
