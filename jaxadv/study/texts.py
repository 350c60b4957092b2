"""Texts of the study's page that do not depend on the records."""

TEXTS = {
    "words": {
        "net, BigNet, BiggerNet": (
            "the study's convolutional networks, with 62,006, 263,406 and 516,018 parameters"
        ),
        "standard": "adversarial training at a fixed eps of 0.03",
        "curriculum": (
            "the study's adversarial training: eps rises from 0.01 to 0.1 and the number of PGD "
            "steps from 10 to 40, linearly over the epochs"
        ),
        "TRADES, N-FGSM": (
            "adversarial training with the loss of Zhang et al. (2019), or with one step from a "
            "random start (de Jorge et al., 2022)"
        ),
        "PNI": "noise on all weights, whose scale alpha is learned (He et al., 2019)",
        "RSE": "noise before each convolution (Liu et al., 2018)",
        "EOT": "attack with gradients averaged over noise samples, here 20",
        "score": (
            "the study's aggregated score: the sum of the accuracies at the radii 0.01, 0.02, "
            "0.03, 0.04, 0.05 and 0.1"
        ),
        "gradients": "of the model, for each train image: what a training costs",
        "evaluator": "a classifier trained on real images, which labels the samples of the GAN",
        "run": "one training, or one attack on its result",
        "last": "the last checkpoint of a training instead of the best",
        "JPEG copy": "CIFAR-10 whose images were compressed; all our models use it",
    },
    "guide": (
        "Accuracies are in %, at eps 0.03 in L-inf unless noted; pixels are in [0, 1].",
        "Models without a random defence are compared under two attacks: AutoAttack, and PGD-40 on "
        "more images. AutoAttack is the stronger attack and takes precedence where both decide "
        "differently. Its intervals are wider, because it attacks fewer images. Models with a "
        "random defence are compared under “200 gradients”: PGD-10 with EOT, and PGD-200 for the "
        "model without the defence; or, if the claim says so, with one noise sample.",
        "Verdicts follow from the 95 % interval of the difference. A claim is supported or "
        "contradicted if the interval lies on one side of zero, or of the gain that the claim "
        "names. Otherwise it is inconclusive, and the interval bounds the effect. A claim of no "
        "gain is contradicted if the interval lies above zero, and supported if it ends below one "
        "point. A claim of no significant difference is supported if the interval contains zero.",
        "A verdict is borderline if the 90 % or the 99 % interval gives another one.",
        "A model did not train if its clean accuracy is no better than that of a constant guess. "
        "If one seed did not train, the verdict is “did not train”; the difference shown leaves "
        "that seed out.",
        "The interval of a difference covers the images and the variation between trainings, "
        "unless it says that it covers the images only. One seed on a side is weaker evidence: the "
        "variation of that side is taken from other trainings.",
        "“Holm” is a p value corrected for the number of tests on this page. If it is below 0.05, "
        "a verdict of supported or contradicted holds although so many claims are tested.",
        "Corrected protocol: the checkpoint is chosen on held-out train images and evaluated on "
        "the test split, with random starts, in evaluation mode. Original protocol, the study's: "
        "the last checkpoint is evaluated on 1,024 held-out train images, attacked from the clean "
        "image, in training mode if the model has dropout or batch norm.",
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
        "of images, one seed each. A value is different if the 95 % interval of the difference "
        "excludes zero. This interval covers the variation between trainings too, so that it is "
        "wider than those of the tables below. All values of the original protocol are on the same "
        "1,024 images, so that one difference makes others more likely."
    ),
    "values": (
        "“a\N{EN DASH}b” is a 95 % interval over the images, of one seed. “± s [n]” is the "
        "standard deviation over n seeds. Seeds that did not train are left out if there are "
        "others. The scores of models with a random defence are under PGD-20 with gradients "
        "averaged over 10 noise samples. ≠: significantly different from the slides. †: measured "
        "before this page existed; see the runs. ‡: a seed did not train."
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
