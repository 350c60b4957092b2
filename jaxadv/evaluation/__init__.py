"""Evaluation of trained classifiers."""
