"""Whether Triton's kernels run here. It compiles them when they are first called, for which it needs a C compiler."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch

from affetto.progress import say


@cache
def triton_runs() -> bool:
    """True where a small kernel gives what it should on this GPU; otherwise it is said once why not."""
    if not torch.cuda.is_available() or find_spec("triton") is None:
        return False
    try:
        from affetto.model.fused_kernels import swiglu

        ones = torch.ones(8, device="cuda")
        is_right = torch.allclose(swiglu(ones, ones), torch.nn.functional.silu(ones))
    # Compilers, drivers and Triton itself raise what they like; slower steps do the same.
    except Exception as error:
        say(f"Triton's kernels don't run here, so speaking and training are slower: {error}", style="yellow")
        return False
    if not is_right:
        say("Triton's kernels give wrong results here, so they aren't used", style="yellow")
    return is_right
