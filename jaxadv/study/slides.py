"""Accuracies in the study's slides, in %: tables as printed, curves read off the plots (± 0.3).

The study attacked 1,024 held-out images of CIFAR-10's train split, by PGD with 40 steps unless
noted. It trained one seed of each model.
"""

EPS = ("0.01", "0.02", "0.03", "0.04", "0.05", "0.1")


def over_eps(*accuracies: float, **others: float) -> dict[str, float]:
    """Return the accuracies under attack by radius, and other values by name.

    Args:
      *accuracies: at each radius of `EPS`, in %.
      **others: such as `clean`, or `score`, the sum of the accuracies.
    """
    return {**others, **dict(zip(EPS, accuracies, strict=True))}


UNDEFENDED = {"net": over_eps(14.1, 2.8, 0.5, 0.0, 0.0, 0.0, clean=63.0)}
MODEL_SIZE = {
    "net": over_eps(39.6, 32.5, 28.8, 25.5, 21.3, 7.7, score=155.5),
    "bignet": over_eps(51.0, 42.2, 33.8, 27.2, 20.7, 3.1, score=178.0),
    "vit_3_128": over_eps(49.4, 34.0, 29.2, 25.5, 20.8, 9.9, score=169.0),
    "vit_5_256": over_eps(53.4, 45.4, 39.6, 33.0, 30.8, 13.9, score=216.0),
    "wrn_13_10": over_eps(66.8, 47.3, 35.7, 32.5, 31.0, 13.7, score=227.0),
}
AUGMENTATION = {  # PGD steps of 0.02, 60 epochs
    "none": over_eps(49.3, 34.4, 23.9, 16.4, 11.2, 1.0, score=136.0),
    "flip": over_eps(52.7, 41.0, 30.6, 24.3, 17.6, 2.7, score=169.0),
    "flip, crop, jitter": over_eps(54.4, 39.6, 27.9, 20.3, 14.7, 2.4, score=159.0),
}
RANDOMNESS = {
    "plain": {"clean": 53.32, "one noise sample": 31.15},
    "PNI, frozen": {"clean": 51.66, "one noise sample": 31.07},
    "RSE": {"clean": 49.41, "one noise sample": 32.5},
}
WRN_RSE = {  # the other models of its plot are those of MODEL_SIZE
    # Its score is the sum of the accuracies.
    "wrn_13_10 with RSE": over_eps(65.8, 56.8, 48.2, 40.3, 32.5, 12.6, score=256.2),
}
NES = {"the study's net": {"500": 29.5, "1000": 12.5, "2000": 11.0, "3000": 4.5, "4000": 3.0}}
