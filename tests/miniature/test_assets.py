"""The weights that are shipped: complete, and of the codec that they were trained with."""

from __future__ import annotations

import numpy as np
import pytest

from affetto.codes.vocoder import NUM_CEPSTRA, VocoderCodec, analyse
from affetto.miniature.base import CODEBOOK_SIZE, NUM_CODEBOOKS
from affetto.miniature.corpus import general_lines, render
from affetto.model.base import MINIATURE, find_base


@pytest.fixture(scope="module")
def shipped() -> VocoderCodec:
    return VocoderCodec.load(find_base(MINIATURE))


def test_codec_fits_the_base(shipped: VocoderCodec) -> None:
    assert (shipped.num_codebooks, shipped.codebook_size) == (NUM_CODEBOOKS, CODEBOOK_SIZE)
    inner = shipped.basis_DP.T @ shipped.basis_DP
    np.testing.assert_allclose(inner, np.eye(len(inner)), atol=1e-5, err_msg="principal components are orthonormal")


def test_codec_keeps_pitch_and_voicing(shipped: VocoderCodec) -> None:
    errors, kept = [], []
    for line in general_lines(6, "general", "test"):
        features = analyse(render(line))
        coded = shipped.features(shipped.quantise(features))
        voiced, again = features[:, -1] > 0.5, coded[:, -1] > 0.5
        errors.append(np.median(np.abs(features - coded)[voiced & again, NUM_CEPSTRA]) * 12 / np.log(2))
        kept.append(np.mean(voiced == again))
    assert np.mean(errors) < 1.0, f"{np.mean(errors):.1f} semitones"
    assert np.mean(kept) > 0.85
