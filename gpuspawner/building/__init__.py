"""`gpuspawner image`: list, build, check and pin the image versions of the catalogue."""

from .command import add_arguments, run
from .recipe import BuildingError, Recipe, recipe, recipes

__all__ = ["BuildingError", "Recipe", "add_arguments", "recipe", "recipes", "run"]
