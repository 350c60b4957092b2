"""The study: its experiments and claims, the plan of its runs, their records, and its page.

`runner` executes the runs of `plan` and keeps a record of each (`records`). `page` shows the
experiments (`experiments`, `claims`, `slides`) with their `measurements`, the `differences` between
them, the `verdicts` on the claims and the `findings`. Only `run.py` uses this package; the config
of the study is configs/study.py.
"""
