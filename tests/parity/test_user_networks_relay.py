"""A learner of a user's Torch network hands its whole state to one of the Keras equivalent, and takes it back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Discrete

from support.both import Arrays, flatten, run_in
from support.user_networks import CASES, NUM_ACTIONS, factory

RATE = 3e-4
#: The loss does not depend on these (values; a bias that normalisation or softmax takes out again): what Adam makes of
#: their gradients' rounding errors says nothing.
WITHOUT_EFFECT = {"heads.vf.weight", "heads.vf.bias", "fc.bias", "attention.in_proj_bias"}


def program(backend_name: str, arrays: Arrays, settings: dict[str, Any]) -> dict[str, Any]:
    """Take over a state, give it back as it arrived, then train; weights ``<case>/...`` throughout."""
    import learner_core as lc
    from learner_core_algorithms import BCConfig

    results: dict[str, Any] = {}
    for case in settings["cases"]:
        config = (
            BCConfig()
            .framework(backend_name, compile=False)
            .training(train_batch_size=16, minibatch_size=16, num_epochs=1, lr=RATE)
        )
        spec = lc.RLModuleSpec(
            module_class=factory(backend_name, case), observation_space=CASES[case], action_space=Discrete(NUM_ACTIONS)
        )
        learner = config.rl_module(rl_module_spec=spec).build_learner()
        state = learner.get_state()
        incoming = {k.removeprefix(f"{case}/"): v for k, v in arrays.items() if k.startswith(f"{case}/")}
        if incoming:
            learner.set_state(_filled(state, incoming))
        results[case] = {"taken": _arrays(learner.get_state())}
        for update in range(settings["updates"]):
            learner.update_from_batch(batch=batch(case, update))
        results[case]["trained"] = _arrays(learner.get_state())
    return results


def batch(case: str, update: int) -> dict[str, Any]:
    rng = np.random.default_rng([update, *case.encode()])
    shape = CASES[case].shape
    return {"obs": rng.normal(size=(16, *shape)).astype(np.float32), "actions": rng.integers(0, NUM_ACTIONS, 16)}


def _arrays(state: Any) -> dict[str, Any]:
    parts = ("rl_module", "buffers", "optimizer")
    flat = flatten({part: state[part]["default_policy"] for part in parts})
    return {name: value for name, value in flat.items() if value.dtype.kind in "fiu"}


def _filled(tree: Any, arrays: Arrays) -> Any:
    """The state with the arrays of :func:`_arrays` put in."""
    for name, value in arrays.items():
        part, *rest = name.split("/")
        node = tree[part]["default_policy"]
        for key in rest[:-1]:
            node = node[key]
        node[rest[-1]] = int(value) if value.ndim == 0 else value
    return tree


@pytest.fixture(scope="module")
def relay() -> list[Arrays]:
    """Torch trains twice; TensorFlow takes over and trains once; Torch from the same state trains once; takes TF's."""
    cases = ["attributes", "lstm", "gru", "attention", "batch norm"]
    legs: list[Arrays] = []
    incoming: Arrays = {}
    for backend, updates in (("torch", 2), ("tf", 1), ("torch", 1)):
        legs.append(
            run_in(backend, __file__, "program", arrays=incoming, settings={"cases": cases, "updates": updates})
        )
        if len(legs) == 1:
            start = {name.replace("/trained/", "/"): v for name, v in legs[0].items() if "/trained/" in name}
            incoming = start
    back = {name.replace("/trained/", "/"): v for name, v in legs[1].items() if "/trained/" in name}
    legs.append(run_in("torch", __file__, "program", arrays=back, settings={"cases": cases, "updates": 0}))
    return [start, *legs[1:]]


def test_taking_over_changes_no_bit(relay: list[Arrays]) -> None:
    start, on_tf, _, back = relay
    for name, value in start.items():
        case, rest = name.split("/", 1)
        np.testing.assert_array_equal(on_tf[f"{case}/taken/{rest}"], value, err_msg=name)
        np.testing.assert_array_equal(back[f"{case}/taken/{rest}"], on_tf[f"{case}/trained/{rest}"], err_msg=name)


def test_one_step_from_the_same_state_agrees(relay: list[Arrays]) -> None:
    """Two biases where Keras has one learn as two: parameters of recurrent networks agree like all others."""
    _, on_tf, on_torch, _ = relay
    names = [name for name in on_torch if "/trained/rl_module/" in name]
    assert any("bias_hh_l0" in name for name in names)
    for name in names:
        if name.rpartition("rl_module/")[2] in WITHOUT_EFFECT:
            continue
        np.testing.assert_allclose(on_torch[name], on_tf[name], rtol=0, atol=1e-3 * RATE + 1e-6, err_msg=name)
        before = on_torch[name.replace("/trained/", "/taken/")]
        assert np.abs(on_torch[name] - before).max() > 1e-5, name
