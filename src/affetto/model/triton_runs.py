"""Whether Triton's kernels run here. Triton compiles them at the first call, for which it needs a C compiler."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch

from affetto.progress import say


@cache
def triton_runs() -> bool:
    """Whether a small kernel gives the right result on this GPU; if not, the reason is printed once."""
    if not torch.cuda.is_available() or find_spec("triton") is None:
        return False
    try:
        from affetto.model.fused_kernels import swiglu

        ones = torch.ones(8, device="cuda")
        is_right = torch.allclose(swiglu(ones, ones), torch.nn.functional.silu(ones))
    # Compilers, drivers and Triton raise errors of any type; the slower steps give the same results.
    except Exception as error:
        say(f"Triton's kernels don't run here, so speaking and training are slower: {error}", style="yellow")
        return False
    if not is_right:
        say("Triton's kernels give wrong results here, so they aren't used", style="yellow")
    return is_right
