"""The adapter's model card: `README.md` and `samples/` beside its weights, so that the folder can be shared alone."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from affetto.errors import counted
from affetto.evaluate.results import FileRow, Results
from affetto.files import make_writable, write_text
from affetto.folders import replace_folder
from affetto.progress import say
from affetto.report.tables import markdown_table

_NUM_SAMPLES = 3


def write_adapter_card(folder: Path, facts: Mapping[str, Any], results: Results, output_dir: Path) -> None:
    """Write `folder/README.md` and copy the first sentences of base and adapter to `folder/samples/`.

    Missing sounds are reported, in the card too. If all are missing, `samples/` stays as it was. DataError if `folder`
    can't be written to.
    """
    make_writable(folder)
    temporary = Path(tempfile.mkdtemp(prefix=".samples.", dir=folder))
    try:
        lines = _copy_samples(temporary, str(facts["emotion"]), results, output_dir)
        if any(temporary.iterdir()):
            temporary.chmod(0o755)
            replace_folder(temporary, folder / "samples")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    write_text(folder / "README.md", _card(facts, results, "\n".join(lines)))


def _copy_samples(samples: Path, emotion: str, results: Results, output_dir: Path) -> list[str]:
    """Copy the sentences' sounds to `samples`; returns the card's lines about them."""
    rows = {system["name"]: _emotional(system["files"]) for system in results["systems"] if system["role"] != "real"}
    lines = []
    for number, row in enumerate(rows[emotion][:_NUM_SAMPLES]):
        missing = []
        for name in ("base", emotion):
            twins = (other for other in rows[name] if (other["text"], other["seed"]) == (row["text"], row["seed"]))
            file = next((twin["file"] for twin in twins), None)
            if file is not None and (output_dir / file).is_file():
                shutil.copyfile(output_dir / file, samples / f"{number}_{name}.wav")
            else:
                missing.append(file or f"{name}'s sound")
        lines.append(f"{number}. “{row['text']}” (speaker {row['speaker']}, seed {row['seed']})")
        if missing:
            lines[-1] += f"; {' and '.join(missing)} wasn't there when this page was written"
            say(f"there is no {' and no '.join(missing)} for the adapter's samples/", style="yellow")
    return lines


def _emotional(rows: list[FileRow]) -> list[FileRow]:
    return [row for row in rows if row["prompt"] == "emotional"]


def _strengths(results: Results) -> str:
    """A line with the recall at each intensity; empty if none was measured."""
    recalls = [
        f"{item['metrics']['recall']['value']:.0%} at {item['intensity']:g}"
        for item in results.get("strengths", [])
        if item["metrics"]["recall"]["value"] is not None
    ]
    return f"Heard as {results['emotion']} by intensity: {', '.join(recalls)}.\n\n" if recalls else ""


_LORA = "PEFT loads it without affetto, too: `PeftModel.from_pretrained(base, THIS_FOLDER)`."
_CHECKPOINT = "transformers loads it as it loads the base, and affetto's `--base THIS_FOLDER` takes it as a base."


def _card(facts: Mapping[str, Any], results: Results, samples: str) -> str:
    emotion, base, data, settings = facts["emotion"], facts["base"], facts["data"], facts["configuration"]
    general = "general clips that the base spoke itself," if data.get("general") == "self" else "general clips"
    is_lora = settings.get("use_adapters", True)
    kind, loads = ("a LoRA adapter", _LORA) if is_lora else ("a fully fine-tuned checkpoint", _CHECKPOINT)
    epochs = counted(settings["num_epochs"], "epoch")
    rank = f"Rank {settings['adapter_r']}" if is_lora else "Every weight of the target layers"
    return f"""---
base_model: {base["id"]}
library_name: {"peft" if is_lora else "transformers"}
tags: [{"lora, " if is_lora else ""}text-to-speech, emotion, {emotion}]
---

# {emotion}: {kind} made by affetto

It makes `{base["id"]}` speak {emotion} when the prompt is wrapped as `{facts["prompt_template"]}`, at the
recommended intensity {facts["recommended_intensity"]:g} (1 is how it was trained).

    affetto speak "I found the silver key" --emotion {emotion} --out key.wav

{loads}

## Measured

{markdown_table([results])}

{_strengths(results)}## Trained on

{counted(data["emotional_clips"], f"{emotion} clip")}; {data["rehearsed_clips"]} {general} rehearsed and distilled,
{data["fisher_clips"]} for the Fisher. {rank}, learning rate {settings["learning_rate"]:g},
{epochs}, `ewc_lambda` {settings["ewc_lambda"]:g} ({facts["ewc_natural_weight"]:.3g} in natural
units), `distillation_alpha` {settings["distillation_alpha"]:g}, `replay_ratio` {settings["replay_ratio"]:g}.
{texts_by_machine(data)}{by_intensity(data)}Command: `{facts["command"]}`.

Base weights {base["hash"][:16]}…; everything else is in `affetto.json`.

## Samples

Base and adapter, same words, same voice, same seed (`samples/NUMBER_NAME.wav`):

{samples}
"""


def by_intensity(data: Mapping[str, Any]) -> str:
    """A line about clips that are acted at less than full intensity; empty if there are none."""
    intensities = data.get("intensities") or {}
    if not set(intensities) - {"1"}:
        return ""
    counts = ", ".join(f"{counted(count, 'clip')} at {intensity}" for intensity, count in intensities.items())
    return f"By intensity of the acting, which was their gate in training: {counts}.\n"


def texts_by_machine(data: Mapping[str, Any]) -> str:
    """A line about texts that a model wrote; empty if people wrote them all, or if that isn't known."""
    texts = data.get("machine_texts") or {"by_model": {}}
    if not texts["by_model"]:
        return ""
    counts = f"{texts['emotional_clips']} of the emotional clips and {texts['rehearsed_clips']} of the general ones"
    return f"The texts of {counts} were transcribed by {', '.join(texts['by_model'])}, not by people.\n"
