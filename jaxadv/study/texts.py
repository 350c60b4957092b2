"""What the page of a study says of how to read it."""

TEXTS = {
    "how": (
        "Accuracy in %, under PGD-40 in L-inf where nothing else is said; pixels lie in [0, 1]. "
        "“The study”: the figures of its slides, from 1,024 held-out train images and one seed. "
        "“Judged as there”: our weights under the study's protocol, the last checkpoint attacked "
        "from the clean image, as in training where it has dropout or batch norm. “Judged right”: "
        "the best checkpoint on held-out images, the test split, random starts, running "
        "statistics; a model with noise of its own meets at each eps 20 steps of gradients "
        "averaged over 10 draws of it; AutoAttack at scale cpu on the first 1,000 images. Both "
        "judge the same trainings, but “judged as there” and AutoAttack are of seed 0 alone. The "
        "slides are of CIFAR-10 as published. A figure of one seed has its 95 % Wilson interval, a "
        "mean the deviation between as many seeds as [ ] says. ≠: told apart from the study's "
        "figure, by the intervals of the claims; all judged as there are of the same 1,024 images, "
        "so that one ≠ makes others likelier. †: measured before there was this page, see the "
        "runs. ‡: a model is on clean images no better than guessing one class, which says nothing "
        "of robustness: no claim is told by it."
    ),
    "rule": (
        "More robust, better, or of help is who keeps more accuracy at eps .03, where nothing "
        "else is said. A difference of means over seeds has a 95 % interval that allows for the "
        "images, paired where they are the same, and for the seeds: by how much those of each "
        "side differ where both have three; else by how much trainings of one config differ in "
        "that column (or at eps .03, where that is not known), pooled over all that were trained "
        "more than once, as if all differed alike (‡ left out). A claim holds, or does not, where "
        "the interval leaves out zero; otherwise it cannot be told. Two looks at the same "
        "training, or at the same weights, differ by the images alone. That nothing is gained, "
        "which is less than one point, holds where the interval of the gain ends below that, and "
        "does not where it begins above; that two cannot be told apart holds where it has zero in "
        "it; that an attack leaves at most a share where the Wilson interval does, seeds aside. "
        "McNemar's exact test, seed by seed, is of these two models on the same images, and says "
        "nothing of how trainings differ. Each interval is of 95 % by itself: of so many, some "
        "miss."
    ),
    "flaws": (
        "The study's flaws: 1, it judged models as in training, with dropout and statistics of "
        "the batch; 2, its PNI has the deviation of the weights at initialisation, and alpha "
        "decays; 3, random models met gradients of one draw of their noise; 4, it had 1,024 "
        "images and one seed; 5, some of its attacks have steps of .02 at eps .01; 6, its "
        "curriculum ends at three times the eps that matters."
    ),
    "costs": (
        "Gradient evaluations of one image, at most, of a training with its own evaluations; of a "
        "black box its queries. Times of what was run are those of its epochs, without their "
        "validation, and of its evaluations; where it was stopped on the way a part is missing. "
        "Others are estimates of a dry run, where there was one of as many gradients."
    ),
    "shades": (
        "Full lines, points and bars: ours, judged right. Bands and error bars: the Wilson "
        "interval of one seed, or the range of several; a score of one seed has none."
    ),
    "dashes": "Dashed, or a cross: ours, judged as there.",
    "hollow": "Hollow: the study's, which what is judged as there compares with.",
}
