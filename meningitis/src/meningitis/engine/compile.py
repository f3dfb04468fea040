"""Generated kernels as real modules in the user's cache: numba caches compiled code beside them."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from meningitis.engine.codegen import LANES, generate
from meningitis.engine.system import System
from meningitis.files import write_atomically

FORMAT = 4
"""Number of the calling convention of `solve`; part of a kernel's name, beside its source."""


def cache_folder() -> Path:
    """The folder of generated kernels: $XDG_CACHE_HOME/meningitis/kernels, or ~/.cache/meningitis/kernels."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "meningitis" / "kernels"


@lru_cache(maxsize=256)
def kernel(system: System, lanes: int = LANES, *, parallel: bool = True) -> Callable[..., None]:
    """Return the compiled `solve` of a system, written to the cache the first time, which stderr then is told of.

    Compiled without `parallel` it starts no threads: a kernel of its own, made when it is first needed.
    """
    import numba
    from numba.core.registry import cpu_target

    source = generate(system, lanes, parallel=parallel)
    shared = Path(__file__).with_name("intrinsics.py").read_text(encoding="utf-8")
    processor = str(cpu_target.target_context.codegen().magic_tuple())
    key = "\n".join((str(FORMAT), source, shared, numba.__version__, processor))
    name = f"kernel_{hashlib.sha256(key.encode()).hexdigest()[:20]}"
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.py"
        if not path.exists():
            write_atomically(path, source)
    except OSError:  # a read-only home: the kernel lives for this process alone
        path = Path(tempfile.mkdtemp(prefix="meningitis-")) / f"{name}.py"
        write_atomically(path, source)
    solve: Callable[..., None] = _load(name, path).solve
    if not any(Path(solve.stats.cache_path).glob(f"{name}.solve-*.nbi")):  # type: ignore[attr-defined]
        print("meningitis: compiling a kernel for this model, once: 10 to 40 seconds", file=sys.stderr)
    return solve


def _load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded as a module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # numba finds a cached function's module by its name
    spec.loader.exec_module(module)
    return module
