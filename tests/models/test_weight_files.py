import copy
import pickle
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.flax import save_file

from jaxadv.core.types import UserError
from jaxadv.models.weight_files import read_state_dict

FILES = Path(__file__).parent / "weight_files"  # see make.py there


@pytest.mark.parametrize("name", ["zip.pt", "legacy.pth", "nested.pt", "harmless.pt"])
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


def write_pickle(path, code, key="more"):
    """Write the weights of zip.pt with one more item, whose value is the result of opcodes."""
    with zipfile.ZipFile(FILES / "zip.pt") as archive, zipfile.ZipFile(path, "w") as changed:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith("data.pkl"):
                content = content[:-1] + text(key) + code + b"s."
            changed.writestr(name, content)


def text(value):
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x18tQ"


@pytest.mark.parametrize(
    "code",
    [
        STORAGE + b"}" + text("dtype") + text("f8") + b"sb",
        STORAGE + b"N}" + text("content") + b"Ns\x86b",
        b"c_codecs\nencode\nN}" + text("__defaults__") + b"K\x01K\x02\x86s\x86b",
        b"cnumpy\ndtype\n}" + text("code") + text("O") + b"sb",
    ],
)
def test_a_pickle_cannot_set_attributes(code, tmp_path):
    write_pickle(tmp_path / "attributes.pt", code)
    with pytest.raises(UserError, match=r"^cannot read \S* \(the pickle sets attributes\)"):
        read_state_dict(tmp_path / "attributes.pt")
    assert read_state_dict(FILES / "zip.pt")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (b"cargparse\nNamespace\n)\x81", "it is a pickle that asks for argparse.Namespace, which"),
        (b"ca\x1b[31m\nb\n)R", r"it is a pickle that asks for a\\x1b\[31m.b, which could run code"),
        (
            b"\x8c\x02os" + text("system\n") + b"\x93)R",
            r"asks for os.system\\n, which could run code",
        ),
        (text("f") + b")R", "the pickle calls what is not a function"),
        (b"I1\n", "the pickle has the opcode INT"),
        (b"}" + b")" + b"\x85" * 100_000 + b"Ns", "a dictionary has nested keys"),
        (b"}NNa", "the pickle appends to what is not a list"),
        (b"]NNs", "the pickle sets items of what is not a dictionary"),
    ],
)
def test_other_pickles_are_refused_in_one_line(code, message, tmp_path):
    write_pickle(tmp_path / "other.pt", code)
    with pytest.raises(UserError, match=message) as error:
        read_state_dict(tmp_path / "other.pt")
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "code",
    [
        b"Nr\xff\xff\xff\x3f",  # an index of the memo for which an array would take 8 GiB
        b"]" + b"q\xf0h\xf0\x86" * 100,  # pairs of the same pair, 2^100 in all
        b"}" + text("k") + b"]" * 100_000 + b"a" * 99_999 + b"s",
        b"h\x00",  # the dictionary itself
        b"ccollections\nOrderedDict\n]q\xf0(]q\xf1(" + text("k") + b"Neh\xf1e\x85R",  # Python 2
    ],
)
def test_nested_content_beside_the_weights_is_left_unread(code, tmp_path):
    write_pickle(tmp_path / "nested.pt", code)
    assert len(read_state_dict(tmp_path / "nested.pt")) == 6


@pytest.mark.parametrize(
    ("name", "kind"),
    [("complex", "ComplexFloatStorage"), ("float8", "float8_e4m3fn"), ("sparse", "sparse")],
)
def test_unsupported_types_of_tensors_are_named(name, kind):
    message = rf"{name}.pt is refused: it has tensors of type {kind}, which is not supported: save"
    with pytest.raises(UserError, match=message):
        read_state_dict(FILES / f"{name}.pt")


def test_an_expanded_tensor_is_refused():
    with pytest.raises(UserError, match=r"more elements than its storage, .* tensor\.clone"):
        read_state_dict(FILES / "expanded.pt")


def test_archives_that_are_larger_in_memory_are_refused(tmp_path):
    compressed, overlapping = tmp_path / "compressed.pt", tmp_path / "overlapping.pt"
    with zipfile.ZipFile(FILES / "zip.pt") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match="it is compressed"):
        read_state_dict(compressed)
    with zipfile.ZipFile(overlapping, "w") as archive:
        for name, content in {**contents, "zip/data/x": bytes(10_000)}.items():
            archive.writestr(name, content)
        for key in range(6, 9):
            entry = copy.copy(archive.filelist[-1])
            entry.filename = f"zip/data/{key}"
            archive.filelist.append(entry)
    with pytest.raises(UserError, match="its entries are larger than the file"):
        read_state_dict(overlapping)


def test_arrays_that_share_their_content_are_limited(tmp_path):
    size = 5000
    dtype = b"cnumpy\ndtype\n" + text("u1") + b"\x85R"
    array = b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01"
    array += (
        b"M" + size.to_bytes(2, "little") + b"\x85" + dtype + b"\x89" + text("x" * size) + b"tb"
    )
    for count, fits in ((10, True), (1000, False)):
        more = b"".join(b"s" + text(f"array{index}") + b"h\xf0" for index in range(count))
        write_pickle(tmp_path / "shared.pt", array + b"q\xf0" + more)
        if fits:
            assert len(read_state_dict(tmp_path / "shared.pt")) == 7 + count
            continue
        with pytest.raises(UserError, match=r"\(its arrays are larger than the file\)"):
            read_state_dict(tmp_path / "shared.pt")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/version"], "it is a zip archive, but not of torch.save: save the weights with"),
        (["a/data.pkl", "b/data.pkl"], "it is a zip archive, but not of torch.save: save"),
        (["a/data.pkl", "a/constants.pkl"], r"but not of torch.save \(TorchScript\): save"),
    ],
)
def test_other_zip_archives_are_refused(names, message, tmp_path):
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    with pytest.raises(UserError, match=message):
        read_state_dict(tmp_path / "other.pt")


def test_names_in_messages_are_printable(tmp_path):
    path = tmp_path / "names.pt"
    weights = b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n" + text("i1") + b"\x85RC\x01a\x86R"
    write_pickle(path, weights, key="fc\n\x1b[31m")
    with pytest.raises(UserError, match=r"refused: it has the name 'fc\\n\\x1b\[31m': use"):
        read_state_dict(path)
    path.write_bytes(legacy({"epoch\n": 3, "x" * 1000: 4}))
    with pytest.raises(UserError, match=r"no state dict, but the keys epoch\\n, x+:") as error:
        read_state_dict(path)
    assert len(str(error.value)) < 600


def test_keys_of_storages_are_text(tmp_path):
    # The hash of nested tuples would overflow the stack.
    (tmp_path / "keys.pt").write_bytes(legacy({})[:-1] + b"K\x00" + b"\x85" * 100_000 + b"a.")
    with pytest.raises(UserError, match="the key of a storage is not text"):
        read_state_dict(tmp_path / "keys.pt")


def legacy(content):
    """Return an old file of torch.save without storages."""
    system = {"little_endian": True}
    parts = [0x1950A86A20F9469CFC6C, 1001, system, content, []]
    return b"".join(pickle.dumps(part, protocol=2) for part in parts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros(3), "it is an array of numbers: use a dictionary with params and state"),
        ({"weights": np.zeros(3)}, "it has the keys weights: use a dictionary with params"),
        ({"params": {"w": np.zeros(3)}}, "its params or state are no dictionary by module: use"),
        ({"params": {"net/~/x\n": {"y\n": np.zeros(3)}}}, r"'net/~/x\\n' has 'y\\n', which no"),
        (
            {"params": {}, "state": {"net/~/norm/~/mean_ema": {"hidden": np.zeros(3)}}},
            "'net/~/norm/~/mean_ema' has no 'average'",
        ),
    ],
)
def test_an_npy_file_that_is_no_haiku_network_says_what_it_has(content, message, tmp_path):
    np.save(tmp_path / "other.npy", content, allow_pickle=True)
    with pytest.raises(UserError, match=rf"^\S*other.npy is refused: {message}") as error:
        read_state_dict(tmp_path / "other.npy")
    assert str(error.value).isprintable()


@pytest.mark.parametrize("is_pair", [False, True])
def test_an_npy_file_of_a_haiku_network_is_read(is_pair, tmp_path):
    params = {"net/~/logits": {"b": np.float32([1, 2]), "w": np.zeros((3, 2), np.float32)}}
    state = {"net/~/norm/~/mean_ema": {"average": np.float32([[3]]), "counter": np.array(1)}}
    content = np.empty((), object)
    content[()] = (params, state) if is_pair else {"params": params, "state": state}
    np.save(tmp_path / "haiku.npy", content, allow_pickle=True)
    arrays = read_state_dict(tmp_path / "haiku.npy")
    assert arrays.keys() == {"logits.bias", "logits.weight", "norm.running_mean"}
    np.testing.assert_array_equal(arrays["logits.bias"], [1, 2])
    assert arrays["logits.weight"].shape == (2, 3)
    np.testing.assert_array_equal(arrays["norm.running_mean"], [3])


def test_a_file_that_does_not_exist_is_named(tmp_path):
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
