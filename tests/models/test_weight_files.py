import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.flax import save_file

from jaxadv.core.types import UserError
from jaxadv.models.weight_files import read_state_dict

FILES = Path(__file__).parent / "weight_files"  # see make.py there


@pytest.mark.parametrize("name", ["zip.pt", "legacy.pth", "nested.pt"])
def test_files_of_pytorch_are_read_without_it(name):
    arrays = read_state_dict(FILES / name)
    assert list(arrays) == [
        "module.conv.weight", "module.conv.bias", "module.norm.running_mean",
        "module.norm.num_batches_tracked", "module.fc.weight", "module.fc.bias",
    ]  # fmt: skip
    np.testing.assert_array_equal(arrays["module.conv.weight"], np.arange(24.0).reshape(2, 3, 2, 2))
    np.testing.assert_array_equal(arrays["module.conv.bias"], np.float16([0.5, -1]))
    np.testing.assert_array_equal(arrays["module.norm.running_mean"], [1, 2])
    assert arrays["module.norm.num_batches_tracked"] == 7
    np.testing.assert_array_equal(arrays["module.fc.weight"], [[0, 2, 4], [1, 3, 5]])
    assert arrays["module.fc.bias"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(arrays["module.fc.bias"].astype(float), [4, 5])


@pytest.mark.parametrize(
    ("name", "function"),
    [("code.pt", r"(builtins|__builtin__)\.exec"), ("module.pt", r"torch\.nn\.\S+\.Linear")],
)
def test_a_pickle_that_could_run_code_is_refused(name, function, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = rf"^\S*{name} is refused: it is a pickle that asks for {function}[^\n]*state_dict"
    with pytest.raises(UserError, match=message):
        read_state_dict(FILES / name)
    assert not list(tmp_path.iterdir())  # the code would have written a file


@pytest.mark.parametrize("name", ["zip.pt", "legacy.pth"])
@pytest.mark.parametrize("kept", [0, 1, 50, 0.3, 0.6, 0.98])
def test_a_truncated_file_is_reported_in_one_line(name, kept, tmp_path):
    content = (FILES / name).read_bytes()
    size = kept if isinstance(kept, int) else int(kept * len(content))
    (tmp_path / name).write_bytes(content[:size])
    with pytest.raises(UserError, match=rf"^cannot read \S*{name} \([^\n]+\): it is damaged"):
        read_state_dict(tmp_path / name)


def test_a_tensor_cannot_read_beyond_its_storage(tmp_path):
    path = tmp_path / "short.pt"
    with zipfile.ZipFile(FILES / "zip.pt") as archive, zipfile.ZipFile(path, "w") as short:
        for name in archive.namelist():
            content = archive.read(name)
            short.writestr(name, content[:8] if name.endswith("data/0") else content)
    with pytest.raises(UserError, match="a tensor exceeds its storage"):
        read_state_dict(path)


def test_a_file_without_a_state_dict_says_what_it_has(tmp_path):
    path = tmp_path / "numbers.npy"
    np.save(path, np.zeros(3))
    with pytest.raises(UserError, match=r"^cannot read \S*numbers.npy \(it is an array"):
        read_state_dict(path)
    with pytest.raises(UserError, match=r"nothing.pt does not exist: pass a file of weights$"):
        read_state_dict(tmp_path / "nothing.pt")


def test_safetensors_are_read(tmp_path):
    path = tmp_path / "weights.safetensors"
    weights = {
        "fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fc.bias": np.array([1, 2], ml_dtypes.bfloat16),
    }
    save_file(weights, path)
    arrays = read_state_dict(path)
    assert set(arrays) == set(weights)
    for name, array in arrays.items():
        assert array.dtype == weights[name].dtype
        np.testing.assert_array_equal(array, weights[name])
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match=r"^cannot read \S*weights.safetensors \([^\n]+\)"):
        read_state_dict(path)
