"""A data set out of a trained generator."""

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxadv import config as configs
from jaxadv.data.synthetic import ShardWriter, pack
from jaxadv.evaluate import check_dataset, load_dataset, trained_config
from jaxadv.judging import collect, judge_on_test, make_judge, num_judged, summary
from jaxadv.provenance import note_source, provenance
from jaxadv.sampling import judged_samples, make_sampler, samples
from jaxadv.train_gan import restore
from jaxadv.types import Batch


def run(config: ConfigDict, workdir: Path) -> list[str]:
    """Writes labelled samples of a GAN to a folder, and has them judged.

    Args:
      config: of configs/gan.py; what the samples are is its `sampling`, all else is the run's own
        but for where files lie, `data.data_dir` and `judge.checkpoint`.
      workdir: of the run.

    Returns:
      No warnings.

    Raises:
      UserError: the config is not right, there is nothing to restore, or there are samples already.
    """
    note_source()
    began = time.monotonic()
    sampling = config.sampling
    configs.check_gan(config, jax.device_count())
    trained = trained_config(workdir, "gan", config.data.data_dir)
    own = trained.judge.checkpoint or str(workdir / "judge")
    trained.judge.checkpoint = config.judge.checkpoint or own
    dataset = load_dataset(trained.data)
    check_dataset(workdir, dataset)
    recipe, networks, number = restore(trained, dataset, workdir, sampling.which)
    folder = Path(sampling.path or workdir / "synthetic")
    writer = ShardWriter(folder, sampling.shard_size)
    judge = make_judge(trained, dataset, workdir)
    sampler = make_sampler(recipe, sampling)
    num_classes = len(dataset.class_names)
    chosen = sampling.min_probability > 0 or sampling.labels == "judged"
    if chosen:
        batches = judged_samples(sampler, networks, judge, num_classes, sampling)
    else:
        batches = samples(sampler, networks, sampling.num_images, num_classes, sampling.batch_size)
    first = collect(_written(batches, writer, sampling.num_images, num_judged(dataset)))
    judged = judge_on_test(judge, first, dataset)
    writer.close(
        dataset=dataset.name,
        class_names=list(dataset.class_names),
        round=number,
        sampling=json.loads(sampling.to_json()),
        judged=judged,
        provenance=provenance(time.monotonic() - began),
    )
    print(summary(judged["samples"]))
    if chosen:
        print("The judge chose these samples or their labels: its own word says little of them")
    if sampling.format == "npz":
        packed = folder.with_name(f"{folder.name}.npz")
        pack(folder, packed)
        print(f"Samples: {packed}")
    print(f"Samples: {folder}")
    return []


def _written(
    batches: Iterable[Batch], writer: ShardWriter, num_images: int, num_kept: int
) -> Iterator[Batch]:
    """Writes all batches, and yields the first `num_kept` images."""
    left = num_kept
    with tqdm(total=num_images, desc="Sample", unit="img", disable=None) as bar:
        for batch in batches:
            images: Any = np.asarray(batch.images)
            labels: Any = np.asarray(batch.labels)
            writer.write(images, labels)
            bar.update(len(labels))
            if left:
                yield Batch(images[:left], labels[:left])
                left -= min(left, len(labels))
