import numpy as np
import pytest
import torch

from fastcifar.data.hashing import hash32, mix32


def test_mix32_equals_lowbias32_in_plain_integers() -> None:
    def reference(x: int) -> int:
        x ^= x >> 16
        x = x * 0x7FEB352D % 2**32
        x ^= x >> 15
        x = x * 0x846CA68B % 2**32
        return x ^ (x >> 16)

    words = np.random.default_rng(0).integers(0, 2**32, 1000)
    assert mix32(words).tolist() == [reference(int(word)) for word in words]
    assert mix32(2**32 - 1) == reference(2**32 - 1) == 0x6768824A


def test_golden_values() -> None:
    assert hash32(5, 1, 2, 3) == 3219991028
    assert hash32(0) == 1468196708


def test_numpy_and_torch_agree() -> None:
    indices = np.arange(10_000)
    assert np.array_equal(hash32(indices, 7, 2**32 - 1), hash32(torch.from_numpy(indices), 7, 2**32 - 1).numpy())


def test_every_word_and_their_order_matter() -> None:
    indices = np.arange(1000)
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (0,), (0, 0, 0), (2, 1), (1, 2)]
    hashes = [hash32(indices, *key) for key in keys]
    for i, one in enumerate(hashes):
        for other in hashes[:i]:
            assert (one == other).mean() < 0.01


def test_bits_are_fair_and_independent_of_their_neighbours() -> None:
    hashes = hash32(np.arange(100_000), 3, 42, 0)
    bits = (hashes[:, None] >> np.arange(32)) & 1
    # The standard error of a share is 0.0016; a fair hash deviates by six of them in one case in millions.
    assert np.abs(bits.mean(0) - 0.5).max() < 0.0095
    flipped = (hashes[1:, None] ^ hashes[:-1, None]) >> np.arange(32) & 1
    assert np.abs(flipped.mean(0) - 0.5).max() < 0.0095


@pytest.mark.parametrize("word", [-1, 2**32])
def test_words_outside_32_bits_are_refused(word: int) -> None:
    with pytest.raises(ValueError, match=str(word)):
        hash32(0, word)
