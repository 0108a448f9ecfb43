from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize("engine", list(Engine))
def test_an_engine_that_is_installed_and_does_not_load_says_why(engine: Engine, tmp_path: Path) -> None:
    package = tmp_path / PACKAGES[engine]
    package.mkdir()
    (package / "__init__.py").write_text("raise OSError('libfast.so: wrong ELF class\\nmore')")
    done = subprocess.run(
        [sys.executable, "-m", "marram.runtime.loads", engine.value],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "is installed but does not load: libfast.so: wrong ELF class. Install it again: `pip" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
