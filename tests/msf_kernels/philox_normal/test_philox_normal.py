import math
import struct

import pytest
import torch

from msf_kernels import IMAGE_STREAM, SEMANTIC_STREAM, philox_normal, philox_words

ALL_ONES = 0xFFFFFFFF
BACKENDS = ["reference", "native", pytest.param("triton", marks=pytest.mark.interpreter)]

# Counter, key and result of the generator's published known-answer tests (Random123, philox4x32 with 10 rounds).
PUBLISHED = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([ALL_ONES] * 4, [ALL_ONES] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def big_integer_philox(counter, key):
    c_0, c_1, c_2, c_3 = counter
    k_0, k_1 = key
    for _ in range(10):
        high_0, low_0 = divmod(0xD2511F53 * c_0, 2**32)
        high_1, low_1 = divmod(0xCD9E8D57 * c_2, 2**32)
        c_0, c_1, c_2, c_3 = high_1 ^ c_1 ^ k_0, low_1, high_0 ^ c_3 ^ k_1, low_0
        k_0, k_1 = (k_0 + 0x9E3779B9) % 2**32, (k_1 + 0xBB67AE85) % 2**32
    return [c_0, c_1, c_2, c_3]


def to_float32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def scalar_normal(sample_index, position, seed, stream):
    """One normal by the text of the docstring, with Python integers and floats."""
    index, key = sample_index % 2**64, seed
    words = big_integer_philox(
        [position // 4, stream, index % 2**32, index >> 32],
        [key % 2**32, key >> 32],
    )
    pair = words[:2] if position % 4 < 2 else words[2:]
    u, v = (to_float32(to_float32(float(word)) * 2.0**-32 + 2.0**-33) for word in pair)
    radius, angle = math.sqrt(-2 * math.log(u)), 2 * math.pi * v
    return to_float32(radius * (math.cos(angle) if position % 2 == 0 else math.sin(angle)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("counter", "key", "words"), PUBLISHED)
def test_the_integer_stream_equals_the_published_vectors(need_backend, backend, counter, key, words):
    need_backend("philox_words", backend)
    got = philox_words(torch.tensor([counter]), torch.tensor(key), backend=backend)
    assert got.dtype == torch.int64
    assert got.tolist() == [words]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_integer_stream_equals_big_integer_arithmetic(need_backend, backend):
    need_backend("philox_words", backend)
    generator = torch.Generator().manual_seed(0)
    counter = torch.randint(2**32, (300, 4), generator=generator)
    key = torch.randint(2**32, (2,), generator=generator)
    expected = [big_integer_philox(row, key.tolist()) for row in counter.tolist()]
    assert philox_words(counter, key, backend=backend).tolist() == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_bits_above_the_32_of_a_word_are_ignored(need_backend, backend):
    need_backend("philox_words", backend)
    counter, key = torch.tensor([[1, 2, 3, 4], [-1, 5, 6, 7]]), torch.tensor([8, 9])
    high = torch.tensor([[3, -7, 0, 1], [2, 2, 2, 2]]) << 32
    assert torch.equal(
        philox_words(counter + high, key - (5 << 32), backend=backend),
        philox_words(counter & ALL_ONES, key, backend=backend),
    )


def test_a_normal_is_what_the_documentation_says_it_is():
    indices = [0, 1, 2**32 - 1, 2**32, (5 << 40) + 17, -3]
    for seed, stream in ((0, 0), (2**63 - 1, 2**32 - 1), ((7 << 32) + 3, 1)):
        noise = philox_normal(torch.tensor(indices), (11,), seed, stream=stream, backend="reference")
        expected = [[scalar_normal(i, position, seed, stream) for position in range(11)] for i in indices]
        torch.testing.assert_close(noise, torch.tensor(expected), rtol=0, atol=6e-7)


@pytest.mark.parametrize("backend", ["native", pytest.param("triton", marks=pytest.mark.interpreter)])
def test_backends_agree_to_two_millionths(need_backend, backend):
    need_backend("philox_normal", backend)
    indices = torch.arange(40) * 987654321987
    noise = philox_normal(indices, (5, 33, 29), 77, stream=3, backend=backend)
    reference = philox_normal(indices, (5, 33, 29), 77, stream=3, backend="reference")
    assert noise.numel() > 190_000
    assert (noise - reference).abs().max() <= 2e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", [0, (7 << 32) + 3, 2**63 - 1])
def test_a_seed_in_memory_gives_the_bits_of_the_number(need_backend, backend, seed):
    need_backend("philox_normal", backend)
    indices, key = torch.tensor([5, 0, 3 << 33]), torch.tensor(seed)
    expected = philox_normal(indices, (3, 5), seed, stream=2, backend=backend)
    assert torch.equal(philox_normal(indices, (3, 5), key, stream=2, backend=backend), expected)
    key.sub_(seed // 2)  # read when it is called
    assert torch.equal(
        philox_normal(indices, (3, 5), key, backend=backend),
        philox_normal(indices, (3, 5), seed - seed // 2, backend=backend),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 16, 16), (1,)])
def test_a_sample_has_the_same_bits_whatever_batch_it_is_drawn_in(need_backend, backend, shape):
    need_backend("philox_normal", backend)
    indices = torch.tensor([5, 0, 3 << 33, 2, 9, 7, 2**40, 1])
    together = philox_normal(indices, shape, 11, backend=backend)
    order = torch.tensor([6, 2, 0, 5])
    assert torch.equal(philox_normal(indices[order], shape, 11, backend=backend), together[order])
    for i in range(len(indices)):
        assert torch.equal(philox_normal(indices[i : i + 1], shape, 11, backend=backend)[0], together[i])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_positions_do_not_depend_on_how_many_follow(need_backend, backend):
    need_backend("philox_normal", backend)
    indices = torch.arange(3)
    long = philox_normal(indices, (1003,), 5, backend=backend)
    for size in (1, 2, 3, 4, 5, 513, 1002):
        assert torch.equal(philox_normal(indices, (size,), 5, backend=backend), long[:, :size])
    assert torch.equal(philox_normal(indices, (17, 59), 5, backend=backend).flatten(1), long)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_indices_are_read_where_they_are(need_backend, backend):
    need_backend("philox_normal", backend)
    indices = torch.arange(12).reshape(3, 4)
    expected = philox_normal(indices[:, 1].clone(), (6,), 5, backend=backend)
    assert torch.equal(philox_normal(indices[:, 1], (6,), 5, backend=backend), expected)
    same = philox_normal(torch.tensor([4]).expand(3), (6,), 5, backend=backend)
    assert torch.equal(same, same[:1].expand(3, 6))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("n", "shape"), [(0, (3, 4)), (2, (3, 0, 4)), (0, ()), (2, ())])
def test_empty_batches_and_shapes_work(need_backend, backend, n, shape):
    need_backend("philox_normal", backend)
    noise = philox_normal(torch.arange(n), shape, 0, backend=backend)
    assert noise.shape == (n, *shape)
    assert noise.is_contiguous()
    assert noise.isfinite().all()


def test_other_dtypes_are_conversions_of_the_same_numbers():
    indices = torch.arange(4)
    noise = philox_normal(indices, (3, 5), 1, backend="reference")
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(philox_normal(indices, (3, 5), 1, dtype=dtype, backend="reference"), noise.to(dtype))


def test_noise_is_finite_where_a_uniform_is_as_small_or_large_as_it_gets():
    # Words 0 and 2^32 - 1 give u = 2^-33 and u = 1: radius 6.76 and 0.
    u = torch.tensor([0, ALL_ONES]).float() * 2.0**-32 + 2.0**-33
    assert u.tolist() == [2.0**-33, 1.0]
    radius = (-2 * u.double().log()).sqrt()
    assert 6.76 < radius[0] < 6.77
    assert radius[1] == 0


@pytest.fixture(scope="module")
def many_normals():
    """Sixty-four samples of two streams with 4096 positions; [2, 64, 4096]."""
    return torch.stack([philox_normal(torch.arange(64), (4096,), 20, stream=stream).double() for stream in (0, 1)])


def test_the_noise_has_the_moments_of_a_standard_normal(many_normals):
    values = many_normals.flatten()
    n = len(values)
    # Standard errors of the first four moments of a standard normal: sqrt(var(x^k) / n).
    for power, moment, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert abs(float((values**power).mean()) - moment) < 4 * math.sqrt(variance / n)


def test_the_noise_has_the_distribution_of_a_standard_normal(many_normals):
    values = many_normals.flatten().sort().values
    n = len(values)
    cdf = torch.special.ndtr(values)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = max(float((cdf - steps[:-1]).max()), float((steps[1:] - cdf).max()))
    assert distance * math.sqrt(n) < 1.95  # Kolmogorov-Smirnov at a level of one in a thousand
    for tail in (3.0, 4.0):
        expected = 2 * float(torch.special.ndtr(torch.tensor(-tail, dtype=torch.float64))) * n
        assert abs(int((values.abs() > tail).sum()) - expected) < 4 * math.sqrt(expected)


def largest_correlation(rows):
    rows = rows - rows.mean(1, keepdim=True)
    rows = rows / rows.norm(dim=1, keepdim=True)
    return float((rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype)).abs().max())


def test_samples_and_streams_are_uncorrelated_and_so_are_their_squares(many_normals):
    rows = many_normals.flatten(0, 1)  # [128, 4096]
    # The largest of 8128 correlations, each with a standard deviation of 1 / 64: five of those is 0.5 % to be exceeded.
    assert largest_correlation(rows) < 5 / 64
    assert largest_correlation(rows.square()) < 5 / 64


def test_neighbouring_positions_are_uncorrelated_and_so_are_their_squares(many_normals):
    rows = many_normals.flatten(0, 1)
    for lag in (1, 2, 3, 4, 5, 32, 1024):
        first, second = rows[:, :-lag].flatten(), rows[:, lag:].flatten()
        limit = 4.5 / math.sqrt(len(first))
        assert abs(float((first * second).mean())) < limit
        assert abs(float(((first.square() - 1) * (second.square() - 1)).mean())) < 2 * limit


def test_neighbouring_seeds_are_uncorrelated():
    rows = torch.stack([philox_normal(torch.tensor([3]), (4096,), seed)[0].double() for seed in range(64)])
    assert largest_correlation(rows) < 5 / 64


def test_the_streams_of_image_and_semantic_channels_are_two():
    assert (IMAGE_STREAM, SEMANTIC_STREAM) == (0, 1)
    index = torch.arange(2)
    image = philox_normal(index, (8,), 0, stream=IMAGE_STREAM)
    assert not torch.equal(image, philox_normal(index, (8,), 0, stream=SEMANTIC_STREAM))


INDEX = torch.arange(3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: philox_normal([0], (2,), 0), TypeError, r"sample_index must be a tensor \[N\]; got list"),
        (
            lambda: philox_normal(INDEX.int(), (2,), 0),
            TypeError,
            "sample_index must have dtype torch.int64; got torch.int32",
        ),
        (lambda: philox_normal(INDEX[None], (2,), 0), ValueError, r"sample_index must be \[N\]; got shape \[1, 3\]"),
        (lambda: philox_normal(INDEX, 4, 0), TypeError, "shape must be a sequence of integers; got int"),
        (lambda: philox_normal(INDEX, (2, 1.5), 0), TypeError, r"shape\[1\] must be an integer; got float"),
        (lambda: philox_normal(INDEX, (2, -1), 0), ValueError, r"shape\[1\] must be >= 0; got -1"),
        (lambda: philox_normal(INDEX[:0], (2**20, 2**15), 0), ValueError, r"shape must have at most 2\^34 positions"),
        (lambda: philox_normal(INDEX, (2,), 0.0), TypeError, "seed must be an integer; got float"),
        (lambda: philox_normal(INDEX, (2,), True), TypeError, "seed must be an integer; got bool"),
        (lambda: philox_normal(INDEX, (2,), -1), ValueError, "seed must be >= 0 and < 9223372036854775808; got -1"),
        (lambda: philox_normal(INDEX, (2,), 2**63), ValueError, "seed must be >= 0 and < 9223372036854775808"),
        (
            lambda: philox_normal(INDEX, (2,), INDEX[0].int()),
            TypeError,
            "seed must have dtype torch.int64; got torch.int32",
        ),
        (lambda: philox_normal(INDEX, (2,), INDEX), ValueError, r"seed must be \[\] = \[\]; got shape \[3\]"),
        (
            lambda: philox_normal(INDEX, (2,), INDEX[0].to("meta")),
            ValueError,
            "seed must be on the device of sample_index, cpu; got meta",
        ),
        (
            lambda: philox_normal(INDEX, (2,), 0, stream=2**32),
            ValueError,
            "stream must be >= 0 and < 4294967296; got 4294967296",
        ),
        (lambda: philox_normal(INDEX, (2,), 0, stream="image"), TypeError, "stream must be an integer; got str"),
        (lambda: philox_normal(INDEX, (2,), 0, dtype=torch.int32), TypeError, "dtype must be .*; got torch.int32"),
        (
            lambda: philox_normal(INDEX, (2,), 0, backend="sdpa"),
            ValueError,
            "backend must be one of auto, .*; got 'sdpa'",
        ),
        (lambda: philox_words(1, INDEX), TypeError, r"counter must be a tensor \[M, 4\]; got int"),
        (lambda: philox_words(INDEX, INDEX), ValueError, r"counter must be \[M, 4\]; got shape \[3\]"),
        (
            lambda: philox_words(INDEX[None], INDEX),
            ValueError,
            r"counter must be \[M, 4\] = \[1, 4\]; got shape \[1, 3\]",
        ),
        (lambda: philox_words(INDEX.new_ones(1, 4), INDEX), ValueError, r"key must be \[2\] = \[2\]; got shape \[3\]"),
        (
            lambda: philox_words(INDEX.new_ones(1, 4), torch.ones(2)),
            TypeError,
            "key must have dtype torch.int64; got torch.float32",
        ),
        (
            lambda: philox_words(INDEX.new_ones(1, 4), INDEX[:2].to("meta")),
            ValueError,
            "key must be on the device of counter, cpu; got meta",
        ),
    ],
)
def test_bad_input_is_refused_with_argument_wish_and_fact(call, error, message):
    with pytest.raises(error, match=message):
        call()
