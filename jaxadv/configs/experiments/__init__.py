"""Trainings of the study."""
