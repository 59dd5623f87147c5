"""The smallest training: its settings, its data, and a callback that ends it early."""

from msf.config import CodeConfig, DataConfig, ExperimentConfig, PathConfig, TrainConfig, UNetConfig
from msf.data import ImageDataset, Split, make_phantoms

N_TRAIN = 40
EPOCHS = 3
STEPS_PER_EPOCH = 3


def tiny_experiment(*, code="simplex", path=None, **changes):
    train = {"epochs": EPOCHS, "batch_size": 16, "validation_samples": 1, "validate_every": 1, "precision": "fp32"}
    return ExperimentConfig(
        data=DataConfig(image_size=8),
        code=CodeConfig(name=code),
        path=path or PathConfig(end_share=0.5),
        network=UNetConfig(
            base_channels=32,
            channel_multipliers=(1,),
            n_res_blocks=1,
            attention_down_rates=(),
            head_channels=32,
            dropout=0.1,
        ),
        train=TrainConfig(**{**train, **changes}),
    )


def tiny_dataset(seed=0):
    arrays = make_phantoms(seed, {"train": N_TRAIN, "val": 20})
    splits = {
        name: Split(arrays[f"{name}_images"], arrays[f"{name}_labels"].flatten().long()) for name in ("train", "val")
    }
    # No test split at all: training that touched it would fail.
    return ImageDataset(
        name="tiny",
        test=None,
        class_names=("a", "b", "c", "d", "e"),
        flips=True,
        is_ordinal=False,
        licence="",
        citation="",
        fingerprint=f"tiny-{seed}",
        **splits,
    )


class Interrupted(Exception):
    pass


def interrupt_at(step):
    def callback(progress):
        if progress.step >= step:
            raise Interrupted

    return callback
