"""Datasets in, numbered uint8 arrays out: sources, splits, the one resize, shards that numpy alone can read."""

from edgecnn.data.index import Images, Index, images, labels, read_index
from edgecnn.data.loading import load_images
from edgecnn.data.openers import open_images
from edgecnn.data.pixels import fit_image

__all__ = [
    "Images",
    "Index",
    "fit_image",
    "images",
    "labels",
    "load_images",
    "open_images",
    "read_index",
]
