"""Units of measurement a final answer may carry, with factors to a base unit, so that 1 m meets 100 cm."""

from __future__ import annotations

from fractions import Fraction as F

# dimension -> {name: factor}; the first-named unit is the base.  Currency has no conversion but cents.
_TABLE: dict[str, dict[str, F]] = {
    "length": {
        "m": F(1), "meter": F(1), "metre": F(1), "cm": F(1, 100), "centimeter": F(1, 100),
        "centimetre": F(1, 100), "mm": F(1, 1000), "millimeter": F(1, 1000), "millimetre": F(1, 1000),
        "dm": F(1, 10), "km": F(1000), "kilometer": F(1000), "kilometre": F(1000), "µm": F(1, 10**6),
        "nm": F(1, 10**9), "inch": F(254, 10000), "inche": F(254, 10000), "foot": F(3048, 10000),
        "feet": F(3048, 10000), "ft": F(3048, 10000), "yard": F(9144, 10000), "yd": F(9144, 10000),
        "mile": F(1609344, 1000), "mi": F(1609344, 1000),
    },
    "mass": {
        "kg": F(1), "kilogram": F(1), "g": F(1, 1000), "gram": F(1, 1000), "mg": F(1, 10**6),
        "milligram": F(1, 10**6), "tonne": F(1000), "pound": F(45359237, 10**8), "lb": F(45359237, 10**8),
        "ounce": F(45359237, 16 * 10**8), "oz": F(45359237, 16 * 10**8),
    },
    "time": {
        "s": F(1), "sec": F(1), "second": F(1), "ms": F(1, 1000), "min": F(60), "minute": F(60), "h": F(3600),
        "hr": F(3600), "hour": F(3600), "day": F(86400), "week": F(604800), "month": F(2629746),
        "year": F(31556952), "yr": F(31556952),
    },
    "volume": {
        "liter": F(1, 1000), "litre": F(1, 1000), "l": F(1, 1000), "L": F(1, 1000), "ml": F(1, 10**6),
        "mL": F(1, 10**6), "milliliter": F(1, 10**6), "millilitre": F(1, 10**6),
        "gallon": F(3785411784, 10**12), "quart": F(946352946, 10**12), "pint": F(473176473, 10**12),
        "cup": F(2365882365, 10**13),
    },
    "money": {"dollar": F(1), "USD": F(1), "usd": F(1), "buck": F(1), "cent": F(1, 100), "¢": F(1, 100)},
    "euro": {"euro": F(1), "EUR": F(1), "eur": F(1), "€": F(1)},
    "sterling": {"£": F(1), "GBP": F(1), "gbp": F(1)},
    "rupee": {"₹": F(1), "rupee": F(1), "Rs": F(1)},
    "yuan": {"yuan": F(1), "¥": F(1), "CNY": F(1), "RMB": F(1)},
    "force": {"newton": F(1), "N": F(1)},
    "energy": {"joule": F(1), "J": F(1), "kJ": F(1000)},
    "power": {"watt": F(1), "W": F(1), "kW": F(1000)},
    "voltage": {"volt": F(1), "V": F(1)},
    "current": {"ampere": F(1), "amp": F(1)},
    "speed": {"mph": F(1609344, 3600000), "kph": F(1000, 3600)},
    "celsius": {"celsius": F(1)},
    "fahrenheit": {"fahrenheit": F(1)},
    "radian": {"radian": F(1), "rad": F(1)},
}  # fmt: skip

_COMPOUND = {"volume": (("length", 3),), "speed": (("length", 1), ("time", -1))}
_UNITS: dict[str, tuple[str, F]] = {
    name: (dimension, factor) for dimension, names in _TABLE.items() for name, factor in names.items()
}
# Shorter names than these are read as units only inside \text{…} or \mathrm{…}: in a formula `5m` is 5 times
# m.
_SHORT_PLAIN = {"cm", "mm", "km", "kg", "mg", "ml", "mL", "ft", "lb", "lbs", "oz", "hr", "hrs", "yd", "mi"}
# Single letters that are read as units beside a number when the gold has no letters at all.
LETTER_UNITS = {"m", "s", "h", "g", "L", "N", "J", "W", "V"}
COUNT_WORDS = {"unit", "units", "square", "cubic", "sq", "cu", "per"}


def singular(word: str) -> str:
    if word in _UNITS:
        return word
    lowered = word.lower().rstrip(".")
    for form in (lowered, lowered.removesuffix("s"), lowered.removesuffix("es")):
        if form in _UNITS:
            return form
    return word


def is_unit(word: str, in_text: bool) -> bool:
    """Whether `word` names a known unit; outside text only names that cannot be a product of variables."""
    if in_text:
        return singular(word) in _UNITS
    return word in _SHORT_PLAIN or (len(word) > 2 and singular(word) in _UNITS)


def unit_of(word: str) -> tuple[dict[str, int], F] | None:
    """Dimensions and factor of a known unit."""
    found = _UNITS.get(singular(word))
    if found is None:
        return None
    dimension, factor = found
    return dict(_COMPOUND.get(dimension, ((dimension, 1),))), factor
