"""Images, latents and the batches that training draws from them."""

from .batches import Batches
from .fashion import CLASSES, LabelledImages, load_fashion
from .subset import balanced, read_subset, write_subset

__all__ = ["CLASSES", "Batches", "LabelledImages", "balanced", "load_fashion", "read_subset", "write_subset"]
