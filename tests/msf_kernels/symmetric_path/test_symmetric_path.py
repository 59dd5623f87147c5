import pytest
import torch

from msf_kernels import IMAGE_STREAM, SEMANTIC_STREAM, philox_normal, symmetric_path

BACKENDS = ["reference", "native", pytest.param("triton", marks=pytest.mark.interpreter)]


def maps(n=4, channels=2, semantic_channels=3, height=4, width=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def draw(k):
        return torch.randn(n, k, height, width, generator=generator, dtype=torch.float64).to(dtype)

    return draw(channels), draw(semantic_channels)


def noises(sample_index, image, semantic, seed):
    return (
        philox_normal(sample_index, image.shape[1:], seed, stream=IMAGE_STREAM, dtype=image.dtype),
        philox_normal(sample_index, semantic.shape[1:], seed, stream=SEMANTIC_STREAM, dtype=image.dtype),
    )


@pytest.mark.parametrize("n_times", [1, 2])
def test_the_path_is_the_formula_of_the_documentation_with_the_documented_noise(n_times):
    image, semantic = maps(n=4, height=4, width=4)
    t = torch.linspace(0.1, 0.9, 4 * n_times, dtype=torch.float64).view(4, n_times).squeeze(1)
    index = torch.tensor([3, 1, 2**40, 7])
    z, dz = symmetric_path(image, semantic, t, sample_index=index, seed=9, sigma_min=0.2, backend="reference")
    noise_image, noise_semantic = noises(index, image, semantic, 9)
    for n in range(4):
        t_image, t_semantic = (t[n], t[n]) if n_times == 1 else t[n]
        expected = (1 - 0.8 * t_image) * noise_image[n] + t_image * image[n]
        torch.testing.assert_close(z[n, :2], expected, rtol=0, atol=1e-6)
        expected = (1 - 0.8 * t_semantic) * semantic[n] + t_semantic * noise_semantic[n]
        torch.testing.assert_close(z[n, 2:], expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(dz[n, :2], image[n] - 0.8 * noise_image[n], rtol=0, atol=1e-6)
        torch.testing.assert_close(dz[n, 2:], noise_semantic[n] - 0.8 * semantic[n], rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_ends_of_the_path_are_noise_and_data(need_backend, backend):
    need_backend("symmetric_path", backend)
    image, semantic = maps(dtype=torch.float32)
    index = torch.arange(4)
    noise_image, noise_semantic = noises(index, image, semantic, 1)
    start, _ = symmetric_path(image, semantic, torch.zeros(4), sample_index=index, seed=1, backend=backend)
    torch.testing.assert_close(start, torch.cat([noise_image, semantic], 1), rtol=0, atol=2e-6)
    end, _ = symmetric_path(image, semantic, torch.ones(4), sample_index=index, seed=1, sigma_min=0.0, backend=backend)
    torch.testing.assert_close(end, torch.cat([image, noise_semantic], 1), rtol=0, atol=2e-6)


def test_the_velocity_is_the_derivative_of_the_path():
    image, semantic = maps()
    index, t, step = torch.arange(4), torch.full((4,), 0.4, dtype=torch.float64), 0.25
    before, _ = symmetric_path(image, semantic, t - step, sample_index=index, seed=1, backend="reference")
    after, _ = symmetric_path(image, semantic, t + step, sample_index=index, seed=1, backend="reference")
    _, dz = symmetric_path(image, semantic, t, sample_index=index, seed=1, backend="reference")
    torch.testing.assert_close((after - before) / (2 * step), dz, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_an_item_has_the_same_bits_in_any_batch(need_backend, backend, memory_format):
    need_backend("symmetric_path", backend)
    image, semantic = (
        x.contiguous(memory_format=memory_format) for x in maps(n=5, height=7, width=9, dtype=torch.float32)
    )
    t, index = torch.rand(5, generator=torch.Generator().manual_seed(1)), torch.tensor([8, 1, 5, 2**35, 0])
    together = symmetric_path(image, semantic, t, sample_index=index, seed=2, backend=backend)
    for n in (0, 3, 4):
        item = slice(n, n + 1)
        alone = symmetric_path(image[item], semantic[item], t[item], sample_index=index[item], seed=2, backend=backend)
        assert all(torch.equal(one, many[item]) for one, many in zip(alone, together, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_noise_does_not_depend_on_the_memory_format(need_backend, backend):
    need_backend("symmetric_path", backend)
    image, semantic = maps(height=6, width=7, dtype=torch.float32)
    t, index = torch.full((4,), 0.3), torch.arange(4)
    plain = symmetric_path(image, semantic, t, sample_index=index, seed=2, backend=backend)
    channels_last = symmetric_path(
        image.contiguous(memory_format=torch.channels_last), semantic, t, sample_index=index, seed=2, backend=backend
    )
    for one, other in zip(plain, channels_last, strict=True):
        assert one.is_contiguous()
        assert other.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(one, other)


@pytest.mark.parametrize("n_times", [1, 2])
def test_gradients_are_right_to_second_order_on_the_reference(n_times):
    image, semantic = maps(n=2, channels=1, semantic_channels=2, height=2, width=3)
    t = torch.tensor([[0.3, 0.6], [0.1, 0.8]], dtype=torch.float64)[:, :n_times].squeeze(1)
    inputs = [x.requires_grad_() for x in (image, semantic, t)]

    def function(image, semantic, t):
        return symmetric_path(image, semantic, t, sample_index=torch.arange(2), seed=4, backend="reference")

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.interpreter
def test_a_gradient_with_respect_to_time_is_left_to_the_reference():
    image, semantic = maps(dtype=torch.float32)
    t = torch.full((4,), 0.5, requires_grad=True)
    with pytest.raises(RuntimeError, match="triton: a gradient with respect to t exists on the reference only"):
        symmetric_path(image, semantic, t, sample_index=torch.arange(4), seed=0, backend="triton")
    z, _ = symmetric_path(image, semantic, t, sample_index=torch.arange(4), seed=0)
    assert torch.autograd.grad(z.sum(), t)[0].abs().min() > 0


IMAGE, SEMANTIC = torch.zeros(3, 2, 4, 4), torch.zeros(3, 1, 4, 4)
T, INDEX = torch.zeros(3), torch.arange(3)


def call(image=IMAGE, semantic=SEMANTIC, t=T, sample_index=INDEX, seed=0, **rest):
    return symmetric_path(image, semantic, t, sample_index=sample_index, seed=seed, **rest)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"image": None}, TypeError, r"image must be a tensor \[N, C, H, W\]; got NoneType"),
        ({"image": IMAGE[0]}, ValueError, r"image must be \[N, C, H, W\]; got shape \[2, 4, 4\]"),
        ({"image": IMAGE.byte()}, TypeError, "image must have dtype .*; got torch.uint8"),
        (
            {"semantic": SEMANTIC.half()},
            TypeError,
            "semantic must have the dtype of image, torch.float32; got torch.float16",
        ),
        (
            {"semantic": SEMANTIC[:2]},
            ValueError,
            r"semantic must be \[N, K, H, W\] of image = \[3, 1, 4, 4\]; got shape \[2, 1, 4, 4\]",
        ),
        ({"semantic": SEMANTIC[..., :2]}, ValueError, r"semantic must be .*; got shape \[3, 1, 4, 2\]"),
        ({"semantic": SEMANTIC.to("meta")}, ValueError, "semantic must be on the device of image, cpu; got meta"),
        ({"t": 0.5}, TypeError, r"t must be a tensor \[N\]; got float"),
        ({"t": T[:2]}, ValueError, r"t must be \[N\] or \[N, 2\] of image = \[3\] or \[3, 2\]; got shape \[2\]"),
        ({"t": torch.zeros(3, 3)}, ValueError, r"t must be \[N\] or \[N, 2\] of image = .*; got shape \[3, 3\]"),
        ({"t": torch.zeros(3, 1, 1, 1)}, ValueError, r"t must be \[N\]; got shape \[3, 1, 1, 1\]"),
        ({"t": INDEX}, TypeError, "t must have dtype .*; got torch.int64"),
        ({"sample_index": INDEX.int()}, TypeError, "sample_index must have dtype torch.int64; got torch.int32"),
        ({"sample_index": INDEX[:2]}, ValueError, r"sample_index must be \[N\] of image = \[3\]; got shape \[2\]"),
        ({"seed": -1}, ValueError, "seed must be >= 0 and < 9223372036854775808; got -1"),
        ({"seed": 0.5}, TypeError, "seed must be an integer; got float"),
        ({"sigma_min": 1.0}, ValueError, r"sigma_min must be in \[0, 1\); got 1.0"),
        ({"sigma_min": -0.1}, ValueError, r"sigma_min must be in \[0, 1\); got -0.1"),
        ({"sigma_min": "0"}, TypeError, "sigma_min must be a number; got str"),
        ({"sigma_min": float("nan")}, ValueError, "sigma_min must be finite; got nan"),
    ],
)
def test_bad_input_is_refused_with_argument_wish_and_fact(arguments, error, message):
    with pytest.raises(error, match=message):
        call(**arguments)
