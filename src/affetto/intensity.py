"""The recommended intensity of a trained adapter: the one that is as strong as its clips, not the one of least loss."""

from __future__ import annotations

from affetto.codes.prepare import Prepared
from affetto.config import EXPRESSIVE, Config
from affetto.files import read_json, write_json
from affetto.progress import say


def recommend_as_acted(config: Config, emotion: str, prepared: Prepared) -> None:
    """Match `emotion_models/<emotion>/best` to its clips (`evaluate.matching`) and write the result into its facts.

    `recommended_intensity` becomes the matched one, which joins the frontier, and `matching` records what was measured.
    If nothing could be measured it records why, and the loss's recommendation stands. Nothing is done for the
    expressive base, with a forgetting budget (where the largest intensity inside it is recommended), and with
    `matching_sentences: 0`.
    """
    if emotion == EXPRESSIVE or config.forgetting_budget is not None or not config.matching_sentences:
        return
    from accelerate import PartialState

    from affetto.evaluate.matching import match_clips
    from affetto.speak.voice import Voice
    from affetto.training.streams import held_out_rows
    from affetto.training.validation import Validation

    if not PartialState().is_main_process:
        return
    folder = config.model_of(emotion) / "best"
    voice = Voice.of_run(config.base, config.base_precision)
    voice.load_adapter(emotion, folder)
    match = match_clips(config, emotion, prepared, folder, voice)
    facts = read_json(folder / "affetto.json")
    facts["matching"] = match.document()
    if match.intensity is None:
        say(f"{emotion} is recommended at intensity {facts['recommended_intensity']:g}, by its loss: {match.reason}")
    else:
        assert voice.bank is not None
        gate = tuple(voice.bank.gate({emotion: 1.0}).tolist())
        look = Validation(voice.base, *held_out_rows(config, emotion, prepared, voice.base, gate))
        values = look(match.intensity)
        point = {
            "intensity": match.intensity, "kl": values["general_kl"], "emotion_nll": values["emotion_nll"],
        }  # fmt: skip
        others = [other for other in facts["frontier"] if other["intensity"] != match.intensity]
        facts["frontier"] = sorted([*others, point], key=lambda each: float(each["intensity"]))
        facts["recommended_intensity"] = match.intensity
        say(f"{emotion} is as strong as its clips at intensity {match.intensity:g}")
    write_json(folder / "affetto.json", facts)
