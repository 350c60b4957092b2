"""A data set out of a trained generator."""

import json
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxadv import config as configs
from jaxadv.data.synthetic import ShardWriter, pack
from jaxadv.evaluate import load_dataset
from jaxadv.provenance import note_source
from jaxadv.sampling import judged_samples, make_sampler, samples
from jaxadv.train_gan import make_judge, restore


def run(config: ConfigDict, workdir: Path) -> list[str]:
    """Writes labelled samples of a GAN to `synthetic/` or `synthetic.npz` of its workdir.

    Args:
      config: of configs/gan.py; what the samples are is its `sampling`, all else is the run's own.
      workdir: of the run.

    Returns:
      No warnings.

    Raises:
      UserError: the config is not right, there is nothing to restore, or there are samples already.
    """
    note_source()
    sampling = config.sampling
    configs.check_gan(config, jax.device_count())
    trained = configs.read(workdir, mode="gan")
    trained.data.data_dir = config.data.data_dir or trained.data.data_dir
    dataset = load_dataset(trained.data)
    recipe, networks, number = restore(trained, dataset, workdir, sampling.which)
    writer = ShardWriter(workdir / "synthetic", sampling.shard_size)
    sampler = make_sampler(recipe, sampling)
    num_classes = len(dataset.class_names)
    if sampling.min_probability > 0 or sampling.labels == "judged":
        judge = make_judge(trained, dataset, workdir)
        batches = judged_samples(sampler, networks, judge, num_classes, sampling)
    else:
        batches = samples(sampler, networks, sampling.num_images, num_classes, sampling.batch_size)
    with tqdm(total=sampling.num_images, desc="Sample", unit="img", disable=None) as bar:
        for batch in batches:
            writer.write(np.asarray(batch.images), np.asarray(batch.labels))
            bar.update(len(batch.labels))
    writer.close(
        dataset=dataset.name,
        class_names=list(dataset.class_names),
        round=number,
        sampling=json.loads(sampling.to_json()),
    )
    if sampling.format == "npz":
        pack(workdir / "synthetic", workdir / "synthetic.npz")
        print(f"Samples: {workdir / 'synthetic.npz'}")
    print(f"Samples: {workdir / 'synthetic'}")
    return []
