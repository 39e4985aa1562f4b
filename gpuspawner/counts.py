"""The type of traits that have a whole number for each of some names."""

from __future__ import annotations

from typing import Any

from traitlets import Dict, TraitError


class Counts(Dict):
    """A dictionary of whole numbers by name.

    What is wrong is said by its name: traitlets says of a number out of bounds that it is no int.

    Args:
        least: the smallest number.
        most: the largest; None: there is none.
        given: the arguments of every trait.
    """

    def __init__(self, *, least: int, most: int | None = None, **given: Any) -> None:
        super().__init__(**given)
        self._least, self._most = least, most

    def validate(self, obj: Any, value: Any) -> Any:
        """Return the value.

        Raises:
            TraitError: it is none.
        """
        value = super().validate(obj, value)
        where = f"c.{type(obj).__name__}.{self.name}"
        for name, number in (value or {}).items():
            if not isinstance(name, str) or not name.strip():
                raise TraitError(f"{where}: a name must be a text that isn't empty, got {name!r}")
            if type(number) is not int or not self._holds(number):
                bounds = f"from {self._least}" + (f" to {self._most}" if self._most else " up")
                raise TraitError(
                    f"{where}[{name!r}] must be a whole number {bounds}, got {number!r}"
                )
        return value

    def _holds(self, number: int) -> bool:
        return self._least <= number and (self._most is None or number <= self._most)
