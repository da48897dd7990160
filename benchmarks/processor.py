"""The name of the processor and the version of torch, for every figure of speed."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path


def name() -> str:
    """The processor's name from the system; on Linux with its instructions for bf16 products, if any."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in found.get("flags", "").split()]
    return ", ".join([found.get("model name") or platform.processor() or platform.machine(), *flags])


def described(threads: int) -> str:
    """The line above a table: processor, torch, threads, and the load of the machine."""
    return f"{name()}, torch {version('torch')}, {threads} thread{'s'[: threads > 1]}, load {os.getloadavg()[0]:.1f}"
