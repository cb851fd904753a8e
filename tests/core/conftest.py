"""Examples of hypothesis have no time limit: how long one takes is the machine's doing."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")
