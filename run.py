"""Train, evaluate or study robust classifiers and GANs: `python run.py --config FILE`.

The config names the job in `config.mode`. For example, `python run.py --config
configs/curriculum.py:digits` trains a classifier and evaluates it. `jaxadv --help` shows the same
jobs as commands.
"""

import sys

from absl import flags

from jaxadv.cli import flags as program_flags
from jaxadv.cli.job import run_command

if __name__ == "__main__":
    flags.adopt_module_key_flags(program_flags)
    run_command(sys.argv)
