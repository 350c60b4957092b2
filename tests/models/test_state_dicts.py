import jax
import numpy as np
import pytest
from flax import linen as nn

from jaxadv.core.types import UserError
from jaxadv.models.state_dicts import select_variables, to_state_dict, to_variables


class Net(nn.Module):
    num_classes: int = 3

    @nn.compact
    def __call__(self, images, train=False):
        hidden = nn.Conv(2, (3, 3), name="block.0.conv")(images)
        hidden = nn.BatchNorm(use_running_average=not train, name="bn")(hidden)
        return nn.Dense(self.num_classes, name="fc")(hidden.mean((1, 2)))


@pytest.fixture(scope="module")
def variables():
    shapes = jax.eval_shape(Net().init, jax.random.key(0), np.zeros((1, 4, 4, 1), np.float32))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def test_names_and_layout_are_those_of_pytorch(variables):
    arrays = to_state_dict(variables)
    assert sorted(arrays) == [
        "block.0.conv.bias", "block.0.conv.weight", "bn.bias", "bn.running_mean",
        "bn.running_var", "bn.weight", "fc.bias", "fc.weight",
    ]  # fmt: skip
    kernel = variables["params"]["block.0.conv"]["kernel"]
    assert arrays["block.0.conv.weight"].shape == (2, 1, 3, 3)
    assert arrays["block.0.conv.weight"][1, 0, 2, 0] == kernel[2, 0, 0, 1]
    assert arrays["fc.weight"].shape == (3, 2)
    np.testing.assert_array_equal(arrays["fc.weight"].T, variables["params"]["fc"]["kernel"])


def test_prefixes_counters_and_unused_keys_are_dropped(variables):
    arrays = {f"module.model.{key}": array for key, array in to_state_dict(variables).items()}
    arrays["module.model.bn.num_batches_tracked"] = np.int64(3)
    arrays["module.model.sub_block.conv.weight"] = np.zeros(2)
    restored = to_variables(arrays, variables, unused=("sub_block.",))
    jax.tree.map(np.testing.assert_array_equal, restored, variables)
    with pytest.raises(UserError, match=r"unexpected: sub_block.conv.weight$"):
        to_variables(arrays, variables)


def test_an_error_names_the_keys_that_do_not_fit(variables):
    arrays = to_state_dict(variables)
    arrays["fc.weight"] = arrays["fc.weight"].T
    arrays["linear.bias"] = arrays.pop("fc.bias")
    message = (
        r"^the weights do not fit the model: missing: fc.bias; unexpected: linear.bias; of another "
        r"shape: fc.weight \(2, 3\) instead of \(3, 2\)$"
    )
    with pytest.raises(UserError, match=message):
        to_variables(arrays, variables)


def test_an_error_lists_a_few_keys_only(variables):
    with pytest.raises(UserError, match=r"missing: (\S+, ){3}\S+ and 4 more$"):
        to_variables({}, variables)


def test_weights_that_are_not_finite_are_refused(variables):
    arrays = to_state_dict(variables)
    arrays["bn.bias"] = np.array([np.nan, 0])
    with pytest.raises(UserError, match=r"^the weights are NaN or infinite: bn.bias$"):
        to_variables(arrays, variables)


def test_a_module_keeps_names_that_look_like_prefixes():
    target = {"params": {"model": {"kernel": np.ones((2, 3), np.float32)}}}
    restored = to_variables({"model.weight": np.arange(6.0).reshape(3, 2)}, target)
    np.testing.assert_array_equal(restored["params"]["model"]["kernel"], [[0, 2, 4], [1, 3, 5]])


def test_a_key_that_is_there_twice_is_refused(variables):
    arrays = to_state_dict(variables)
    with pytest.raises(UserError, match=r"^the weights have 'fc.bias' twice, once as 'model.fc.b"):
        to_variables({**arrays, "model.fc.bias": arrays["fc.bias"]}, variables)


def test_collections_with_the_same_names_are_ambiguous_in_a_state_dict_only(variables):
    averaged = {**variables, "ema": variables["params"]}
    with pytest.raises(UserError, match=r"ambiguous: (fc.\S+|bn.\S+|block\S+)"):
        to_variables(to_state_dict(variables), averaged)
    zeros = jax.tree.map(np.zeros_like, averaged)
    jax.tree.map(np.testing.assert_array_equal, select_variables(averaged, zeros), averaged)
    restored = select_variables({**averaged, "opt_state": {"count": np.int32(3)}}, variables)
    jax.tree.map(np.testing.assert_array_equal, restored, variables)


def test_types_and_scalars_are_kept():
    tree = {"params": {"w": np.ones(2, np.float32)}, "state": {"count": np.int32(7)}}
    restored = select_variables(tree, jax.tree.map(np.zeros_like, tree))
    assert restored["state"]["count"].dtype == np.int32
    assert restored["state"]["count"].shape == ()
    assert restored["state"]["count"] == 7


def test_half_precision_becomes_float32(variables):
    arrays = {key: array.astype(np.float16) for key, array in to_state_dict(variables).items()}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(to_variables(arrays, variables))} == {
        "float32"
    }


def test_a_head_of_another_size_keeps_its_values(variables):
    arrays = to_state_dict(variables)
    arrays |= {"fc.weight": np.zeros((5, 2)), "fc.bias": np.zeros(5)}
    restored = to_variables(
        arrays, variables, last_layer=[("params", "fc", "kernel"), ("params", "fc", "bias")]
    )
    jax.tree.map(np.testing.assert_array_equal, restored, variables)
