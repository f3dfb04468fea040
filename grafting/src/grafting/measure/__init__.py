"""Measuring: quality of samples, held-out denoising loss, speed."""
