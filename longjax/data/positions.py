"""Positions, which only RoPE reads. Pure numpy.

All kinds but `plain` skip positions, so that a model trained on short rows
learns the distances of a long window. Within a segment positions never
decrease; they stay below `target`.
"""

import itertools

import numpy as np

from longjax import errors

TURNS_IN = 64  # documents of a source that are searched for turns
SINKS = 4  # tokens at the start of a segment that E2-LLM does not move


def check(settings, seq_len: int):
  """InputError if data.positions is impossible for rows of seq_len tokens."""
  kind, target, window = settings.kind, settings.target, settings.window
  why = ''
  for key, reader, unset in (('chunks', 'pose', 2), ('window', 'e2llm', 0)):
    if kind != reader and settings[key] != unset:
      why = (
        f'{key} {settings[key]} is read by {reader} alone, and kind is {kind}; '
        f'set it to {unset}, or kind to {reader}'
      )
  if kind == 'plain' and target:
    why = (
      f'target {target} is not read by plain positions; set kind to pose, '
      'skipalign or e2llm, or target to 0'
    )
  elif kind != 'plain' and target < seq_len:
    why = (
      f'target {target} is below train.seq_len {seq_len}: {kind} skips '
      'positions up to a longer window'
    )
  elif kind == 'pose' and not 2 <= settings.chunks <= seq_len:
    why = f'chunks {settings.chunks} is not from 2 to train.seq_len {seq_len}'
  elif kind == 'e2llm' and (window < seq_len or target % window):
    why = (
      f'window {window} must be that of the released model, at least '
      f'train.seq_len {seq_len}, and target {target} a multiple of it'
    )
  if why:
    raise errors.InputError(f'data.positions.{why}')


def check_turns(store, documents):
  """InputError for chats, or where all is text, that SkipAlign cannot skip in.

  Text beside chats keeps plain positions.

  Args:
    store: a store.Store.
    documents: numbers of the documents that are trained on.
  """
  documents = np.unique(documents)
  numbers, without = store.sources[documents], []
  sources = np.unique(numbers)
  for source in sources:
    first = documents[numbers == source][:TURNS_IN].tolist()
    if not any(len(_runs(store.mask(number)[1:])) > 1 for number in first):
      without.append(store.source(first[0]))
  kinds = {name: keys.get('kind') for name, keys, *_ in store.manifest['spec']}
  chats = [name for name in without if kinds.get(name) == 'chat']
  if chats or len(without) == len(sources):
    raise errors.InputError(
      'data.positions.kind is skipalign, which skips between the turns of '
      f'chats, but there are none in {", ".join(chats or without)}, whose '
      f'tokens are all predicted alike: train on chats with '
      "loss='answers', or set kind to plain or pose"
    )


def draw(settings, row, jumps, key: tuple[int, int, int]):
  """The positions of one row, a pure function of its arguments.

  Args:
    settings: the config's data.positions.
    row: a Batch of [seq] arrays in the order of the text.
    jumps: columns inside a segment where another text begins.
    key: seed of the config, step, and row in the order of the mixture.

  Returns:
    int32 [seq].
  """
  rng, segments = np.random.default_rng((*key, 1)), row.segments
  if settings.kind == 'pose':
    return pose(segments, settings.target, rng, settings.chunks, jumps)
  if settings.kind == 'skipalign':
    return skipalign(segments, row.weights, settings.target, rng)
  if settings.kind == 'e2llm':
    seed, step, _ = key
    rng = np.random.default_rng((seed, step, 2))  # one draw for all rows
    factor = int(rng.integers(1, settings.target // settings.window + 1))
    most = factor * settings.window - len(segments)
    offset = int(rng.integers(0, most + 1))
    return e2llm(segments, settings.target, settings.window, factor, offset)
  return plain(segments)


def plain(segments) -> np.ndarray:
  """0, 1, 2, ... from the start of each segment.

  Args:
    segments: [..., seq] document numbers in the order of the text; 0 is
      padding, which stays at 0.

  Returns:
    int32 [..., seq].
  """
  segments = np.asarray(segments)
  order = np.arange(segments.shape[-1], dtype=np.int32)
  begins = np.ones(segments.shape, bool)
  begins[..., 1:] = segments[..., 1:] != segments[..., :-1]
  found = order - np.maximum.accumulate(np.where(begins, order, 0), axis=-1)
  # How far a row is filled must not change what LongRoPE takes its longest
  # context to be.
  return np.where(segments > 0, found, 0).astype(np.int32)


def pose(segments, target: int, rng, chunks: int, jumps=()) -> np.ndarray:
  """PoSE (2309.10400, section 3): each segment in chunks that skip ahead.

  Chunk 0 starts at 0; chunk i is moved by u_i, uniform from u_(i-1) to
  target - length. Chunks begin where the text jumps (pack.jump: as in the
  published code); a segment of one text is cut at random, as in the paper.

  Args:
    segments: [seq] document numbers in the order of the text.
    target: the window to train for, tokens.
    rng: numpy Generator.
    chunks: of a segment of one text; the paper has 2.
    jumps: columns inside a segment where another text begins, sorted.

  Returns:
    int32 [seq].
  """
  out = plain(segments)
  for begin, end in _runs(segments):
    if not segments[begin]:
      continue
    length = end - begin
    seams = [jump - begin for jump in jumps if begin < jump < end]
    if not seams:
      most = min(chunks, length) - 1
      seams = np.sort(rng.choice(length - 1, most, replace=False)) + 1
    skip = 0
    for seam, after in zip(seams, [*seams[1:], length]):
      skip = int(rng.integers(skip, target - length + 1))
      out[begin + seam : begin + after] += skip
  return out


def skipalign(segments, weights, target: int, rng) -> np.ndarray:
  """SkipAlign (2405.03939): positions skip between the turns of a dialogue.

  A turn is a run of tokens that are all predicted or all not; see
  `check_turns`. We had no access to the paper; the sampling rule is our own:
  for a segment of n tokens in B turns, B - 1 numbers uniform from 0 to
  target - n, sorted, are added to the positions of turns 2 to B.

  Args:
    segments: [seq] document numbers in the order of the text.
    weights: [seq] of the loss; above 0 where the next token is predicted.
    target, rng: as in `pose`.

  Returns:
    int32 [seq].
  """
  out = plain(segments)
  for begin, end in _runs(segments):
    # weights[i] is that of token i + 1; token 0 belongs to the first turn.
    turns = _runs(np.asarray(weights)[begin : end - 1] > 0)
    most = target - (end - begin)
    skips = rng.integers(0, most + 1, max(0, len(turns) - 1))
    for (first, _), skip in zip(turns[1:], np.diff(np.sort(skips), prepend=0)):
      out[begin + 1 + first : end] += int(skip)
  return out


def e2llm(segments, target: int, window: int, factor: int, offset: int):
  """E2-LLM (2401.06951, eq. 5 to 7): positions (m + t) / g at scale target.

  Position m becomes (m + t) / g, with t = 0 for the first four tokens. RoPE
  divides by target / window ('linear' scaling, Position Interpolation at the
  longest window), so the integer returned is (m + t) / g times that, to the
  nearest; it is exact where g divides target / window.

  Args:
    segments: [seq] document numbers in the order of the text.
    target: the longest window, g_max times the released one.
    window: of the released model.
    factor: g, from 1 to target / window.
    offset: t, from 0 to g * window - seq.

  Returns:
    int32 [seq], below target.
  """
  place = plain(segments).astype(np.int64)
  place += np.where(place >= SINKS, offset, 0)
  longest = target // window
  return ((2 * place * longest + factor) // (2 * factor)).astype(np.int32)


def _runs(values) -> list[tuple[int, int]]:
  """[begin, end) of each run of equal values."""
  values = np.asarray(values)
  seams = np.flatnonzero(values[1:] != values[:-1]) + 1
  edges = [0, *seams.tolist(), len(values)]
  return list(itertools.pairwise(edges)) if len(values) else []
