"""Write the files of this folder: `python tests/models/weight_files/make.py`, with PyTorch 2.13.

CI has no PyTorch, so the files are kept.
"""

from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent
STATE_DICT = {
    "module.conv.weight": torch.arange(24.0).reshape(2, 3, 2, 2),
    "module.conv.bias": torch.tensor([0.5, -1.0]).half(),
    "module.norm.running_mean": torch.nn.Parameter(torch.tensor([1.0, 2.0])),
    "module.norm.num_batches_tracked": torch.tensor(7),
    "module.fc.weight": torch.arange(6.0).reshape(3, 2).T,  # not contiguous
    "module.fc.bias": torch.arange(10.0)[4:6].bfloat16(),  # a part of a storage
}


# What checkpoints have beside the weights.
HARMLESS = {
    "dtype": torch.float32,
    "device": torch.device("cpu"),
    "optimizer": torch.optim.SGD,  # not called
    "sets": [{1, 2}, frozenset([3])],
    "complex": torch.zeros(2, dtype=torch.complex64),
    "float8": torch.zeros(2).to(torch.float8_e4m3fn),
    "sparse": torch.eye(2).to_sparse(),
    "accuracy": np.float64(0.5),
}


class Code:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('executed').touch()",)


if __name__ == "__main__":
    torch.save(STATE_DICT, FOLDER / "zip.pt")
    torch.save(STATE_DICT, FOLDER / "legacy.pth", _use_new_zipfile_serialization=False)
    nested = {"epoch": 3, "best": torch.tensor(0.5), "net": STATE_DICT, "history": [1, 2.0]}
    torch.save(nested, FOLDER / "nested.pt")
    strings = {**STATE_DICT, "class_names": np.array(["cat", "dog"])}
    torch.save({"model": strings, **HARMLESS}, FOLDER / "harmless.pt")
    for name in ("complex", "float8", "sparse"):
        torch.save({**STATE_DICT, name: HARMLESS[name]}, FOLDER / f"{name}.pt")
    expanded = {**STATE_DICT, "module.fc.bias": torch.zeros(1).expand(4)}
    torch.save(expanded, FOLDER / "expanded.pt")
    torch.save({**STATE_DICT, "code": Code()}, FOLDER / "code.pt")
    torch.save(torch.nn.Linear(2, 2), FOLDER / "module.pt")
