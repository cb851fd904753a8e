"""What users of other libraries ask of an Algorithm is answered, and what Python asks of it works."""

from __future__ import annotations

from typing import Any

import pytest

from learner_core.config.foreign_table import ALGORITHM
from learner_core.errors import LearnerCoreError, UnknownNameError

from support.told import told


def test_an_attribute_is_answered(training_backend_name: str) -> None:
    with told("ppo", training_backend_name).build() as algo:
        for name, entry in ALGORITHM.items():
            assert not hasattr(algo, name), name
            with pytest.raises(UnknownNameError) as error:
                getattr(algo, name)
            assert str(error.value).endswith(f"{entry.library}: {name}; here: {entry.words}.")
            assert isinstance(error.value, LearnerCoreError) and isinstance(error.value, AttributeError)
        with pytest.raises(UnknownNameError, match="Did you mean 'train'"):
            algo.trian()
        with pytest.raises(AttributeError, match="no attribute '__len__'"):
            algo.__len__()
        assert getattr(algo, "learn", None) is None


def test_an_error_inside_a_property_is_its_own(training_backend_name: str) -> None:
    config = told("ppo", training_backend_name)
    kind: Any = config._class_of("algorithm_class", None)

    class Own(kind):
        @property
        def broken(self) -> Any:
            return [].nothing  # type: ignore[attr-defined]

    with Own(config.copy().freeze()) as algo, pytest.raises(AttributeError, match="'list' object has no attribute"):
        _ = algo.broken
