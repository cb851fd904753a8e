"""Random networks between convolution and heads: Torch and Keras agree once the weights have moved, or say why not."""

from __future__ import annotations

import importlib
import json
import re
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Discrete

from learner_core import RLModuleSpec

from support.both import Arrays, in_both
from support.random_networks import NUM_ACTIONS, build, generate, values_of


def program(backend_name: str, arrays: Arrays, settings: dict[str, Any]) -> dict[str, Any]:
    backend_class = importlib.import_module(f"learner_core_{backend_name}.backend")
    backend = getattr(backend_class, {"torch": "TorchBackend", "tf": "TfBackend"}[backend_name])(device="cpu")
    results: dict[str, Any] = {}
    for seed in range(*settings["seeds"]):
        space, steps = generate(seed)
        spec = RLModuleSpec(
            module_class=build(backend_name, steps), observation_space=space, action_space=Discrete(NUM_ACTIONS)
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            module = spec.build(backend.xp, backend)
        fresh, buffers = module.init(np.random.default_rng(0)), module.init_buffers()
        values = values_of({**fresh, **buffers})
        obs = np.random.default_rng(seed).normal(size=(3, *space.shape)).astype(np.float32)
        outputs = module.forward_inference(backend.from_numpy(values), backend.from_numpy({"obs": obs}))
        said = [str(one.message) for one in caught if "is not portable" in str(one.message)]
        assert bool(said) == bool(module.not_portable), seed
        assert all(name in said[0] and reason in said[0] for name, reason in module.not_portable.items()), seed
        results[str(seed)] = {
            "outputs": backend.to_numpy(dict(outputs))["action_dist_inputs"],
            "not_portable": np.array(json.dumps(module.not_portable)),
            "not_proved": np.array(module.not_proved),
            "shapes": np.array(json.dumps({name: value.shape for name, value in sorted(values.items())})),
        }
        if backend_name == "tf":
            import keras

            keras.backend.clear_session()
    return results


def check(seeds: tuple[int, int]) -> Counter[str]:
    """Compare every one; how many agreed, how many were called not portable and why, and how many were not proved."""
    torch, tf = in_both(__file__, "program", settings={"seeds": list(seeds)}, timeout=6000)
    counts: Counter[str] = Counter()
    wrong = []
    for seed in range(*seeds):
        reasons = [json.loads(str(arrays[f"{seed}/not_portable"])) for arrays in (torch, tf)]
        if any(reasons):
            assert all(name and reason for each in reasons for name, reason in each.items())
            counts["not portable"] += 1
            reason = next(reason for each in reasons for reason in each.values())
            counts[f"  {re.sub(r' [(][^)]*[)]', '', reason)}"] += 1
            continue
        for backend_name, arrays in (("torch", torch), ("tf", tf)):
            counts[f"not proved in {backend_name}"] += bool(str(arrays[f"{seed}/not_proved"]))
        assert str(torch[f"{seed}/shapes"]) == str(tf[f"{seed}/shapes"]), seed
        one, other = torch[f"{seed}/outputs"], tf[f"{seed}/outputs"]
        if np.allclose(one, other, rtol=1e-5, atol=1e-5):
            counts["agree"] += 1
        else:
            wrong.append((seed, float(np.abs(one - other).max())))
    print(f"seeds {seeds[0]} to {seeds[1] - 1}:", dict(counts), "wrong:", wrong)
    assert not wrong, [(seed, off, [step.name for step in generate(seed)[1]]) for seed, off in wrong]
    return counts


def test_they_agree_or_are_called_not_portable() -> None:
    counts = check((0, 30))
    assert counts["agree"] >= 22 and counts["not portable"] >= 1, counts


@pytest.mark.slow
@pytest.mark.parametrize("block", range(8))
def test_they_agree_or_are_called_not_portable_two_thousand_times(block: int) -> None:
    counts = check((1000 + 250 * block, 1250 + 250 * block))
    assert counts["agree"] >= 190 and counts["not portable"] >= 10, counts
