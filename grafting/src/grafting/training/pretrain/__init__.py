"""Training from nothing what a grafting study stands on: an autoencoder, a transformer teacher, a classifier.

A recipe is a YAML file with ``kind`` (autoencoder, transformer or classifier), ``data``, ``model`` (the diffusers
configuration), ``loop`` (:class:`~grafting.training.loop.LoopConfig`), ``batch``, ``seed``, ``precision``, and
``start``, the folder of an earlier model of the same shape to go on from. A transformer's ``model`` may name its class,
``_class_name: PixArtTransformer2DModel``, which learns from scenes and their captions (``data: scenes``).
"""

from .autoencoder import encode, set_latent_scale
from .recipe import PretrainRecipe
from .run import pretrain
from .scoring import score

__all__ = ["PretrainRecipe", "encode", "pretrain", "score", "set_latent_scale"]
