"""The 1,000 classes of ILSVRC 2012, as models for ImageNet-1k number them.

Source: Russakovsky et al. 2015, "ImageNet Large Scale Visual Recognition Challenge". A class's id is its noun's offset
in WordNet 3.0, and names its folder in the data; sorted ids are the order of the outputs in every common library.
"""

from functools import cache
from importlib import resources


@cache
def imagenet_ids() -> tuple[str, ...]:
    """The 1,000 ids (``n01440764``, ...), in the order of the outputs."""
    return tuple(resources.files("w2skd.weights").joinpath("imagenet_wnids.txt").read_text(encoding="ascii").split())
