"""Data: one table of data sets, one loader, pictures transformed in batches."""

from msf.data.arrays import as_tensor
from msf.data.batches import epoch_batches, epoch_order, seeded_generator
from msf.data.calibration_part import hold_out_calibration
from msf.data.dataset import CALIBRATION, ImageDataset, Split, known_datasets, load_dataset
from msf.data.images import (
    ValueRangeWarning,
    apply_flips,
    draw_flips,
    prepare_images,
    resize_images,
    settle_value_range,
)
from msf.data.packed_rows import packed_rows, picture_groups
from msf.data.packing import PackSettings, pack_pictures
from msf.data.phantoms import make_phantoms, phantom_bayes_accuracy
from msf.data.picture_files import FoundImages, find_images, search_images
from msf.data.pictures import MAX_PIXELS, LoadedPictures, Reading, load_pictures, read_image
from msf.data.sources import is_source
from msf.data.table import MEDMNIST, DatasetInfo

__all__ = [
    "CALIBRATION",
    "MAX_PIXELS",
    "MEDMNIST",
    "DatasetInfo",
    "FoundImages",
    "ImageDataset",
    "LoadedPictures",
    "PackSettings",
    "Reading",
    "Split",
    "ValueRangeWarning",
    "apply_flips",
    "as_tensor",
    "draw_flips",
    "epoch_batches",
    "epoch_order",
    "find_images",
    "hold_out_calibration",
    "is_source",
    "known_datasets",
    "load_dataset",
    "load_pictures",
    "make_phantoms",
    "pack_pictures",
    "packed_rows",
    "phantom_bayes_accuracy",
    "picture_groups",
    "prepare_images",
    "read_image",
    "resize_images",
    "search_images",
    "seeded_generator",
    "settle_value_range",
]
