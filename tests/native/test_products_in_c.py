"""The products that affetto's C is made of, of every shape that takes another road, against float64."""

from __future__ import annotations

import ctypes
import subprocess
from ctypes import c_int64, c_void_p
from pathlib import Path

import numpy as np
import pytest

from affetto.native import compiler

SOURCE = """
#include "products.h"
void both(int64_t m, int64_t n, int64_t out, const float *x, int64_t xs, int64_t xi, const float *w, int64_t ws,
          float *y, int64_t ys, int64_t is_added) {
    if (xi == 1) multiply(m, n, out, x, xs, w, ws, y, ys, (int)is_added);
    else multiply_by(m, n, out, x, xs, xi, w, ws, y, ys, (int)is_added);
}
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The header's functions, in a library of their own."""
    if compiler.library("layers") is None:
        pytest.skip("no C compiler is here")
    folder = tmp_path_factory.mktemp("products")
    (folder / "both.c").write_text(SOURCE, encoding="utf-8")
    made = folder / "both.so"
    command = ["cc", *compiler.FLAGS, f"-I{compiler.FOLDER}", str(folder / "both.c"), "-o", str(made), "-lm"]
    subprocess.run(command, check=True, capture_output=True)
    return ctypes.CDLL(str(made))


@pytest.mark.parametrize("is_turned", [False, True])
@pytest.mark.parametrize("is_added", [False, True])
@pytest.mark.parametrize("num", [0, 1, 3, 127, 128, 300])
def test_every_shape(both: ctypes.CDLL, num: int, is_added: bool, is_turned: bool) -> None:
    """Rows and columns that fill tiles and vectors, and that don't; nothing beside the result is touched."""
    rng = np.random.default_rng(num)
    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 23):
        for out in (1, 3, 7, 8, 9, 15, 16, 17, 33, 48, 67, 129, 259):
            x = rng.standard_normal((rows, num)).astype(np.float32)
            lying = np.ascontiguousarray(x.T if is_turned else x)
            w = rng.standard_normal((num, out + 2)).astype(np.float32)
            y = rng.standard_normal((rows, out + 3)).astype(np.float32)
            wanted = x.astype(np.float64) @ w[:, :out] + (y[:, :out] if is_added else 0)
            beside = y[:, out:].copy()
            steps = (1, rows) if is_turned else (num, 1)
            both.both(
                *map(c_int64, (rows, num, out)), _at(lying), *map(c_int64, steps), _at(w), c_int64(out + 2), _at(y),
                c_int64(out + 3), c_int64(is_added),
            )  # fmt: skip
            np.testing.assert_allclose(y[:, :out], wanted, rtol=1e-4, atol=1e-5 * (1 + num**0.5))
            np.testing.assert_array_equal(y[:, out:], beside)


@pytest.mark.parametrize("num", [1, 127, 300])
def test_a_row_comes_out_the_same_to_the_last_bit_whatever_rows_it_goes_with(both: ctypes.CDLL, num: int) -> None:
    """And whatever columns: what a sentence becomes doesn't depend on what else is said."""
    rng = np.random.default_rng(num)
    x = rng.standard_normal((23, num)).astype(np.float32)
    w = rng.standard_normal((num, 259)).astype(np.float32)

    def product(first: int, rows: int, out: int) -> np.ndarray:
        y = np.ones((rows, out), np.float32)
        both.both(
            *map(c_int64, (rows, num, out)), _at(x[first:]), c_int64(num), c_int64(1), _at(w), c_int64(259), _at(y),
            c_int64(out), c_int64(1),
        )  # fmt: skip
        return y

    whole = product(0, 23, 259)
    for rows in range(1, 23):
        for out in (1, 7, 8, 16, 17, 48, 67, 129, 192, 259):
            first = 23 - rows
            np.testing.assert_array_equal(product(first, rows, out), whole[first:, :out])


def _at(array: np.ndarray) -> c_void_p:
    return c_void_p(array.ctypes.data)


def test_every_source_is_in_the_folder() -> None:
    assert {path.name for path in Path(compiler.FOLDER).glob("*.[ch]")} >= {"products.h", "frames.c", "layers.c"}
