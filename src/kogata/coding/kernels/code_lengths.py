"""Package-merge (Larmore and Hirschberg, 1990): optimal lengths of prefix codes under a limit.

Small planes have as many symbols as elements, so building the code takes longer than writing it.
"""

# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportReturnType=false
# Numba has no type stubs and its scalars are no ints to a type checker; the annotations are for readers and callers.

import numpy as np
from numpy.typing import NDArray

from kogata.system.compiled import cached_njit


@cached_njit()
def package_merge(coins: NDArray[np.int64], limit: int) -> NDArray[np.uint8]:
    """Code lengths of at least two symbols, given their counts in ascending order; at most 2**``limit`` symbols.

    Denominations go from the smallest up: the coins of each are merged with packages of two items of the one before.
    """
    n = len(coins)
    are_coins = np.zeros((limit, 2 * n), np.bool_)  # for each denomination: which of the sorted items are coins
    packages = np.empty(n, np.int64)
    items = np.empty(2 * n, np.int64)
    n_packages = 0
    for level in range(limit):
        coin, package = 0, 0
        for i in range(n + n_packages):
            # a coin goes before a package of the same weight
            is_coin = coin < n and (package == n_packages or coins[coin] <= packages[package])
            are_coins[level, i] = is_coin
            if is_coin:
                items[i] = coins[coin]
                coin += 1
            else:
                items[i] = packages[package]
                package += 1
        n_packages = (n + n_packages) // 2
        for i in range(n_packages):
            packages[i] = items[2 * i] + items[2 * i + 1]
    lengths = np.zeros(n, np.uint8)
    bought = 2 * n - 2
    for level in range(limit - 1, -1, -1):
        n_coins = 0
        for i in range(bought):
            n_coins += are_coins[level, i]
        lengths[:n_coins] += np.uint8(1)
        bought = 2 * (bought - n_coins)
    return lengths
