"""Results that stay in their file as long as what they were measured with stays the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def kept_results(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, and as "rows" those of a file that were measured with the same; none if there are none."""
    before = json.loads(path.read_text()) if path.exists() else {}
    same = {key: before.get(key) for key in settings} == dict(settings)
    return {**settings, "rows": before["rows"] if same else []}
