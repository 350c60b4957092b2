"""Adversarial attacks and adversarial training of image classifiers in JAX."""
