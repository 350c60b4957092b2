"""Configs: the values of trainings, evaluations, GANs and the study."""
