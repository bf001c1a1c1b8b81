"""Eight virtual CPU devices, 64-bit types, strict promotion, and types and shapes checked at every call of the library.

Warnings are errors: pyproject.toml says so.
"""

import gc
import os
import tempfile
from contextlib import contextmanager
from importlib.metadata import version

# XLA of JAX 0.10 compiles a test in three quarters of the time by its older emitters, which later ones have not.
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
    + ["--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"]
    * version("jaxlib").startswith("0.10.")
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_TRACEBACK_FILTERING", "off")  # with the next line, a twentieth less time to trace
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "1")
if "PYTEST_XDIST_WORKER" not in os.environ:  # one cache of what took long to compile, for all workers of this run
    CACHE = tempfile.TemporaryDirectory(prefix="compiled")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax
import jaxtyping
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)  # compiles twice as fast; test_cost.py turns it off
jax.config.update("jax_numpy_dtype_promotion", "strict")
jaxtyping.install_import_hook("lstm_rot", "beartype.beartype")


def pytest_collection_finish():
    """What has been imported stays, and JAX makes many objects: to collect seldom saves a tenth of the time."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


@pytest.fixture
def optimized():
    """The compiler as users have it."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def untyped():
    """Without the checks of types and shapes, so that a wrong call reaches the library's own messages."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def settings_of_a_user():
    with user_settings():
        yield


@contextmanager
def user_settings():
    """JAX's own; for all threads, which a context would not reach."""
    theirs = {"jax_enable_x64": False, "jax_numpy_dtype_promotion": "standard"}
    ours = {name: getattr(jax.config, name) for name in theirs}
    for name, value in theirs.items():
        jax.config.update(name, value)
    yield
    for name, value in ours.items():
        jax.config.update(name, value)
