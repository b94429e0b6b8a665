"""Four host devices for all tests (what runs on one takes the first), and one cache of compiled programs."""

import atexit
import os
import shutil
import tempfile

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
# Many tests train the same small network; what one has compiled the others load, subprocesses too.
CACHE = tempfile.mkdtemp(prefix="purinet-tests-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
