from __future__ import annotations

import subprocess
import sys

import pytest

from marram.runtime.engines import PLUGINS
from marram.runtime.installed import PACKAGES, installed
from marram.schema.model import Engine


@pytest.mark.parametrize("engine", list(Engine))
def test_it_says_what_the_plug_in_finds(engine: Engine) -> None:
    present = any(row.present for row in PLUGINS[engine].describe())
    assert installed(engine) is present


@pytest.mark.parametrize("engine", list(Engine))
def test_without_its_package_an_engine_is_not_installed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PACKAGES[engine], None)
    assert not installed(engine)


def test_asking_imports_no_engine() -> None:
    program = (
        "import sys; from marram.runtime.installed import PACKAGES, installed; from marram.schema.model import Engine; "
        "[installed(e) for e in Engine]; print([p for p in (*PACKAGES.values(), 'numpy') if p in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
