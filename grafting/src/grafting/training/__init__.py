"""The teacher's own objective, the training loop, and what is trained with them."""
