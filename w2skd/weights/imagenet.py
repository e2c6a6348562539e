"""The 1,000 classes of ILSVRC 2012 in the order in which ImageNet-1k models number them.

Source: Russakovsky et al. 2015, "ImageNet Large Scale Visual Recognition Challenge". The id of a class is the offset of
its noun in WordNet 3.0 and the name of its folder. Every common library orders the outputs by id.
"""

from functools import cache
from importlib import resources


@cache
def imagenet_ids() -> tuple[str, ...]:
    """Return the 1,000 ids (``n01440764``, ...) in the order of the outputs."""
    return tuple(resources.files("w2skd.weights").joinpath("imagenet_wnids.txt").read_text(encoding="ascii").split())
