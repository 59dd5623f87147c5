"""Random shifts, rotations and changes of brightness."""

import math

import pytest
import torch

from msf.config import DataConfig
from msf.data.augment import apply_changes, change_label_maps, draw_changes


def changes(*, right=0.0, down=0.0, degrees=0.0, brighter=0.0, n=1):
    return torch.tensor([[2 * right, 2 * down, math.radians(degrees), 2 * brighter]]).expand(n, 4)


@pytest.fixture
def pictures():
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_settings_that_change_nothing_draw_nothing():
    generator = torch.Generator().manual_seed(0)
    assert draw_changes(4, DataConfig(), generator) is None
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(0).get_state())


def test_what_is_drawn_fills_its_range_on_both_sides():
    settings = DataConfig(shift=0.1, rotation=15.0, brightness=0.2)
    drawn = draw_changes(4000, settings, torch.Generator().manual_seed(0))
    limits = torch.tensor([0.2, 0.2, math.radians(15), 0.4])
    assert (drawn.abs() <= limits).all()
    torch.testing.assert_close(drawn.amax(0), limits, rtol=0.01, atol=0)
    torch.testing.assert_close(drawn.amin(0), -limits, rtol=0.01, atol=0)


def test_whole_pixels_are_moved_and_the_edge_is_mirrored(pictures):
    moved = apply_changes(pictures, changes(right=1 / 8, down=2 / 8, n=2))
    torch.testing.assert_close(moved[:, :, 2:, 1:], pictures[:, :, :-2, :-1], rtol=0, atol=1e-5)
    torch.testing.assert_close(moved[:, :, 2:, 0], pictures[:, :, :-2, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(moved[:, :, :2, 1:], pictures[:, :, :2, :-1].flip(2), rtol=0, atol=1e-5)


def test_a_right_angle_turns_the_picture_clockwise_and_the_shift_follows(pictures):
    turned = apply_changes(pictures, changes(degrees=90, n=2))
    torch.testing.assert_close(turned, pictures.rot90(-1, (2, 3)), rtol=0, atol=1e-4)
    both = apply_changes(pictures, changes(right=1 / 8, degrees=90, n=2))
    torch.testing.assert_close(both[:, :, :, 1:], turned[:, :, :, :-1], rtol=0, atol=1e-4)


def test_label_maps_move_with_their_pictures():
    maps = torch.randint(0, 5, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    moved = change_label_maps(maps, changes(right=1 / 8, degrees=90, brighter=0.5, n=2))
    assert moved.dtype == torch.int64
    assert torch.equal(moved[:, :, 1:], maps.rot90(-1, (1, 2))[:, :, :-1])


def test_brightness_is_added_and_clipped_and_nothing_else_changes(pictures):
    brighter = apply_changes(pictures, changes(brighter=0.25, n=2))
    assert torch.equal(brighter, (pictures + 0.5).clamp(-1, 1))


def test_a_picture_s_changes_do_not_depend_on_the_others(pictures):
    drawn = draw_changes(2, DataConfig(shift=0.2, rotation=30.0), torch.Generator().manual_seed(1))
    whole = apply_changes(pictures, drawn)
    for k in range(2):
        torch.testing.assert_close(apply_changes(pictures[k : k + 1], drawn[k : k + 1]), whole[k : k + 1])


@pytest.mark.parametrize("field", [{"shift": 0.6}, {"rotation": -1.0}, {"brightness": 1.5}])
def test_what_is_out_of_range_is_named(field):
    with pytest.raises(ValueError, match=f"{next(iter(field))} must be in"):
        DataConfig(**field)
