"""The ideal code length of a symbol."""

import math

from glc.codec.entropy.tables import Table


def code_length(table: Table, symbol: int) -> float:
    """Return a symbol's code length: of its frequency, or of the escape with sign, length and excess."""
    if table.low <= symbol <= table.high:
        return 24 - math.log2(table.frequencies[symbol - table.low])
    excess = table.low - symbol if symbol < table.low else symbol - table.high
    return 24 - math.log2(table.frequencies[-1]) + 1 + 4 + excess.bit_length() - 1
