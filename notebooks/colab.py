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
# Train a classifier by curriculum adversarial training, on a TPU, a GPU or a CPU, keep its
# checkpoints on Google Drive, attack it, and look at what came out. Choose the runtime first:
# *Runtime → Change runtime type*. A session that Colab ends loses nothing: run all cells again,
# and the job goes on where it stopped.

# %% [markdown]
# ## What to run
#
# The digits take minutes anywhere. CIFAR-10 is downloaded the first time; an epoch of `bignet`
# takes a minute and a half on two CPU cores.

# %%
REPOSITORY = ""  # the address to clone from, where this notebook is not in a checkout
DATA = "digits"  # or "cifar10"
MODEL = "bignet"
NUM_EPOCHS = 10
NUM_EXAMPLES = 128  # of the test split, to attack
BATTERY = "autoattack"  # or another of configs/evaluate.py
WORKDIR = "runs/colab"  # on Colab it lies on Google Drive

# %% [markdown]
# ## Install
#
# For the accelerator that the runtime has. What is installed already stays.

# %%
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

python = sys.executable
root = next((p for p in (Path.cwd(), *Path.cwd().parents) if (p / "run.py").exists()), None)
if root is None:
    root = Path("jaxadv").absolute()
    subprocess.run(["git", "clone", "--quiet", REPOSITORY, str(root)], check=True)
os.chdir(root)
if "jaxadv" not in {found.name for found in importlib.metadata.distributions()}:
    # libtpu's devices, and the driver's tool
    on_tpu = any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    extra = "[tpu]" if on_tpu else "[cuda12]" if shutil.which("nvidia-smi") else ""
    # !{python} -m pip install --quiet --editable ".{extra}"
    assert _exit_code == 0, "the installation failed: see above"

# %% [markdown]
# JAX is only ever started in programs of their own: an accelerator serves one at a time.

# %%
# !{python} -c "import jax; print(jax.__version__, jax.devices())"

# %% [markdown]
# ## Where checkpoints are kept

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
# The curriculum: a part of each batch is attacked with PGD, whose eps and number of steps grow from
# epoch to epoch. At its end the best and the last checkpoint are attacked on the test split. A job
# that was ended goes on from its last checkpoint.

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
for name in ("clean", "adversarial"):  # of the digits each batch is attacked as a whole
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
# ## Evaluate from the checkpoint
#
# The workdir alone is enough, on this machine or on another: AutoAttack, or another battery, on the
# best checkpoint.

# %%
evaluation = (
    f"--config configs/evaluate.py:{BATTERY} --config.checkpoint='{workdir}'"
    f" --config.evaluation.num_examples={NUM_EXAMPLES} --workdir '{workdir}/{BATTERY}'"
)
# !{python} run.py {evaluation}
assert _exit_code == 0, "the evaluation failed: see above"

# %% [markdown]
# ## What came out
#
# Accuracy on the test split under each attack, with its 95 % interval. Where PGD leaves much more
# standing than the worst case does, it was too weak.

# %%
results = json.loads((workdir / "evaluation.json").read_text())
strong = json.loads((workdir / BATTERY / "evaluation.json").read_text())


def draw(axes, entries, label, style):
    """Draws accuracy over eps, with intervals."""
    entries = sorted(entries, key=lambda entry: entry["eps"])
    eps = [entry["eps"] for entry in entries]
    accuracy = np.array([entry["accuracy"] for entry in entries])
    low, high = np.array([entry["ci95"] for entry in entries]).T
    spread = 100 * np.array([accuracy - low, high - accuracy]).clip(0)
    axes.errorbar(eps, 100 * accuracy, spread, fmt=style, capsize=3, label=label)


def within(entries):
    """Returns what there is at the radii of the figure: at larger ones nothing stands."""
    return [entry for entry in entries if entry["norm"] == "linf" and entry["eps"] <= 0.1]


figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
attacks = within(results["attacks"].values())
for attack in sorted({entry["attack"] for entry in attacks}):
    draw(axes, [entry for entry in attacks if entry["attack"] == attack], attack, "o-")
draw(axes, within(results["worst_case"].values()), "worst case", "k--")
draw(axes, within(strong["worst_case"].values()), BATTERY, "s")
axes.axhline(100 * results["clean"]["accuracy"], color="grey", lw=1, label="clean")
axes.set(xlabel="eps (L-inf)", ylabel="accuracy, %", ylim=(0, 102))
axes.set_title(f"{results['model']} on {results['dataset']}, {results['n']} test images")
axes.legend()
plt.show()

# %% [markdown]
# Adversarial examples of PGD-40: the image, the perturbation, and what it became.

# %%
with np.load(workdir / "examples.npz", allow_pickle=False) as examples:
    name = "pgd40/0.05"
    clean, adversarial = examples["sample/images"], examples[f"sample/adversarial/{name}"]
    labels = examples["labels"][examples["sample/ids"]]
    predictions = examples[f"sample/predictions/{name}"]
    names = examples["class_names"]

eps = results["attacks"][name]["eps"]
figure, grid = plt.subplots(3, len(clean), figsize=(1.5 * len(clean), 5), layout="constrained")
for column in range(len(clean)):
    change = (adversarial[column] - clean[column]) / (2 * eps) + 0.5
    rows = ((clean, names[labels[column]]), (None, ""), (adversarial, names[predictions[column]]))
    for axes, (images, title) in zip(grid[:, column], rows, strict=True):
        axes.imshow(change if images is None else images[column])
        axes.set_title(title, fontsize=9)
        axes.axis("off")
figure.suptitle(f"{name}: image, perturbation, adversarial image with what the model takes it for")
plt.show()

# %% [markdown]
# The whole report, one page with all tables and figures, lies in the workdir:

# %%
print(workdir / "report.html")
