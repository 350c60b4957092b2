"""Signs that an attack failed for lack of a useful gradient, not for the model's strength."""


def signs_of_masking(attacks: dict[str, dict]) -> list[str]:
    """Returns a sentence for each sign found in the results of an evaluation.

    The checks are those of Carlini et al. 2019 ("On evaluating adversarial robustness",
    section 5) that the results of gradient attacks alone allow: a single step must not beat
    many, a larger eps must not help the defender, and a step must move the image.

    Args:
      attacks: `evaluation["attacks"]`, see `jaxadv.evaluate`.
    """
    return [*_single_step_wins(attacks), *_larger_eps_helps(attacks), *_nothing_moves(attacks)]


def _single_step_wins(attacks: dict[str, dict]) -> list[str]:
    signs = []
    for name, single in attacks.items():
        for other, iterated in attacks.items():
            same_ball = (single["norm"], single["eps"]) == (iterated["norm"], iterated["eps"])
            stronger = single["queries"] == 1 < iterated["queries"]
            if same_ball and stronger and single["ci95"][1] < iterated["ci95"][0]:
                signs.append(
                    f"{name} breaks more images than {other}: one gradient should not beat "
                    f"{iterated['queries']}. Try other step sizes, losses and random starts."
                )
    return signs


def _larger_eps_helps(attacks: dict[str, dict]) -> list[str]:
    signs = []
    for name, small in attacks.items():
        for other, large in attacks.items():
            same_attack = name.rsplit("/", 1)[0] == other.rsplit("/", 1)[0]
            if same_attack and small["eps"] < large["eps"] and small["ci95"][1] < large["ci95"][0]:
                signs.append(
                    f"{other} breaks fewer images than {name}: a larger ball holds the smaller. "
                    "Try a step size in proportion to eps, and more steps."
                )
    return signs


def _nothing_moves(attacks: dict[str, dict]) -> list[str]:
    return [
        f"{name} left {attack['unmoved']} of {attack['n']} images as they were: their gradient is "
        "zero. Try the margin loss, or a random start."
        for name, attack in attacks.items()
        if attack["eps"] > 0 and attack["unmoved"] > 0
    ]
