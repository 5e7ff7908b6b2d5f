"""Parses a compiled program: scheduled HLO text to lists of instructions.

Only what schedule.py reads: names, shapes, operands, called computations,
groups of devices. The instructions of a scheduled TPU program are in the order
of execution.
"""

import functools
import math
import re
from typing import NamedTuple

import numpy as np

BYTES = dict(
  pred=1, s4=1, u4=1, s8=1, u8=1, s16=2, u16=2, bf16=2, f16=2, s32=4, u32=4,
  f32=4, s64=8, u64=8, f64=8,
)  # fmt: skip
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) .*\{$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$')
_ARRAY = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\](?:\{[^}]*?(?:S\((\d+)\))?\})?')
_CALLED = re.compile(
  r'\b(body|condition|calls|to_apply|called_computations)=\{?%?([\w.\-]+)'
)


class Array(NamedTuple):
  """One array of a shape; space 0 is HBM, 1 VMEM, 5 the host's memory."""

  dtype: str
  dims: tuple[int, ...]
  space: int

  @property
  def bytes(self) -> int:
    return math.prod(self.dims) * BYTES.get(self.dtype, 0)


class Instruction(NamedTuple):
  """`%name = shape op(operands), text`."""

  name: str
  op: str
  shape: str
  operands: tuple[str, ...]
  text: str  # all after the operands

  def arrays(self) -> list[Array]:
    """The arrays of the result, of a tuple all."""
    return arrays(self.shape)

  def called(self) -> dict[str, str]:
    """{'body': name, 'calls': name, ...}: those there are, a list's first."""
    return dict(_CALLED.findall(self.text))

  def find(self, pattern: str) -> str:
    """The group of a regular expression in the text, or ''."""
    found = re.search(pattern, self.text)
    return found[1] if found else ''

  def branches(self) -> list[str]:
    """Names of the computations of a conditional."""
    names = self.find(r'\bbranch_computations=\{([^}]*)\}').split(',')
    return [n.strip().lstrip('%') for n in names if n]

  def number(self, key: str) -> float | None:
    """The value of "key":"123" in the backend's config."""
    found = self.find(rf'"{key}":"(\d+)"')
    return float(found) if found else None

  def op_name(self) -> str:
    """Where in the traced program it comes from."""
    return self.find(r'op_name="([^"]*)"')


class Program(NamedTuple):
  """All computations by name; `entry` is the one that runs."""

  entry: str
  computations: dict[str, list[Instruction]]

  def trips(self, loop: Instruction) -> int:
    """Iterations of a while loop: the one constant in its condition."""
    condition = self.computations[loop.called()['condition']]
    constants = [
      i.operands[0]
      for i in condition
      if i.op == 'constant' and i.shape.startswith('s32[]')
    ]
    return int(constants[0]) if len(constants) == 1 else 1

  def collective(self, instruction: Instruction) -> Instruction | None:
    """The collective that this is, or that lies in what it calls."""
    if instruction.op.removesuffix('-start') in COLLECTIVES:
      return instruction
    inside = self.computations.get(instruction.called().get('calls', ''), [])
    return next((i for i in inside if i.op in COLLECTIVES), None)

  def offloaded(self, start: Instruction) -> Instruction | None:
    """The collective that a SparseCore executes from an async-start on."""
    if 'async_execution_thread="sparsecore"' not in start.text:
      return None
    calls = self.computations.get(start.called().get('calls', ''), [])
    names = [i.called().get('called_computations', '') for i in calls]
    inside = [i for name in names for i in self.computations.get(name, [])]
    return next((i for i in inside if i.op in COLLECTIVES), None)


COLLECTIVES = (
  'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
  'collective-permute',
)  # fmt: skip


def parse(text: str) -> Program:
  """All computations of a module."""
  computations, entry, lines = {}, '', []
  for line in text.splitlines():
    opening = not line.startswith(' ') and _COMPUTATION.match(line)
    if opening:
      lines = computations[opening[2]] = []
      entry = opening[2] if opening[1] else entry
    elif _INSTRUCTION.match(line):
      lines.append(line)
    elif lines and line != '}':  # the metadata of kernels has line breaks
      lines[-1] += ' ' + line
  return Program(
    entry, {k: [instruction(x) for x in v] for k, v in computations.items()}
  )


def instruction(line: str) -> Instruction:
  """`%name = shape op(operands), the rest`."""
  found = _INSTRUCTION.match(line)
  assert found, line
  name, rest = found.groups()
  end = _closing(rest) if rest.startswith('(') else rest.index(' ')
  shape, rest = rest[:end], rest[end:].lstrip()
  op, rest = rest.split('(', 1)
  end = _closing('(' + rest) - 2
  inside = rest[:end]
  operands = re.findall(r'%([\w.\-]+)', inside) or [inside]
  return Instruction(name, op, shape, tuple(operands), rest[end + 1 :])


def _closing(text: str) -> int:
  """The place behind the parenthesis that closes the first one."""
  depth = 0
  for found in re.finditer(r'[()]', text):
    depth += 1 if found[0] == '(' else -1
    if depth == 0:
      return found.end()
  raise ValueError(f'no closing parenthesis: {text[:80]}')


@functools.lru_cache
def arrays(shape: str) -> list[Array]:
  """The arrays of a shape, of a tuple all."""
  return [
    Array(dtype, tuple(int(d) for d in dims.split(',') if d), int(space or 0))
    for dtype, dims, space in _ARRAY.findall(shape)
    if dtype in BYTES
  ]


@functools.lru_cache
def groups(text: str, devices: int) -> tuple[tuple[int, ...], ...]:
  """The groups of `replica_groups=...`, as places in the mesh.

  Args:
    text: of the instruction behind its operands.
    devices: of the program; they are one group where none are named.
  """
  found = re.search(r'replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}', text)
  if found:
    sizes = re.findall(r"'?(\w+)'?=(\d+)", found[1])
    wanted = re.findall(r'\w+', found[2])
    places = np.arange(math.prod(int(s) for _, s in sizes))
    places = places.reshape([int(s) for _, s in sizes])
    inside = [n for n, (axis, _) in enumerate(sizes) if axis in wanted]
    outside = [n for n in range(len(sizes)) if n not in inside]
    size = math.prod(places.shape[n] for n in inside)
    return _rows(places.transpose(outside + inside).reshape(-1, size))
  found = re.search(
    r'replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', text
  )
  if found:
    dims = [int(x) for x in found[3].split(',')]
    order = [int(x) for x in found[4].split(',')] if found[4] else None
    places = np.arange(math.prod(dims)).reshape(dims).transpose(order)
    return _rows(places.reshape(int(found[1]), int(found[2])))
  found = re.search(r'replica_groups=\{(\{[\d,{} ]*\})\}', text)
  if found:
    rows = re.findall(r'\{([\d,]+)\}', found[1])
    return tuple(tuple(int(x) for x in row.split(',')) for row in rows)
  return (tuple(range(devices)),)


def _rows(places) -> tuple[tuple[int, ...], ...]:
  return tuple(tuple(row) for row in places.tolist())


@functools.lru_cache
def pairs(text: str) -> tuple[tuple[int, int], ...]:
  """(source, target) of a collective-permute, as places in the mesh."""
  found = re.search(r'source_target_pairs=\{(.*?)\}\}', text)
  numbers = re.findall(r'\{(\d+),(\d+)', found[1] + '}') if found else []
  return tuple((int(a), int(b)) for a, b in numbers)
