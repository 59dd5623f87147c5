"""Philox4x32-10 normals as device functions; the counter layout is that of `msf_kernels.philox_normal`.

Logarithm, sine and cosine are polynomials: the hardware's approximations lose the relative accuracy next to u = 1 and
next to multiples of a quarter turn, and differ between devices. Over 40 million pairs of words the largest distance of
a normal from the fp64 definition was 9.5e-7 (computed in fp32 without fused multiply-add).
"""

import triton
import triton.language as tl


@triton.jit
def philox_words(block, stream, sample_index, seed):
    """Return the four words of a counter as uint32; the arguments broadcast."""
    index = tl.cast(sample_index, tl.int64)
    key = tl.cast(seed, tl.int64)
    return tl.philox_impl(
        tl.cast(block, tl.uint32),
        tl.cast(stream, tl.uint32),
        tl.cast(index, tl.uint32),
        tl.cast(index >> 32, tl.uint32),
        tl.cast(key, tl.uint32),
        tl.cast(key >> 32, tl.uint32),
    )


@triton.jit
def normal_block(block, stream, sample_index, seed):
    """Return the fp32 normals of positions 4 block .. 4 block + 3, in memory order; [BLOCK] -> [4 * BLOCK]."""
    x_0, x_1, x_2, x_3 = philox_words(block, stream, sample_index, seed)
    n_0, n_1 = _box_muller(x_0, x_1)
    n_2, n_3 = _box_muller(x_2, x_3)
    return tl.interleave(tl.interleave(n_0, n_2), tl.interleave(n_1, n_3))


@triton.jit
def _box_muller(radius_word, angle_word):
    """Return two independent normals."""
    radius = tl.sqrt_rn(-2.0 * _log(_uniform(radius_word)))
    cosine, sine = _cos_sin_turns(_uniform(angle_word))
    return radius * cosine, radius * sine


@triton.jit
def _uniform(word):
    """Map a word to (0, 1]. The product is exact, so a fused multiply-add changes nothing."""
    return tl.cast(word, tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10  # 2^-32, 2^-33


@triton.jit
def _log(u):
    """Return ln u for a normal u > 0, within 9e-8 relative; [BLOCK].

    u = 2^e m with m in [1/sqrt 2, sqrt 2), f = m - 1, ln u = e ln 2 + f - f^2 / 2 + f^3 P(f), P minimax.
    """
    bits = tl.cast(u, tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    f = tl.cast(bits - (exponent << 23), tl.float32, bitcast=True) - 1.0
    p = -0.0763442990789064 * f + 0.12761550360362414
    p = p * f - 0.13160195052926438
    p = p * f + 0.14201762466982093
    p = p * f - 0.16623356479394819
    p = p * f + 0.20001226667463634
    p = p * f - 0.2500082105621476
    p = p * f + 0.3333333170969481
    e = tl.cast(exponent, tl.float32)
    # ln 2 in two parts: the first times e is exact.
    return e * 0.693359375 + (f + (f * f * (f * p - 0.5) + e * -2.1219444005469057e-4))


@triton.jit
def _cos_sin_turns(u):
    """Return cos(2 pi u) and sin(2 pi u) for u in [0, 1], u in turns so that the reduction is exact; [BLOCK]."""
    quarter = tl.floor(4.0 * u + 0.5)
    r = u - 0.25 * quarter  # [-1/8, 1/8]
    z = r * r
    s = -75.39146526728852 * z + 81.59231213441585
    s = s * z - 41.34166125762287
    # 2 pi in two parts
    s = r * 6.2831854820251465 + r * (z * s - 1.953236563e-7)
    c = 59.244375587072504 * z - 85.44369997880919
    c = c * z + 64.93932614729384
    c = c * z - 19.739208692959185
    c = 1.0 + z * c
    turn = tl.cast(quarter, tl.int32)
    is_odd = (turn & 1) == 1
    cosine = tl.where(is_odd, s, c)
    sine = tl.where(is_odd, c, s)
    cosine = tl.where(((turn + 1) & 2) != 0, -cosine, cosine)
    sine = tl.where((turn & 2) != 0, -sine, sine)
    return cosine, sine
