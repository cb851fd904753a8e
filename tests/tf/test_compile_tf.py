"""TensorFlow warns of "retracing": not for another learner of the same process, but for one traced again and again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tensorflow as tf

from learner_core_tf.compile import CompiledLoop, traced


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What TensorFlow logs meanwhile."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    tf.get_logger().addHandler(handler)
    yield lines
    tf.get_logger().removeHandler(handler)


def _doubling() -> Callable[[Any], Any]:
    return lambda x: 2 * x


def test_many_learners_in_one_process_are_no_retracing(said: list[str]) -> None:
    def body(step: Any, carry: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
        return {"x": carry["x"] + inputs["y"]}

    example = {"x": tf.zeros(2)}, {"y": tf.ones(2)}
    loops = [CompiledLoop(body, example, device="/CPU:0", xla=False) for _ in range(7)]
    acting = [traced(_doubling()) for _ in range(7)]
    for loop, act in zip(loops, acting, strict=True):
        assert loop(*example, 0, 3)["x"].numpy().tolist() == [3.0, 3.0]
        assert loop.num_traces == 1
        assert act(tf.ones(2)).numpy().tolist() == [2.0, 2.0]
    assert said == []


def test_a_function_that_is_traced_again_and_again_is_warned_of(said: list[str]) -> None:
    act = traced(_doubling())
    for rows in range(1, 8):
        act(tf.ones(rows))
    assert any("retracing" in line for line in said)
