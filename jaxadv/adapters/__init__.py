"""Adapters: models of any framework as functions `(key, images) -> logits`."""
