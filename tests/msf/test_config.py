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
    ALTERNATIVES,
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
        (lambda: TrainConfig(epochs=None, steps=0), ["steps", ">= 1"]),
        (lambda: TrainConfig(steps=5), ["exactly one of epochs and steps", "epochs=1000, steps=5"]),
        (lambda: TrainConfig(epochs=None), ["exactly one of epochs and steps", "epochs=None, steps=None"]),
        (lambda: TrainConfig(ema_length=0.1), ["exactly one of ema_decay and ema_length", "ema_decay=0.7"]),
        (lambda: TrainConfig(ema_decay=None, ema_length=0.3), ["ema_length", "(0, 0.28]", "0.3"]),
        (lambda: InferenceConfig(classify_steps=10**6), ["n_steps", "<= 100000 with grid 'cubic'"]),
        (lambda: InferenceConfig(classify_grid="dense"), ["grid", "cubic, uniform", "dense"]),
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
    own = {"recipe", "out", "resume", "dry_run", "latent_cache", "data_root", "device", "json_file"}
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
    assert changed.train == dataclasses.replace(recipe.train, epochs=3, steps=None)
    assert changed.code == CodeConfig(name="simplex")
    assert changed.network == dataclasses.replace(
        recipe.network, channel_multipliers=(1, 2), n_heads=2, head_channels=None
    )
    assert changed.path == recipe.path


@pytest.mark.parametrize("pair", ALTERNATIVES)
def test_a_flag_of_a_pair_takes_the_place_of_the_recipe_s_other_and_both_are_refused(pair):
    values = {"head_channels": 16, "n_heads": 2, "epochs": 3, "steps": 50, "ema_decay": 0.9, "ema_length": 0.1}
    group = next(g for g in ("network", "train") if hasattr(getattr(RECIPES["cpu-small"], g), pair[0]))
    for recipe in RECIPES:
        for name, other in (pair, pair[::-1]):
            changed = getattr(configured(recipe, {name: values[name]}), group)
            assert (getattr(changed, name), getattr(changed, other)) == (values[name], None)
    with pytest.raises(ValueError, match=f"exactly one of {pair[0]} and {pair[1]} must be given"):
        configured("cpu-small", {name: values[name] for name in pair})


@pytest.mark.parametrize(
    ("settings", "n_pictures", "n_epochs"),
    [
        ({"epochs": 7}, 10, 7),
        ({"epochs": None, "steps": 2000, "batch_size": 32}, 546, 112),  # of 18 steps
        ({"epochs": None, "steps": 2000, "batch_size": 32}, 4708, 14),  # of 148
        ({"epochs": None, "steps": 2000, "batch_size": 32}, 64_000, 1),
        ({"epochs": None, "steps": 2000, "batch_size": 32}, 64_001, 1),
        ({"epochs": None, "steps": 2000, "batch_size": 600}, 546, 2000),
        ({"epochs": None, "steps": 1, "batch_size": 1}, 1, 1),
    ],
)
def test_steps_are_rounded_up_to_whole_epochs(settings, n_pictures, n_epochs):
    assert TrainConfig(**settings).n_epochs(n_pictures) == n_epochs


def test_configurations_from_before_there_were_steps_are_read():
    train = RECIPES["published-28"].train.to_dict()
    for name in ("steps", "ema_length", "class_balanced"):
        del train[name]
    assert TrainConfig.from_dict({**train, "epochs": 12, "ema_decay": 0.99}) == dataclasses.replace(
        RECIPES["published-28"].train, epochs=12, ema_decay=0.99
    )


def test_a_run_of_the_small_recipe_from_before_there_were_steps_goes_on_with_flags():
    flags = {"code": "rgb", "epochs": 12, "ema_decay": 0.99, "classify_grid": "uniform"}
    before = configured("cpu-small", flags).to_dict()
    for group, names in {
        "path": ["loss_weighting"],
        "train": ["steps", "ema_length", "class_balanced"],
    }.items():
        for name in names:
            del before[group][name]
    del before["inference"]["classify"]["grid"]
    assert ExperimentConfig.from_dict(before) == configured("cpu-small", flags)


@pytest.mark.parametrize(("is_ordinal", "name"), [(False, "simplex"), (True, "thermometer")])
def test_the_code_auto_is_that_of_the_classes_and_others_stay(is_ordinal, name):
    task = TaskConfig(n_classes=5, image_channels=1, is_ordinal=is_ordinal)
    experiment = ExperimentConfig(code=CodeConfig(name="auto", beta=2.0))
    assert experiment.settled(task) == dataclasses.replace(experiment, code=CodeConfig(name=name, beta=2.0))
    assert ExperimentConfig(code=CodeConfig(name="one_hot")).settled(task).code.name == "one_hot"


def test_recipes_other_than_the_published_ones_count_steps_and_take_codes_that_tell_probabilities():
    for name, recipe in RECIPES.items():
        is_published = name.startswith("published")
        assert (recipe.code.name == "rgb") == is_published
        assert (recipe.code.name == "auto") != is_published
        assert (recipe.train.steps is None) == is_published
        assert (recipe.train.ema_length is None) == is_published
        assert (recipe.inference.classify.grid == "uniform") == is_published
        assert is_published or name == "demo" or recipe.train.steps >= 2000


@pytest.mark.parametrize(("name", "size", "width"), [("published-28", 32, 64), ("published-224", 256, 128)])
def test_the_published_recipes_are_the_paper_s(name, size, width):
    recipe = RECIPES[name]
    assert recipe.train == TrainConfig(
        epochs=1000,
        steps=None,
        batch_size=64,
        learning_rate=4e-4,
        min_learning_rate=1e-6,
        warmup_share=100 / 1000,
        weight_decay=0.0,
        gradient_clip=0.0,
        ema_decay=0.7,
        precision="bf16",
    )
    assert (recipe.path.image_weight, recipe.path.end_share, recipe.code.beta) == (0.7, 0.0, 4.0)
    assert (recipe.path.time_coupling, recipe.path.time_sampling) == ("shared", "uniform")
    assert (recipe.path.loss_weighting, recipe.data.image_size) == ("velocity", size)
    assert recipe.network == UNetConfig(base_channels=width)
    assert recipe.data.flips is None, "the four data sets differ in this alone, and say it themselves"


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
