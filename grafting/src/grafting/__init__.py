"""Edit pretrained diffusion transformers: swap operators, distil, finetune, measure, share."""

__version__ = "0.1.0"
