"""JSON that others wrote."""

import json
from typing import Any


def loads(text: str | bytes, **options) -> Any:
  """What a text holds; options are those of json.loads.

  Raises:
    ValueError: it is not JSON, or is nested deeper than Python can follow.
  """
  try:
    return json.loads(text, **options)
  except RecursionError as error:
    raise ValueError(str(error)) from None
