"""Noise: literal draws (they must never change), independence of rows, and that it is what it says it is."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from scipy import stats

from learner_core.errors import ConfigError
from learner_core.maths import noise

STREAM = 16588333632851254560
NORMALS = [[-2.573069988193549, -1.7709114295352004], [0.48961731572962053, 0.5229452772582078]]
UNIFORMS = [0.007609116373600622, 0.5959378674964118, 0.773678830304233]
PERMUTATION = [0, 5, 3, 4, 6, 1, 7, 2]


def philox(key: list[int], counter: list[int], rounds: int = 10) -> list[int]:
    """The block cipher from its paper, in Python integers."""
    word = (1 << 64) - 1
    c, k = list(counter), list(key)
    for _ in range(rounds):
        high_0, low_0 = divmod(0xD2E7470EE14C6C93 * c[0], 1 << 64)
        high_1, low_1 = divmod(0xCA5A826395121157 * c[2], 1 << 64)
        c = [high_1 ^ c[1] ^ k[0], low_1, high_0 ^ c[3] ^ k[1], low_0]
        k = [(k[0] + 0x9E3779B97F4A7C15) & word, (k[1] + 0xBB67AE8584CAA73B) & word]
    return c


def words(seed: int, step: int, stream: int, count: int) -> list[int]:
    """The stream by definition: blocks 1, 2, ... of the cipher."""
    key = [seed & ((1 << 64) - 1), seed >> 64]
    blocks = [philox(key, [block, 0, step, stream]) for block in range(1, count // 4 + 2)]
    return [word for block in blocks for word in block][:count]


def test_the_cipher_answers_its_paper() -> None:
    # Known answers published with the Random123 library.
    assert philox([0, 0], [0, 0, 0, 0])[0] == 0x16554D9ECA36314C
    assert philox([0x452821E638D01377, 0xBE5466CF34E90C6C], [0x243F6A8885A308D3, 0x13198A2E03707344,
                  0xA4093822299F31D0, 0x082EFA98EC4E6C89])[3] == 0x57BD43B5E52B7FE6  # fmt: skip


@pytest.mark.parametrize("seed", [0, 7, (1 << 128) - 1])
@pytest.mark.parametrize("step", [0, (1 << 64) - 1])
def test_words_follow_from_seed_step_and_stream(seed: int, step: int) -> None:
    # 23 and 9: the second draw must not see what the first left in the generator's buffer.
    for count in (23, 9):
        assert noise._raw(seed, step, 12345, count).tolist() == words(seed, step, 12345, count)


def test_normals_follow_from_words() -> None:
    got = noise.normals(3, 5, 8, rows=2, shape=(3,), dtype=np.float64)
    source = words(3, 5, 8, 8)
    for row in range(2):
        w = source[4 * row : 4 * row + 4]
        u_1 = [((x >> 11) + 1) / 2**53 for x in w[::2]]
        u_2 = [(x >> 11) / 2**53 for x in w[1::2]]
        radius = [math.sqrt(-2 * math.log(u)) for u in u_1]
        expected = [
            radius[0] * math.cos(2 * math.pi * u_2[0]),
            radius[0] * math.sin(2 * math.pi * u_2[0]),
            radius[1] * math.cos(2 * math.pi * u_2[1]),
        ]
        np.testing.assert_allclose(got[row], expected, rtol=1e-12, atol=1e-15)


def test_literal_draws_never_change() -> None:
    assert noise.stream_id("default_policy/actions") == STREAM
    np.testing.assert_allclose(noise.normals(1, 2, "a", 2, (2,), np.float64), NORMALS, rtol=1e-12)
    assert noise.uniforms(1, 2, "a", 3, dtype=np.float64).tolist() == UNIFORMS
    assert noise.permutation(1, 2, "a", 8).tolist() == PERMUTATION


@pytest.mark.parametrize("shape", [(), (1,), (2,), (5,), (2, 3)])
@pytest.mark.parametrize("draw", [noise.normals, noise.uniforms])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_row_does_not_depend_on_the_number_of_rows(draw, shape, dtype) -> None:
    many = draw(0, 1, 2, 50, shape, dtype)
    assert many.shape == (50, *shape)
    assert many.dtype == dtype
    assert many.flags.c_contiguous
    for rows in (0, 1, 7):
        np.testing.assert_array_equal(draw(0, 1, 2, rows, shape, dtype), many[:rows])


def test_float32_is_the_rounded_float64() -> None:
    np.testing.assert_array_equal(
        noise.normals(0, 0, 0, 1000, (4,)), noise.normals(0, 0, 0, 1000, (4,), np.float64).astype(np.float32)
    )


def test_seed_step_and_stream_all_matter() -> None:
    base = noise.normals(0, 0, 0, 4, (2,))
    for other in [(1, 0, 0), (1 << 64, 0, 0), (0, 1, 0), (0, 0, 1)]:
        assert not np.intersect1d(base, noise.normals(*other, 4, (2,))).size


def test_a_name_is_its_stream() -> None:
    np.testing.assert_array_equal(noise.normals(0, 0, "x", 4), noise.normals(0, 0, noise.stream_id("x"), 4))


def test_normals_are_normal() -> None:
    x = noise.normals(11, 0, "test", 50_000, (4,), np.float64)
    assert stats.kstest(x.ravel(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(np.concatenate([x, np.square(x)], axis=1).T) - np.eye(8)
    assert np.abs(correlation).max() < 0.02
    assert np.isfinite(x).all()


@pytest.mark.parametrize("word", [0, (1 << 64) - 1])
def test_the_rarest_words_give_finite_numbers(word: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "_raw", lambda seed, step, stream, count: np.full(count, word, np.uint64))
    for dtype in (np.float32, np.float64):
        assert np.isfinite(noise.normals(0, 0, 0, 2, (3,), dtype)).all()
        assert (noise.uniforms(0, 0, 0, 2, (3,), dtype) < 1).all()


def test_uniforms_are_uniform_and_below_one() -> None:
    x = noise.uniforms(11, 0, "test", 100_000)
    assert stats.kstest(x.astype(np.float64), "uniform").pvalue > 1e-3
    assert x.min() >= 0
    assert x.max() < 1


@pytest.mark.parametrize("n", [0, 1, 2, 3, 64, 65, 1000])
def test_permutation_holds_every_index(n: int) -> None:
    got = noise.permutation(0, 0, "p", n)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(np.sort(got), np.arange(n))


def test_every_order_is_as_likely() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for step in range(6000):
        order = tuple(noise.permutation(0, step, "p", 3).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_threads_do_not_disturb_each_other() -> None:
    expected = [noise.normals(0, step, 0, 64, (3,)) for step in range(200)]
    wrong: list[int] = []

    def draw() -> None:
        for step in range(200):
            if not np.array_equal(noise.normals(0, step, 0, 64, (3,)), expected[step]):
                wrong.append(step)

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("bad", [(-1, 0, 0, 1), (1 << 128, 0, 0, 1), (0, -1, 0, 1), (0, 1 << 64, 0, 1), (0, 0, -1, 1)])
def test_out_of_range_is_refused(bad: tuple[int, int, int, int]) -> None:
    with pytest.raises(ConfigError, match="must be in"):
        noise.normals(*bad)


def test_negative_rows_are_refused() -> None:
    for draw in (noise.normals, noise.uniforms, noise.permutation):
        with pytest.raises(ConfigError):
            draw(0, 0, 0, -1)
