import pytest
import torch

from msf.autoencoder.batches import decode_in_parts, encode_in_parts, fixed_batches
from msf.codes.label_codes import make_code
from msf.codes.latent import LatentCode, make_latent_code
from msf.config import CodeConfig

CPU = torch.device("cpu")


def random_code(n_classes=5, shape=(4, 6, 6), std=None):
    maps = torch.randn(n_classes, *shape, generator=torch.Generator().manual_seed(0))
    return LatentCode("rgb", maps.mean(dim=(2, 3)), maps=maps, std=std)


def test_distance_and_votes_are_those_of_plain_loops():
    code = random_code()
    semantic = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    distance, votes = code.distance(semantic)
    for item in range(3):
        places = torch.zeros(5)
        for row in range(6):
            for column in range(6):
                here = [(semantic[item, :, row, column] - m[:, row, column]).norm() for m in code.maps.double()]
                places[torch.stack(here).argmin()] += 1
        expected = [(semantic[item] - m).square().sum(0).sqrt().mean() for m in code.maps.double()]
        torch.testing.assert_close(distance[item], torch.stack(expected), atol=1e-12, rtol=0)
        torch.testing.assert_close(votes[item].float(), places / 36)
    assert distance.dtype == torch.float64
    assert code.distance(semantic.bfloat16())[0].dtype == torch.float32


def test_a_classs_own_latents_are_at_distance_zero_and_get_every_vote():
    code = random_code()
    distance, votes = code.distance(code.encode(torch.arange(5), 6, 6))
    assert torch.equal(distance.diagonal(), torch.zeros(5))
    assert torch.equal(votes, torch.eye(5))
    assert torch.equal(code.decode_mean(code.maps), torch.arange(5))


def test_with_constant_maps_distances_are_those_of_the_plain_code():
    plain = make_code(CodeConfig(name="rgb"), 5)
    maps = plain.codes[:, :, None, None].expand(-1, -1, 6, 6)
    code = LatentCode("rgb", plain.codes, maps=maps, std=None)
    semantic = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(code.distance(semantic), plain.distance(semantic), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_bits_of_a_distance_depend_neither_on_the_position_nor_on_the_neighbours():
    code = random_code(shape=(4, 7, 5))
    semantic = torch.randn(9, 4, 7, 5, generator=torch.Generator().manual_seed(1))
    for rows in ([3, 0, 1], [8, 3], [3]):
        assert torch.equal(code.distance(semantic[rows])[0], code.distance(semantic)[0][rows])


def test_a_mean_of_two_classes_latents_gives_their_weights():
    code = random_code(n_classes=3)
    assert code.is_affinely_independent
    mixed = 0.3 * code.maps[0] + 0.7 * code.maps[2]
    torch.testing.assert_close(code.probability(mixed[None])[0], torch.tensor([0.3, 0.0, 0.7]), atol=1e-5, rtol=0)


def test_points_that_are_nearly_dependent_tell_no_probabilities():
    maps = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    maps[2] = (maps[0] + maps[1]) / 2 + 0.01 * maps[2]
    code = LatentCode("rgb", maps.mean(dim=(2, 3)), maps=maps, std=None)
    assert not code.is_affinely_independent
    with pytest.raises(ValueError, match="cannot give probabilities from a mean"):
        code.probability(maps)
    assert not random_code(n_classes=6).is_affinely_independent  # five points at most in four channels


def test_noise_has_the_width_of_the_posterior_and_needs_a_generator():
    code = random_code(n_classes=2, shape=(4, 32, 32), std=torch.full((2, 4, 32, 32), 0.25))
    labels = torch.tensor([0, 1, 1])
    clean = code.encode(labels, 32, 32)
    assert torch.equal(clean, code.maps[labels])
    noisy = code.encode(labels, 32, 32, generator=torch.Generator().manual_seed(3))
    assert (noisy - clean).std() == pytest.approx(0.25, rel=0.03)
    assert torch.equal(noisy, code.encode(labels, 32, 32, generator=torch.Generator().manual_seed(3)))
    without = random_code(n_classes=2)
    assert torch.equal(without.encode(labels, 6, 6, generator=torch.Generator()), without.maps[labels])


def test_another_size_or_shape_is_refused():
    code = random_code()
    with pytest.raises(
        ValueError, match=r"height and width must be those of the class latents, \[6, 6\]; got \[8, 6\]"
    ):
        code.encode(torch.tensor([0]), 8, 6)
    with pytest.raises(ValueError, match=r"semantic must be \[N, 4, 6, 6\], like the class latents; got"):
        code.distance(torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match="labels must be in"):
        code.encode(torch.tensor([5]), 6, 6)


@pytest.mark.parametrize("has_noise", [False, True])
def test_class_latents_are_those_of_the_clean_colours(autoencoder, has_noise):
    colours = make_code(CodeConfig(name="rgb"), 4)
    code = make_latent_code(colours, autoencoder, 32, device=CPU, has_noise=has_noise)
    posterior = autoencoder.encode(colours.encode(torch.arange(4), 32, 32))
    torch.testing.assert_close(code.maps, posterior.mean)
    torch.testing.assert_close(code.codes, posterior.mean.mean(dim=(2, 3)))
    assert code.n_channels == 4
    if has_noise:
        torch.testing.assert_close(code.std, posterior.std)
    else:
        assert code.std is None


def test_batches_have_one_size_and_say_how_many_rows_count():
    rows = torch.arange(7)[:, None]
    batches = list(fixed_batches(rows, 3))
    assert [len(batch) for batch, _ in batches] == [3, 3, 3]
    assert torch.equal(torch.cat([batch[:n] for batch, n in batches]), rows)
    assert torch.equal(batches[-1][0], torch.tensor([[6], [6], [6]]))


def test_pictures_and_latents_are_the_same_bits_alone_and_among_others(autoencoder, pictures):
    together = encode_in_parts(autoencoder, pictures)
    alone = encode_in_parts(autoencoder, pictures[3:4])
    assert torch.equal(together.mean[3:4], alone.mean)
    assert torch.equal(together.std[3:4], alone.std)
    decoded = decode_in_parts(autoencoder, together.mean, 32, lambda part: part)
    assert torch.equal(decoded[3:4], decode_in_parts(autoencoder, alone.mean, 32, lambda part: part))
    torch.testing.assert_close(decoded, autoencoder.decode(together.mean), atol=1e-4, rtol=0)


def test_decoded_pictures_exist_only_a_few_at_a_time(autoencoder):
    sizes = []

    def read(part):
        sizes.append(len(part))
        return part.mean(dim=(1, 2, 3))

    assert decode_in_parts(autoencoder, torch.zeros(6, 4, 16, 16), 32, read).shape == (6,)
    assert sizes == [1] * 6
