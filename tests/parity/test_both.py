"""The helper itself: one function, two processes, arrays there and back."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from support.both import in_both, run_in


def double(backend_name: str, arrays: dict[str, np.ndarray], settings: dict[str, Any]) -> dict[str, Any]:
    name = {"torch": "torch", "tf": "tensorflow"}[backend_name]
    framework = __import__(name)
    x = np.asarray(framework.abs(framework.as_tensor(arrays["in/x"]) if name == "torch" else arrays["in/x"]))
    loaded = [float(other in sys.modules) for other in ("torch", "tensorflow")]
    return {"nested": {"x": x * settings["factor"]}, "loaded": loaded}


def broken(backend_name: str, arrays: dict[str, np.ndarray], settings: dict[str, Any]) -> dict[str, Any]:
    raise RuntimeError("on purpose")


def test_arrays_travel_there_and_back_and_frameworks_stay_apart() -> None:
    x = np.asarray([-1.5, 2.0], np.float64)
    torch, tf = in_both(__file__, "double", arrays={"in": {"x": x}}, settings={"factor": 2})
    np.testing.assert_array_equal(torch["nested/x"], [3.0, 4.0])
    np.testing.assert_array_equal(tf["nested/x"], [3.0, 4.0])
    assert torch["nested/x"].dtype == np.float64
    assert torch["loaded"].tolist() == [1.0, 0.0]
    assert tf["loaded"].tolist() == [0.0, 1.0]


def test_a_failure_in_the_child_fails_with_its_traceback() -> None:
    with pytest.raises(AssertionError, match="on purpose"):
        run_in("numpy", __file__, "broken")
