"""Compiles the train step for an NVIDIA GPU on a machine without one; prints JSON.

    pip install 'jax[cuda13]'
    python benchmarks/compile_for_cuda.py --backbone resnet50 --channels 128 --batch 4 > compile.json

It shows whether XLA's GPU backend compiles the step, the kernels that a step launches, and its memory. On a GPU
compiling takes longer, because XLA also times several forms of most kernels.
"""

import argparse
import json
import os
import re
from collections import Counter

os.environ["JAX_PLATFORMS"] = "cpu"  # JAX's plugin for CUDA then does not ask for a driver

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from purinet_jax.benchmarks.machine import chosen_network, heading, say, timings
from purinet_jax.benchmarks.network import lower_train_step
from purinet_jax.network.cpu.platform import for_all_platforms

# An NVIDIA H100, as in XLA's own `h100_sxm.txtpb`.
TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", help="of the released decoder (default: the network context)")
    parser.add_argument("--channels", type=int, help="width of that decoder (default 128)")
    parser.add_argument("--batch", type=int, default=4, help="images in the step (default 4)")
    parser.add_argument("--size", type=int, default=320, help="side of the images, pixels (default 320)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    arguments = parser.parse_args()
    model = chosen_network(arguments.backbone, arguments.channels).build(dtype=jnp.dtype(arguments.dtype))
    jax.devices()  # registers the plugin
    h100 = topologies.get_topology_desc("h100", "cuda", topology="1x1x1", target_config=TARGET)
    device = jax.sharding.SingleDeviceSharding(h100.devices[0])

    say("lowering")
    with for_all_platforms():
        lowered = lower_train_step(model, arguments.batch, arguments.size, device)
    say("compiling")
    programs: list[jax.stages.Compiled] = []
    (seconds,), (processor_seconds,) = timings(lambda: programs.append(lowered.compile()), 1)
    result = {
        "compile_s": round(seconds, 1),
        "compile_cpu_s": round(processor_seconds, 1),
        "kernels": kernels(programs[0].as_text()),
        "temporary_mib": programs[0].memory_analysis().temp_size_in_bytes // 2**20,
    }
    print(json.dumps(heading(vars(arguments)) | result, indent=2))


def kernels(program: str) -> dict[str, int]:
    """Counts what the entry of a compiled program launches: fusions by kind, and calls of libraries by name."""
    entry = program[program.index("\nENTRY") :]
    kinds = re.findall(r' fusion\(.*kind=k(\w+)|custom_call_target="([^"]+)"', entry)
    return dict(Counter(fusion or call for fusion, call in kinds).most_common())


if __name__ == "__main__":
    main()
