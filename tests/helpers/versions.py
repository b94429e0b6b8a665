"""What the installed versions differ by."""

from jaxlib.version import __version_info__

FUSION_EMITTERS = __version_info__ < (0, 12)
"""Whether XLA knows the option `xla_cpu_use_fusion_emitters`; one that does not ends the process over it."""
