"""The one exception that means: the input is wrong, not the program."""


class InputError(ValueError):
  """Says in one line what was given, what is needed and what to do.

  Raised for configs, files and data that a user can mend. The commands in
  `launch/` print its message as one line and exit with code 2.
  """
