"""Image classifiers as Flax Linen modules."""

from jaxadv.models.factory import make_model

__all__ = ["make_model"]
