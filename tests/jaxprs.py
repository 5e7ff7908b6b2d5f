"""Reading a traced program: its collectives, its arrays."""

import collections
import re

import jax

COLLECTIVES = ('ppermute', 'all_gather', 'all_to_all', 'reduce_scatter')


def equations(jaxpr, times=1):
  """(equation, how often it runs) of a jaxpr and of all jaxprs inside it."""
  for eqn in jaxpr.eqns:
    yield eqn, times
    inside = times * eqn.params.get('length', 1)
    is_jaxpr = lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
    for param in jax.tree.leaves(eqn.params, is_leaf=is_jaxpr):
      param = getattr(param, 'jaxpr', param)
      if hasattr(param, 'eqns'):
        repeated = eqn.primitive.name == 'scan'
        yield from equations(param, inside if repeated else times)


def collectives(jaxpr) -> dict:
  """{'ppermute': how many run, 'ppermute bytes': how many they send}."""
  count = collections.Counter()
  for eqn, times in equations(jaxpr):
    name = eqn.primitive.name
    if name.startswith(COLLECTIVES):
      arrays = [v.aval for v in eqn.invars]
      count[name] += times * len(arrays)
      count[f'{name} bytes'] += times * sum(
        a.size * a.dtype.itemsize for a in arrays
      )
  return dict(count)


def gathered(jaxpr) -> set:
  """{(shape, dtype)} of what the all-gathers of a program make."""
  return {
    (v.aval.shape, str(v.aval.dtype))
    for eqn, _ in equations(jaxpr)
    for v in eqn.outvars
    if eqn.primitive.name.startswith('all_gather')
  }


def shapes(jaxpr) -> set:
  """The shapes of all arrays that the program computes."""
  return {
    v.aval.shape
    for eqn, _ in equations(jaxpr)
    for v in eqn.outvars
    if hasattr(v.aval, 'shape')
  }


def collective_shapes(text: str, name: str) -> list:
  """Shapes of what one kind of collective makes in a compiled program."""
  made = re.findall(rf'= (.*?) {name}(?:-start)?\(', text)
  return [
    tuple(int(n) for n in dims.split(',') if n)
    for outputs in made
    for dims in re.findall(r'[a-z]\d+\[([\d,]*)\]', outputs)
  ]
