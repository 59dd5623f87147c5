import math

import pytest
import torch

from msf_kernels import class_distance

BACKENDS = ["reference", "native", pytest.param("triton", marks=pytest.mark.interpreter)]


def seeded(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_hand(semantic, codes):
    """Distances and votes with Python numbers, pixel by pixel."""
    n, _, height, width = semantic.shape
    distance, votes = torch.zeros(n, len(codes)).double(), torch.zeros(n, len(codes)).double()
    for i in range(n):
        for y in range(height):
            for x in range(width):
                d = [math.dist(semantic[i, :, y, x].tolist(), code) for code in codes.tolist()]
                distance[i] += torch.tensor(d, dtype=torch.float64) / (height * width)
                votes[i, d.index(min(d))] += 1 / (height * width)
    return distance, votes


def test_distance_and_votes_are_what_counting_by_hand_gives():
    semantic, codes = seeded(3, 3, 3, 4), seeded(3, 3, seed=1)
    distance, votes = class_distance(semantic, codes, backend="reference")
    expected_distance, expected_votes = by_hand(semantic, codes)
    torch.testing.assert_close(distance, expected_distance, rtol=0, atol=1e-14)
    torch.testing.assert_close(votes, expected_votes, rtol=0, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_map_made_of_codes_is_recognised_exactly(need_backend, backend):
    need_backend("class_distance", backend)
    codes = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.0, 3.0]])
    labels = torch.tensor([2, 0, 1, 2])
    semantic = codes[labels][:, :, None, None].expand(4, 2, 6, 5)
    distance, votes = class_distance(semantic, codes, backend=backend)
    assert torch.equal(votes, torch.nn.functional.one_hot(labels, 3).float())
    assert torch.equal(distance.argmin(1), labels)
    assert torch.equal(distance[torch.arange(4), labels], torch.zeros(4))


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_lowest_class(need_backend, backend):
    need_backend("class_distance", backend)
    codes = torch.tensor([[5.0], [1.0], [-1.0], [1.0]])
    _, votes = class_distance(torch.zeros(2, 1, 3, 7), codes, backend=backend)
    assert votes.tolist() == [[0.0, 1.0, 0.0, 0.0]] * 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pixel_that_is_no_number_votes_for_the_first_class_and_spoils_its_item_only(need_backend, backend):
    need_backend("class_distance", backend)
    semantic, codes = torch.zeros(2, 1, 1, 2), torch.tensor([[2.0], [0.0], [1.0]])
    semantic[0, 0, 0, 0] = float("nan")
    distance, votes = class_distance(semantic, codes, backend=backend)
    assert distance[0].isnan().all()
    assert distance[1].tolist() == [2.0, 0.0, 1.0]
    assert votes.tolist() == [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("height", "width"), [(5, 7), (70, 61)])
def test_an_item_has_the_same_bits_in_any_batch(need_backend, backend, height, width):
    need_backend("class_distance", backend)
    semantic, codes = seeded(5, 3, height, width, dtype=torch.float32), seeded(4, 3, seed=1, dtype=torch.float32)
    together = class_distance(semantic, codes, backend=backend)
    for n in (0, 2, 4):
        alone = class_distance(semantic[n : n + 1], codes, backend=backend)
        assert all(torch.equal(one, many[n : n + 1]) for one, many in zip(alone, together, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_votes_of_an_item_add_up_to_one(need_backend, backend):
    need_backend("class_distance", backend)
    _, votes = class_distance(
        seeded(2, 3, 8, 16, dtype=torch.float32), seeded(5, 3, seed=1, dtype=torch.float32), backend=backend
    )
    assert votes.sum(1).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_low_precision_maps_give_float32_results(need_backend, backend):
    need_backend("class_distance", backend)
    semantic, codes = seeded(2, 3, 8, 16, dtype=torch.float16), seeded(5, 3, seed=1, dtype=torch.float32)
    results = class_distance(semantic, codes, backend=backend)
    expected = class_distance(semantic.float(), codes, backend=backend)
    for result, wanted in zip(results, expected, strict=True):
        assert result.dtype == torch.float32
        assert torch.equal(result, wanted)


def test_gradients_of_the_distances_are_right_and_votes_have_none():
    semantic, codes = seeded(2, 2, 2, 3).requires_grad_(), seeded(3, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: class_distance(*x, backend="reference")[0], (semantic, codes))
    assert torch.autograd.gradgradcheck(lambda *x: class_distance(*x, backend="reference")[0], (semantic, codes))
    assert not class_distance(semantic, codes, backend="reference")[1].requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_of_a_pixel_on_a_code_is_zero_not_nan(need_backend, backend):
    need_backend("class_distance", backend)
    codes = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    semantic = codes.detach()[:1, :, None, None].expand(1, 2, 2, 2).clone().requires_grad_()
    distance, votes = class_distance(semantic, codes, backend=backend)
    assert not votes.requires_grad
    grad_semantic, grad_codes = torch.autograd.grad(distance[0, 0], (semantic, codes))
    assert torch.equal(grad_semantic, torch.zeros(1, 2, 2, 2))
    assert torch.equal(grad_codes, torch.zeros(2, 2))


@pytest.mark.interpreter
def test_the_kernel_refuses_what_it_was_not_made_for():
    with pytest.raises(RuntimeError, match="codes have 600 classes; the kernel takes at most 512"):
        class_distance(torch.zeros(1, 1, 2, 2), torch.zeros(600, 1), backend="triton")
    with pytest.raises(RuntimeError, match="float64 is left to the other backends"):
        class_distance(torch.zeros(1, 1, 2, 2).double(), torch.zeros(6, 1), backend="triton")
    with pytest.raises(RuntimeError, match="interpreter is wrong in bfloat16"):
        class_distance(torch.zeros(1, 1, 2, 2).bfloat16(), torch.zeros(6, 1), backend="triton")


SEMANTIC, CODES = torch.zeros(2, 3, 4, 4), torch.zeros(5, 3)


@pytest.mark.parametrize(
    ("semantic", "codes", "error", "message"),
    [
        ([1.0], CODES, TypeError, r"semantic must be a tensor \[N, K, H, W\]; got list"),
        (SEMANTIC[0], CODES, ValueError, r"semantic must be \[N, K, H, W\]; got shape \[3, 4, 4\]"),
        (SEMANTIC.long(), CODES, TypeError, "semantic must have dtype .*; got torch.int64"),
        (SEMANTIC, CODES[0], ValueError, r"codes must be \[n_classes, K\]; got shape \[3\]"),
        (
            SEMANTIC,
            CODES[:, :2],
            ValueError,
            r"codes must be \[n_classes, K of semantic\] = \[5, 3\]; got shape \[5, 2\]",
        ),
        (SEMANTIC, CODES.int(), TypeError, "codes must have dtype .*; got torch.int32"),
        (SEMANTIC, CODES.to("meta"), ValueError, "codes must be on the device of semantic, cpu; got meta"),
        (SEMANTIC, CODES[:0], ValueError, r"codes must have at least one class; got shape \[0, 3\]"),
        (SEMANTIC[..., :0], CODES, ValueError, r"semantic must have at least one pixel; got shape \[2, 3, 4, 0\]"),
    ],
)
def test_bad_input_is_refused_with_argument_wish_and_fact(semantic, codes, error, message):
    with pytest.raises(error, match=message):
        class_distance(semantic, codes)
