"""A counter-based hash: the same 32 random bits for the same words, on any device, in any order.

Every function accepts numpy and torch int64 arrays alike, because it uses operators only. A 32-bit word lives in
an int64; it is masked after every operation and every multiplier's magnitude is below 2**31, so no product
overflows and every shift is logical on every backend.
"""

from typing import Any

_MASK = 0xFFFFFFFF
# lowbias32's multipliers (Chris Wellons, hash-prospector). The second is 0x846ca68b - 2**32: the same modulo 2**32.
_M1, _M2 = 0x7FEB352D, 0x846CA68B - (1 << 32)


def mix32(x: Any) -> Any:
    """Permute 32-bit words with lowbias32.

    Args:
        x: a Python int, or an int64 numpy array or torch tensor, with values in [0, 2**32).

    Returns:
        Values of the same type and shape in [0, 2**32).
    """
    x = x ^ (x >> 16)
    x = (x * _M1) & _MASK
    x = x ^ (x >> 15)
    x = (x * _M2) & _MASK
    return x ^ (x >> 16)


def hash32(indices: Any, *words: int) -> Any:
    """Hash every index with the key `words`.

    Args:
        indices: int64 numpy array or torch tensor with values in [0, 2**32).
        words: the key, for example `(stream, seed, epoch)`, each in [0, 2**32).

    Returns:
        32 random bits for every index, an int64 array of the same shape.

    Raises:
        ValueError: a word is outside [0, 2**32).
    """
    k1, k2 = 0x9E3779B9, 0x7F4A7C15  # halves of 2**64 / golden ratio; any two unequal values would do
    for word in words:
        if not 0 <= word <= _MASK:
            raise ValueError(f"a hash word must be in [0, 2**32), not {word}")
        k1 = mix32(k1 ^ word)
        k2 = mix32((k2 + k1) & _MASK)
    return mix32((mix32(indices ^ k1) + k2) & _MASK)
