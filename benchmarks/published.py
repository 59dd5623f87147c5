"""Work and size of the published networks, for those who measure them without building them."""

# Per sample, at 28 (run at 32) and 224 (run on 32 x 32 latents): what is left of the published 3.20 and 12.47 GFLOP
# without what the inference form spares, as `python -m benchmarks.layers` adds it up.
GFLOP = {"pixel": 3.00, "latent": 11.61}
PARAMETERS = {"pixel": 8.95e6, "latent": 35.76e6}
