"""Every example of docs/api-page.md runs on this backend, in the page's order and in one process."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[3] / "docs" / "api-page.md"
_RAW = {"learner_core_torch": "torch", "learner_core_tf": "tf"}


def _examples(backend: str) -> list[str]:
    """The page's Python blocks: neutral ones name this backend instead, raw ones of other frameworks are left out."""
    out = []
    for code in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S):
        owners = [owner for package, owner in _RAW.items() if package in code]
        if not owners:
            out.append(re.sub(r'framework\("\w+"', f'framework("{backend}"', code))
        elif owners == [backend]:
            out.append(code)
    return out


def test_every_example_runs(training_backend_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = _examples(training_backend_name)
    assert len(examples) >= 10
    names: dict[str, Any] = {"__name__": "api_page"}
    for number, code in enumerate(examples, 1):
        try:
            exec(compile(code, f"{PAGE.name}, example {number}", "exec"), names)
        except Exception as error:
            error.add_note(f"in this example of {PAGE.name}:\n{code}")
            raise
    assert names["bc"].config.framework_name == training_backend_name
