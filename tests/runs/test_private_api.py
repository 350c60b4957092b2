"""The private API of JAX, and runs on versions of JAX without it."""

import pytest

from jaxadv.core.types import UserError
from jaxadv.runs import distributed


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("clusters", "ClusterEnv.auto_detect_unset_distributed_params"),
        ("distributed", "global_state"),
    ],
)
def test_this_version_of_jax_has_it(module, name):
    assert distributed._private(module, name) is not None


@pytest.mark.parametrize(
    ("module", "name"), [("clusters", "ClusterEnv.no_such_method"), ("no_such_module", "State")]
)
def test_what_is_missing_is_none(module, name):
    assert distributed._private(module, name) is None


@pytest.mark.parametrize("detect", [None, lambda coordinator: (coordinator, 2, 0, None)])
def test_without_cluster_detection_the_flags_are_required(monkeypatch, detect):
    monkeypatch.setattr(distributed, "_private", lambda module, name: detect)
    with pytest.raises(UserError, match="does not let jaxadv detect the cluster: pass --coord"):
        distributed._detect_cluster(None, None, None)
