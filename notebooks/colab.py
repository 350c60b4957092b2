# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Robust image classifiers with jaxadv
#
# This notebook trains a classifier with curriculum adversarial training on a TPU, a GPU or a CPU,
# stores its checkpoints on Google Drive, attacks it, and plots the results. Choose the runtime
# first: *Runtime → Change runtime type*. If Colab ends the session, run all cells again: the job
# resumes where it was interrupted.

# %% [markdown]
# ## Settings
#
# The digits take minutes on any device. CIFAR-10 is downloaded the first time; an epoch of `bignet`
# takes a minute and a half on two CPU cores.

# %%
REPOSITORY = ""  # the address of the project, unless this notebook is in a checkout
DATA = "digits"  # or "cifar10"
MODEL = "bignet"
NUM_EPOCHS = 10
NUM_EXAMPLES = 128  # test images to attack
ATTACK_SUITE = "autoattack"  # or another suite of configs/evaluate.py
WORKDIR = "runs/colab"  # on Colab this is a folder on Google Drive

# %% [markdown]
# ## Install
#
# Installs the package for the accelerator of the runtime, unless it is installed already. Colab's
# own JAX 0.7 and Flax 0.11 are too old for it: they are upgraded to JAX 0.10 and Flax 0.12. NumPy,
# Matplotlib and Pillow, which the runtime has loaded, stay. If Colab asks to restart the runtime,
# do so and run all cells again.

# %%
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

python = sys.executable
root = next((p for p in (Path.cwd(), *Path.cwd().parents) if (p / "run.py").exists()), None)
if root is None:
    root = Path("jaxadv").absolute()
    if not (root / "run.py").exists():
        assert REPOSITORY, "set REPOSITORY in the first cell to the address of the project"
        subprocess.run(["git", "clone", "--quiet", REPOSITORY, str(root)], check=True)
os.chdir(root)
installed = importlib.metadata.distributions(path=[sysconfig.get_path("purelib")])
if "jaxadv" not in {found.name for found in installed}:
    # The device files of libtpu, and the tool of the NVIDIA driver.
    on_tpu = any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    extra = "[tpu]" if on_tpu else "[cuda12]" if shutil.which("nvidia-smi") else ""
    # JAX 0.12 would upgrade NumPy, too.
    # !{python} -m pip install --quiet --editable ".{extra}" "jax<0.11"
    assert _exit_code == 0, "the installation failed: see above"

# %% [markdown]
# JAX runs only in separate programs, because an accelerator serves one program at a time.

# %%
# !{python} -c "import jax; print(jax.__version__, jax.devices())"

# %% [markdown]
# ## Storage of checkpoints

# %%
if importlib.util.find_spec("google") and importlib.util.find_spec("google.colab"):
    from google.colab import drive

    drive.mount("/content/drive")
    workdir = Path("/content/drive/MyDrive/jaxadv") / Path(WORKDIR).name
else:
    workdir = Path(WORKDIR)
print(workdir)

# %% [markdown]
# ## Train
#
# In curriculum training a part of each batch is attacked with PGD, whose eps and number of steps
# grow from epoch to epoch. At the end the best and the last checkpoint are attacked on the test
# split. An interrupted job resumes from its last checkpoint.

# %%
job = (
    f"--config configs/curriculum.py:{DATA} --workdir '{workdir}'"
    f" --config.model.name={MODEL} --config.train.num_epochs={NUM_EPOCHS}"
    f" --config.evaluation.num_examples={NUM_EXAMPLES}"
)
# !{python} run.py {job}
assert _exit_code == 0, "the job failed: see above"

# %%
import matplotlib.pyplot as plt
import numpy as np

# %matplotlib inline
lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
epochs = [line["epoch"] for line in lines]
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
for name in ("clean", "adversarial"):  # a loss is None if no image of a batch is of its kind
    if lines[0][f"train_loss_{name}"] is not None:
        left.plot(epochs, [line[f"train_loss_{name}"] for line in lines], "o-", label=name)
left.set(xlabel="epoch", ylabel="training loss")
left.legend()
for name in ("clean", "robust"):
    accuracies = [100 * line[f"validation_accuracy_{name}"] for line in lines]
    right.plot(epochs, accuracies, "o-", label=name)
right.plot(epochs, [1000 * line["eps"] for line in lines], "k:", label="1000 eps of the attack")
right.set(xlabel="epoch", ylabel="held-out accuracy, %", ylim=(0, 102))
right.legend()
plt.show()

# %% [markdown]
# ## Evaluate the checkpoint
#
# Evaluation needs only the workdir, on this machine or on another. It runs AutoAttack, or another
# attack suite, on the best checkpoint.

# %%
evaluation_job = (
    f"--config configs/evaluate.py:{ATTACK_SUITE} --config.checkpoint='{workdir}'"
    f" --config.evaluation.num_examples={NUM_EXAMPLES} --workdir '{workdir}/{ATTACK_SUITE}'"
)
# !{python} run.py {evaluation_job}
assert _exit_code == 0, "the evaluation failed: see above"

# %% [markdown]
# ## Results
#
# The plot shows the accuracy on the test split under each attack with its 95 % interval. If PGD
# leaves many more images robust than the worst case does, it is too weak.

# %%
from jaxadv.core.example_results import ExampleResults
from jaxadv.core.results import Evaluation


def read(folder):
    """Return the results of an evaluation."""
    return Evaluation.from_json(json.loads((folder / "evaluation.json").read_text()))


def draw(axes, results, label, style):
    """Draw accuracy over eps with its intervals, in L-inf. Beyond eps 0.1 no image is robust."""
    results = [one for one in results if one.norm == "linf" and one.eps <= 0.1]
    if results:
        eps = [one.eps for one in results]
        accuracy = np.array([one.accuracy for one in results])
        low, high = np.array([one.ci95 for one in results]).T
        errors = 100 * np.array([accuracy - low, high - accuracy]).clip(0)
        axes.errorbar(eps, 100 * accuracy, errors, fmt=style, capsize=3, label=label)


evaluation, suite = read(workdir), read(workdir / ATTACK_SUITE)
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for name, entries in evaluation.by_name().items():
    draw(axes, entries, name, "o-")
draw(axes, evaluation.worst_case, "worst case", "k--")
draw(axes, suite.worst_case, ATTACK_SUITE, "s")
axes.axhline(100 * evaluation.clean.accuracy, color="grey", lw=1, label="clean")
axes.set(xlabel="eps (L-inf)", ylabel="accuracy, %", ylim=(0, 102))
axes.set_title(f"{evaluation.model} on {evaluation.dataset}, {evaluation.n} test images")
axes.legend()
plt.show()

# %% [markdown]
# Adversarial examples of PGD-40: the image, the perturbation, and the predicted class.

# %%
with np.load(workdir / "examples.npz", allow_pickle=False) as arrays:
    examples = ExampleResults.from_arrays(dict(arrays))

key = "pgd40/0.05"
(entry,) = [one for one in evaluation.attacks if one.key == key]
attacked = examples.attacks[key]
clean, adversarial = examples.sample_images, attacked.sample_images
labels, names = examples.labels[examples.sample_ids], examples.class_names
figure, grid = plt.subplots(3, len(clean), figsize=(1.5 * len(clean), 5), layout="constrained")
for column in range(len(clean)):
    perturbation = adversarial[column] - clean[column]
    rows = (
        (clean[column], names[labels[column]]),
        ((perturbation / (2 * entry.eps) + 0.5).clip(0, 1), ""),
        (adversarial[column], names[attacked.sample_predictions[column]]),
    )
    for axes, (image, title) in zip(grid[:, column], rows, strict=True):
        axes.imshow(image)
        axes.set_title(title, fontsize=9)
        axes.axis("off")
figure.suptitle(f"{key}: image, perturbation, adversarial image with its predicted class")
plt.show()

# %% [markdown]
# The workdir also has the report, one page with all tables and plots:

# %%
print(workdir / "report.html")
