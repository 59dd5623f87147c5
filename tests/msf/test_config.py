import dataclasses
import inspect
import json
import math
import typing

import numpy as np
import pytest
import torch

from msf.cli.flags import PANELS, configured
from msf.cli.sources import DatasetFlags
from msf.cli.train import train
from msf.config import (
    RECIPES,
    SHORT_NAMES,
    AutoencoderConfig,
    CodeConfig,
    DataConfig,
    ExperimentConfig,
    InferenceConfig,
    PathConfig,
    TaskConfig,
    TrainConfig,
    UNetConfig,
)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json(name):
    recipe = RECIPES[name]
    assert ExperimentConfig.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CodeConfig(name="palette"), ["name", "rgb", "simplex", "palette"]),
        (lambda: CodeConfig(beta=-1.0), ["beta", ">= 0", "-1.0"]),
        (lambda: CodeConfig(beta=float("nan")), ["beta", "finite"]),
        (lambda: PathConfig(end_share=1.5), ["end_share", "[0, 1]", "1.5"]),
        (lambda: PathConfig(sigma_min=1.0), ["sigma_min", "[0, 1)"]),
        (lambda: UNetConfig(base_channels=48), ["base_channels", "multiple of n_groups = 32", "48"]),
        (lambda: UNetConfig(channel_multipliers=()), ["channel_multipliers"]),
        (lambda: UNetConfig(attention_down_rates=(3,)), ["attention_down_rates", "3"]),
        (lambda: UNetConfig(n_heads=4), ["head_channels", "n_heads"]),
        (lambda: DataConfig(image_size=0), ["image_size", "positive"]),
        (lambda: TrainConfig(epochs=0), ["epochs", ">= 1"]),
        (lambda: TrainConfig(min_learning_rate=1.0), ["min_learning_rate"]),
        (lambda: InferenceConfig(n_samples=0), ["n_samples", ">= 1"]),
        (lambda: TaskConfig(n_classes=1, image_channels=3), ["n_classes", ">= 2", "1"]),
        (lambda: TaskConfig(n_classes=2, image_channels=4), ["image_channels", "1 or 3"]),
        (lambda: TaskConfig(n_classes=3, image_channels=1, class_names=("a",)), ["class_names", "3"]),
        (lambda: ExperimentConfig(data=DataConfig(image_size=28)), ["image_size", "multiple of 8", "28"]),
        (
            lambda: ExperimentConfig(code=CodeConfig(name="grey"), autoencoder=AutoencoderConfig(name="kl")),
            ["grey", "autoencoder"],
        ),
        (
            lambda: ExperimentConfig(inference=InferenceConfig(flow="conditional")),
            ["conditional", "independent", "shared"],
        ),
        (lambda: ExperimentConfig.from_dict({"network": {"depth": 3}}), ["network", "base_channels", "depth"]),
    ],
)
def test_a_value_out_of_range_is_named_with_what_was_wanted(make, words):
    with pytest.raises(ValueError, match=".") as raised:
        make()
    assert all(word in str(raised.value) for word in words)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrainConfig(epochs="3"),
        lambda: TrainConfig(epochs=2.5),
        lambda: UNetConfig(use_scale_shift_norm=1),
        lambda: ExperimentConfig.from_dict({"train": 3}),
    ],
)
def test_a_value_of_another_type_is_refused(make):
    with pytest.raises(TypeError, match="must be"):
        make()


def test_every_field_of_the_configuration_is_a_flag_of_its_own():
    parameters = inspect.signature(train).parameters
    own = {"recipe", "out", "resume", "latent_cache", "data_root", "device", "json_file"}
    own |= {entry.name for entry in dataclasses.fields(DatasetFlags)}
    arguments = [name for name in parameters if name not in own]
    expected = {
        (entry.metadata["flag"] or entry.name).replace("-", "_")
        for group in set(PANELS) - {"inference"}
        for entry in dataclasses.fields(typing.get_type_hints(ExperimentConfig)[group])
    }
    assert set(arguments) == expected | set(SHORT_NAMES)
    assert set(PANELS) == {entry.name for entry in dataclasses.fields(ExperimentConfig)}
    assert len(set(arguments)) == len(arguments)


def test_flags_change_the_recipe_and_leave_the_rest():
    changed = configured("cpu-small", {"epochs": 3, "channel_multipliers": "1,2", "code": "simplex", "n_heads": 2})
    recipe = RECIPES["cpu-small"]
    assert changed.train == dataclasses.replace(recipe.train, epochs=3)
    assert changed.code == CodeConfig(name="simplex")
    assert changed.network == dataclasses.replace(
        recipe.network, channel_multipliers=(1, 2), n_heads=2, head_channels=None
    )
    assert changed.path == recipe.path


JUNK = [
    None, True, -1, 0, 1, 1.5, float("nan"), float("inf"), 1e308, 2**31, 2**63, 10**400, 10**5000, "", "x", "\ud800",
    b"x", [], (), [1], (1,), ("x",), (None,), (10**400,), ((1,),), {}, {"a": 1}, {1}, object(), int, math.pi,
    [1] * 10**6, np.float32(1.5), np.int64(3), np.nan, np.zeros(3), torch.zeros(3), torch.tensor(1),
]  # fmt: skip
CLASSES = [
    TaskConfig,
    *(type(getattr(ExperimentConfig(), entry.name)) for entry in dataclasses.fields(ExperimentConfig)),
]


@pytest.mark.parametrize("cls", [ExperimentConfig, *CLASSES])
def test_whatever_a_field_holds_it_is_taken_or_refused_in_one_short_line(cls):
    required = {"n_classes": 3, "image_channels": 1} if cls is TaskConfig else {}
    for entry in dataclasses.fields(cls):
        for value in JUNK:
            for make in (lambda **values: cls(**values), lambda **values: cls.from_dict(values)):
                try:
                    config = make(**{**required, entry.name: value})
                except (TypeError, ValueError) as error:
                    text = str(error)
                else:
                    text = json.dumps(config.to_dict())  # plain values only
                assert "\n" not in text, (entry.name, value)
                assert len(text) < 4000, (entry.name, value)


def test_numpys_numbers_become_pythons():
    config = TrainConfig(epochs=np.int64(3), learning_rate=np.float32(0.5), batch_size=np.uint8(4))
    assert (config.epochs, config.learning_rate, config.batch_size) == (3, 0.5, 4)
    assert {type(config.epochs), type(config.batch_size)} == {int}
    assert type(config.learning_rate) is float


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"n_res_blocks": 10**6}, "n_res_blocks must be <= 64; got 1000000"),
        ({"base_channels": 32 * 10**9}, "base_channels times .* must be at most 16384; got 64000000000"),
        ({"base_channels": 8192, "channel_multipliers": (1, 4)}, "must be at most 16384; got 32768"),
        ({"channel_multipliers": (1,) * 13}, "channel_multipliers must be at most 12"),
        ({"channel_multipliers": (1,) * 10**5}, "channel_multipliers must be a list of at most 65536 entries"),
        ({"head_channels": 0}, "head_channels must be >= 1; got 0"),
    ],
)
def test_networks_that_would_be_built_for_minutes_are_refused(values, text):
    with pytest.raises(ValueError, match=text):
        UNetConfig(**values)
