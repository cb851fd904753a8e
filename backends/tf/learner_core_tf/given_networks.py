"""What Keras computes with: networks of its own and ``.keras`` files need it on TensorFlow here.

Needs nothing but Python; Keras is asked before it is imported, because its choice is made then and for good.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from learner_core.errors import ConfigError

__all__ = ["refuse_other_backends"]

_WANTED = "tensorflow"


def refuse_other_backends(what: str) -> None:
    """Refuse to use Keras where it would compute with another framework.

    Args:
        what: what it is needed for: "to='keras'".

    Raises:
        ConfigError: says what Keras would run on, who said so, and what to do.
    """
    loaded = sys.modules.get("keras")
    if loaded is not None and hasattr(loaded, "backend"):
        chosen, source = loaded.backend.backend(), "as it was imported"
    elif "KERAS_BACKEND" in os.environ:
        chosen, source = os.environ["KERAS_BACKEND"], "KERAS_BACKEND says so"
    else:
        file = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "keras.json"
        chosen, source = _configured(file), f"{file} says so"
    if chosen not in ("", _WANTED):
        raise ConfigError(
            f"{what} needs Keras on TensorFlow, and here it runs on {chosen!r} ({source}): set "
            "KERAS_BACKEND=tensorflow before Python starts"
        )


def _configured(file: Path) -> str:
    """The backend that Keras' settings name; "" where they name none, or cannot be read: Keras says that itself."""
    try:
        settings = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return ""
    chosen = settings.get("backend") if isinstance(settings, dict) else None
    return chosen if isinstance(chosen, str) else ""
