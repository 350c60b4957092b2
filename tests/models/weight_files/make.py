"""Write the files of this folder: `python tests/models/weight_files/make.py`, with PyTorch 2.13.

CI has no PyTorch, so the files are kept.
"""

from pathlib import Path

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


class Code:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('executed').touch()",)


if __name__ == "__main__":
    torch.save(STATE_DICT, FOLDER / "zip.pt")
    torch.save(STATE_DICT, FOLDER / "legacy.pth", _use_new_zipfile_serialization=False)
    nested = {"epoch": 3, "best": torch.tensor(0.5), "net": STATE_DICT, "history": [1, 2.0]}
    torch.save(nested, FOLDER / "nested.pt")
    torch.save({**STATE_DICT, "code": Code()}, FOLDER / "code.pt")
    torch.save(torch.nn.Linear(2, 2), FOLDER / "module.pt")
