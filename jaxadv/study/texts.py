"""Texts of the study's page that do not depend on the records."""

TEXTS = {
    "guide": (
        "Accuracies are in %, at eps 0.03 in L-inf unless noted; pixels are in [0, 1]. "
        "Brackets hold 95 % intervals.",
        "Two attacks decide whether a model is more robust than another: AutoAttack, and PGD-40 on "
        "more images. AutoAttack is the stronger attack and comes first where both decide "
        "differently. Its intervals are wider, because it attacks fewer images.",
        "Verdicts follow from the interval of the difference. A claim is supported or contradicted "
        "if the interval lies on one side of zero, or of the gain that the claim names. Otherwise "
        "it is inconclusive, and the interval bounds the effect. A claim of no gain is "
        "contradicted if the interval lies above zero, and supported if it ends below one point. A "
        "claim of no significant difference is supported if the interval contains zero.",
        "A verdict is borderline if the 90 % or the 99 % interval gives another one.",
        "A model did not train if its clean accuracy is no better than that of a constant guess. "
        "One such seed decides the verdict; the evidence is that of the other seeds.",
        "The interval covers the images and the variation between trainings. One seed against "
        "three is weaker evidence: the variation of the one seed is taken from other trainings.",
        "“Holm” is a p value corrected for the number of tests on this page. If it is below 0.05, "
        "a verdict of supported or contradicted holds although so many claims are tested.",
        "The corrected protocol evaluates the best checkpoint on held-out images, on the test "
        "split, with random starts, in evaluation mode. The original protocol is the study's: the "
        "last checkpoint on 1,024 held-out train images, attacked from the clean image, in "
        "training mode if the model has dropout or batch norm. The aggregated score is the sum of "
        "the accuracies under PGD-40 at the six radii.",
    ),
    "method": (
        "The difference of means over seeds has Student's t distribution. Its variance is the sum "
        "of that of the images, paired if both sides have the same images, and that of the seeds. "
        "With three or more seeds on both sides, the latter is that of each side (Welch). "
        "Otherwise it is the variance between seeds of one config in that column (at eps 0.03 if "
        "unknown), pooled over all configs with several seeds and assumed equal for all. Models "
        "that did not train are left out. Two evaluations of the same training, or of the same "
        "weights, differ by the images only. A claim that an accuracy is at most a limit is "
        "decided by the Wilson interval, without regard to seeds. McNemar's exact test, for each "
        "seed, compares two models on the same images and says nothing about the variation between "
        "trainings."
    ),
    "flaws": (
        "Flaws of the study: (1) it evaluated models in training mode, with dropout and batch "
        "statistics; (2) its PNI keeps the standard deviation of the weights at initialisation, "
        "and weight decay applies to alpha; (3) random models were attacked with one noise "
        "sample per gradient; (4) it has 1,024 images and one seed; (5) some of its attacks take "
        "steps of 0.02 at eps 0.01; (6) its curriculum ends at three times the eps of interest."
    ),
    "compared": (
        "The values of the slides beside ours under the study's own protocol, on the same number "
        "of images, one seed each. Different: the 95 % interval of the difference excludes zero. "
        "All values of the original protocol are on the same 1,024 images, so that one difference "
        "makes others more likely."
    ),
    "values": (
        "A value of one seed has its 95 % interval. A mean over seeds has their standard "
        "deviation, with their number in brackets. "
        "Models with a random defence are attacked at each eps with 20 steps of gradients averaged "
        "over 10 noise samples. ≠: significantly different from the slides. †: measured before "
        "this page existed; see the runs. ‡: did not train."
    ),
    "costs": (
        "Gradients: the largest number of gradient evaluations of single images, for a training "
        "with its own evaluations; for black-box attacks, of queries. The time of a run that is "
        "done is that of its epochs, without validation, and of its evaluations; interruptions "
        "may hide a part. Other times are estimates of a dry run, if there was one with as many "
        "gradients."
    ),
    "solid": (
        "Solid lines, filled points and bars: corrected protocol. Bands and error bars: 95 % "
        "interval of one seed, or range of several seeds."
    ),
    "dashed": "Dashed lines or crosses: original protocol.",
    "hollow": "Hollow points: slides, to be compared with the original protocol.",
}
