"""Functions of the original code that the scripts beside this run.

REPOSITORIES, the first argument of each, holds clones of the repositories.
"""

import ast
import pathlib
import re
import sys
import types
import typing

import numpy as np

ROOT = pathlib.Path(sys.argv[1])


def names_of(path, *names, **around):
  """Functions and classes of a file, run without the rest of it.

  Args:
    path: of the file, below ROOT.
    names: of what is wanted.
    around: what it needs beside numpy, re and typing, by name.

  Returns:
    A namespace with these names.
  """
  tree = ast.parse((ROOT / path).read_text())
  tree.body = [x for x in tree.body if getattr(x, 'name', '') in names]
  scope = dict(vars(typing), np=np, re=re) | around
  exec(compile(tree, path, 'exec'), scope)
  return types.SimpleNamespace(**{name: scope[name] for name in names})
