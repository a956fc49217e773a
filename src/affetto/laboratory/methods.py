"""The methods that the ablation compares, each as changes to the configuration.

Each sets every preservation key, so that none depends on the defaults but `all`, which is the defaults. EWC's weights
are the guide's `ewc_lambda`; the run says what they are in natural units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from affetto.preserve.curvature import CONTROLS, CURVATURES

PLAIN_LORA: dict[str, Any] = {
    "ewc_lambda": 0.0,
    "distillation_alpha": 0.0,
    "distill_on": "rehearsal",
    "temperature": 1.0,
    "replay_ratio": 0.0,
    "forgetting_budget": None,
}
"""Settings under which nothing is preserved."""
PLAIN = "plain"
"""The method that all others are compared with."""
EWC_LAMBDAS = (3e3, 3e4)


@dataclass(frozen=True)
class Method:
    """One way to train an adapter."""

    title: str
    changes: Mapping[str, Any]
    group: str
    """Methods of a group share a colour in the picture."""
    family: str = ""
    """Methods that differ in one weight only; the picture shows a family's best. Empty for a method without others."""


def _ewc(name: str, ewc_lambda: float) -> Method:
    changes = {**PLAIN_LORA, "ewc_curvature": name, "ewc_lambda": ewc_lambda}
    if name in CONTROLS:
        kinds = {"factors": "A and B", "factors_batch": "A and B, Avalanche's recipe"}
        changes["fisher_kind"] = "empirical" if name == "factors_batch" else "true"
        return Method(f"EWC on {kinds[name]}, {ewc_lambda:g}", changes, "EWC on A and B", f"EWC on {kinds[name]}")
    return Method(f"EWC {name}, {ewc_lambda:g}", changes | {"fisher_kind": "true"}, "EWC on ΔW", f"EWC {name}")


METHODS: dict[str, Method] = {
    PLAIN: Method("plain LoRA", PLAIN_LORA, "plain"),
    "rate_third": Method("plain, a third of the rate", {**PLAIN_LORA, "learning_rate": 2e-3}, "plain"),
    "rate_tenth": Method("plain, a tenth of the rate", {**PLAIN_LORA, "learning_rate": 6e-4}, "plain"),
    "decay": Method("plain, weight decay 0.1", {**PLAIN_LORA, "weight_decay": 0.1}, "plain"),
    "dropout": Method("plain, LoRA dropout 0.1", {**PLAIN_LORA, "adapter_dropout": 0.1}, "plain"),
    "replay_ce": Method("replay, cross-entropy", {**PLAIN_LORA, "replay_ratio": 0.5}, "replay"),
    "replay_kl": Method(
        "replay, KL to the base", {**PLAIN_LORA, "replay_ratio": 0.5, "distillation_alpha": 1.0}, "replay"
    ),
    "distil_emotion": Method(
        "distillation on the emotion's clips",
        {**PLAIN_LORA, "distillation_alpha": 0.5, "distill_on": "emotion"},
        "distillation",
    ),
    **{
        f"ewc_{name}_{ewc_lambda:g}": _ewc(name, ewc_lambda)
        for name in (*CURVATURES, *CONTROLS)
        for ewc_lambda in EWC_LAMBDAS
    },
    "all": Method("all together (the defaults)", {}, "all"),
    **{
        f"all_{ewc_lambda}": Method(f"all together, EWC kfac, {ewc_lambda}", {"ewc_lambda": float(ewc_lambda)}, "all")
        for ewc_lambda in (1000, 2000)
    },
    **{
        f"all_{name}": Method(f"all together, EWC {name}, 2000", {"ewc_curvature": name, "ewc_lambda": 2000.0}, "all")
        for name in ("diagonal", "rank1", "sketch", "full")
    },
    "half_alpha": Method("all together, distillation_alpha 0.5", {"distillation_alpha": 0.5}, "all"),
    "guide": Method("the guide's rate and alpha", {"learning_rate": 1e-5, "distillation_alpha": 0.5}, "all"),
    "all_budget": Method("all together, budget of 0.03", {"forgetting_budget": 0.03}, "all"),
    "all_tight_budget": Method("all together, budget of 0.01", {"forgetting_budget": 0.01}, "all"),
}
"""By the name that `affetto ablate --method` takes."""
