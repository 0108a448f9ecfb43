"""What every test may use: the data folder beside the checkout (skipping, saying so, where absent) and a clean home."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """`../shared/data`: real models, photos, video, series, link traces."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the data folder {SHARED}, which is absent here")
    return SHARED


@pytest.fixture(autouse=True)
def marram_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for every test: nothing is read from or written to the user's."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("MARRAM_HOME", str(home))
    return home
