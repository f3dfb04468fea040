"""Images, latents and the batches that training draws from them."""

from .batches import Batches
from .fashion import FashionMNIST, load_fashion

__all__ = ["Batches", "FashionMNIST", "load_fashion"]
